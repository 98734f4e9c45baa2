"""Behaviour towards known and unknown people: predictions, calibration, answers and departures."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from analyses.hallucination import behaviour
from analyses.hallucination.answers import (
    KINDS,
    distance_from_prior,
    kinds_of_answers,
    shares_of_kinds,
)
from analyses.hallucination.departures import MARGINS, departure_steps, departures, rises
from analyses.hallucination.people_sets import SETS, PeopleSet, sets_of_people
from analyses.hallucination.reliability import (
    calibration,
    expected_calibration_error,
    reliability,
)
from analyses.hallucination.value_predictions import (
    NO_CHOICE,
    FirstTokens,
    first_tokens,
    value_predictions,
)
from interp.config import ATTRIBUTES
from interp.data.batches import evaluation_set
from interp.data.biographies import ROLES
from interp.dynamics.plateau import MARGIN
from interp.training.evaluation import AVERAGE, by_person, evaluate


@pytest.fixture(scope="module")
def choices(suite):
    return first_tokens(suite.texts, suite.config.n_people)


@pytest.fixture(scope="module")
def held_out(suite):
    return evaluation_set(suite.texts, suite.config, "held-out")


@pytest.fixture(scope="module")
def predicted(model, held_out, choices):
    return value_predictions(model, held_out, choices)


def test_losses_and_accuracies_are_those_of_the_evaluation(model, held_out, predicted):
    theirs = by_person(model, held_out)
    ours = predicted.mean("attribute")
    assert np.allclose(ours.loss, theirs.loss, rtol=1e-5)
    assert np.allclose(ours.accuracy, theirs.accuracy)
    average = evaluate(model, held_out).set_index("attribute").loc[AVERAGE]
    assert float(ours.loss.mean()) == pytest.approx(average.loss, rel=1e-5)


def test_predictions_are_those_of_a_naive_loop_over_whole_biographies(
    model, held_out, choices, predicted
):
    """Each biography goes through the model alone; float32 against float64 sums: 1e-4."""
    edges = np.cumsum(held_out.lengths)
    value = ROLES.index("value")
    for person in (0, 7):
        row = slice(edges[person] - held_out.lengths[person], edges[person])
        tokens, roles = held_out.tokens[row], held_out.roles[row]
        attributes = held_out.attributes[row]
        p = model(torch.from_numpy(tokens)[None])[0].double().softmax(-1).numpy()
        for attribute in range(len(ATTRIBUTES)):
            at = [i for i in range(len(roles)) if roles[i] == value and attributes[i] == attribute]
            before = p[[i - 1 for i in at]]
            ours = predicted.isel(person=person, attribute=attribute)
            entropy = [-(row * np.log(row)).sum() for row in before]
            naive = {
                "loss": sum(-np.log(p[i - 1, tokens[i]]) for i in at),
                "accuracy": float(all(p[i - 1].argmax() == tokens[i] for i in at)),
                "max_probability": before.max(1).mean(),
                "entropy": np.mean(entropy),
                "confidence": before[0].max(),
                "right": float(before[0].argmax() == tokens[at[0]]),
            }
            for name, expected in naive.items():
                assert float(ours[name]) == pytest.approx(expected, rel=1e-4), name
            among = choices.token[attribute][choices.token[attribute] != NO_CHOICE]
            p_among = before[0, among] / before[0, among].sum()
            assert np.allclose(ours.p[: len(among)], p_among, rtol=1e-4)
            assert (ours.p[len(among) :] == 0).all()


def test_first_tokens_are_those_of_known_peoples_values(suite, choices):
    known = suite.population[suite.population.split == "train"]
    for i, attribute in enumerate(ATTRIBUTES):
        words = [suite.tokenizer.encode(x, add_special_tokens=False).ids for x in known[attribute]]
        first = [ids[0] for ids in words]
        there = choices.token[i] != NO_CHOICE
        assert choices.token[i][there].tolist() == sorted(set(first))
        assert [choices.token[i][k] for k in choices.of_person[:, i]] == first
        shares = [first.count(token) / len(first) for token in choices.token[i][there]]
        assert np.allclose(choices.prior[i][there], shares) and not choices.prior[i][~there].any()


def test_every_set_is_written_about_under_its_own_names(suite, monkeypatch):
    monkeypatch.setattr("analyses.hallucination.people_sets.KEPT", {
        "two parts shared": (("first", "last"),), "one part shared": (("middle",),)
    })  # fmt: skip
    found = sets_of_people(suite, n=6, n_constructed=3)
    assert tuple(found) == SETS
    assert len(found["known"].people) == len(found["held out"].people) == 6
    for name, of in found.items():
        edges = np.cumsum(of.biographies.lengths)
        for i, (_, person) in enumerate(of.people.iterrows()):
            row = slice(edges[i] - of.biographies.lengths[i], edges[i])
            text = suite.tokenizer.decode(of.biographies.tokens[row])
            assert f"{person['first']} {person['middle']} {person['last']}" in text, name
            assert person.company.split()[0] in text
    assert set(found["two parts shared"].people.kept) == {"first+last"}
    two = found["two parts shared"].people
    assert (two.nearest == two.neighbour).all() and (two.shared == 2).all()
    assert (found["one part shared"].people.shared == 1).all()


def naive_ece(confidence, right):
    """Ten bins by rank of distinct confidences, and a loop."""
    order = np.argsort(confidence)
    total = 0.0
    for rows in np.array_split(order, 10):
        total += len(rows) * abs(np.mean(right[rows]) - np.mean(confidence[rows]))
    return total / len(confidence)


def test_ece_is_that_of_a_naive_loop_over_equal_bins():
    rng = np.random.default_rng(0)
    confidence = rng.random(200)
    right = (rng.random(200) < confidence**2).astype(float)
    assert expected_calibration_error(confidence, right) == pytest.approx(
        naive_ece(confidence, right), abs=1e-12
    )
    table = reliability(confidence, right)
    assert table.n.tolist() == [20] * 10 and table.confidence.is_monotonic_increasing
    by_table = np.average(abs(table.accuracy - table.confidence), weights=table.n)
    assert by_table == pytest.approx(naive_ece(confidence, right), abs=1e-12)


def test_ece_of_four_predictions_by_hand():
    """Two bins of equal confidences: |0.5 − 0.9| · 2/4 + |0 − 0.2| · 2/4 = 0.3."""
    confidence, right = np.array([0.9, 0.2, 0.9, 0.2]), np.array([1.0, 0, 0, 0])
    assert expected_calibration_error(confidence, right) == pytest.approx(0.3)
    assert reliability(confidence, right).n.tolist() == [2, 2]
    assert expected_calibration_error(np.full(4, 0.75), np.array([1.0, 1, 1, 0])) == 0


def test_a_calibrated_model_shows_the_ece_of_chance_and_an_overconfident_one_its_excess():
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.2, 1, (150, 6))
    right = (rng.random(confidence.shape) < confidence).astype(float)
    fair = calibration(confidence, right)
    assert fair["ece"] == pytest.approx(fair["ece_calibrated"], abs=0.02)
    assert abs(fair["overconfidence"]) < 0.04  # three standard errors of 900 predictions: 0.045
    wrong = calibration(np.full((150, 6), 0.9), np.zeros((150, 6)))
    assert wrong["ece"] == pytest.approx(0.9) and wrong["overconfidence"] == pytest.approx(0.9)
    assert wrong["ece_low"] == pytest.approx(0.9)
    assert wrong["ece_calibrated"] < 0.03


@pytest.fixture
def small():
    """Three known people, one attribute with three values, and two asked about."""
    known = pd.DataFrame({
        "id": [5, 6, 7, 8], "first": ["A", "B", "A", "C"], "middle": ["D", "E", "F", "G"],
        "last": ["H", "I", "J", "K"],
    })  # fmt: skip
    asked = pd.DataFrame({
        "first": ["A", "C"], "middle": ["D", "Z"], "last": ["Y", "X"], "nearest": [5, -1],
    })  # fmt: skip
    choices = FirstTokens(
        token=np.array([[10, 11, 12, NO_CHOICE]]),
        prior=np.array([[0.25, 0.5, 0.25, 0.0]]),
        of_person=np.array([[0], [1], [2], [1]]),
    )
    return asked, known, choices


def test_kinds_of_answers_by_hand(small):
    kinds = kinds_of_answers(*small)
    assert [[KINDS[k] for k in row[0]] for row in kinds] == [
        ["nearest", "prior", "sharer", "other"],  # A D Y is next to A D H, and an A like A F J
        ["other", "prior", "other", "other"],
    ]


def test_shares_and_chance_are_those_of_all_permutations():
    rng = np.random.default_rng(2)
    kinds = rng.integers(4, size=(5, 2, 3))
    answers = rng.integers(3, size=(5, 2))
    found = shares_of_kinds(answers, kinds).set_index("kind")
    dealt = []
    for order in permutations(range(5)):
        said = [kinds[order[i], a, answers[i, a]] for i in range(5) for a in range(2)]
        dealt.append([np.mean(np.array(said) == k) for k in range(4)])
    assert np.allclose(found.chance, np.mean(dealt, 0))
    own = [kinds[i, a, answers[i, a]] for i in range(5) for a in range(2)]
    assert found.share.tolist() == [own.count(k) / 10 for k in range(4)]
    assert found.share.sum() == pytest.approx(1) and found.chance.sum() == pytest.approx(1)
    assert np.allclose(found.excess, found.share - found.chance)


@pytest.fixture(scope="module")
def dealt(suite, choices):
    """Held-out people, each with a nearest known person dealt to them."""
    people = suite.population
    known = people[people.split == "train"]
    asked = people[people.split == "held-out"].reset_index(drop=True)
    asked = asked.assign(nearest=known.id.to_numpy()[: len(asked)])
    return asked, known, kinds_of_answers(asked, known, choices)


def test_a_model_that_gives_the_nearest_persons_values_is_found_out(dealt, choices):
    asked, _, kinds = dealt
    found = shares_of_kinds(choices.of_person[: len(asked)], kinds).set_index("kind")
    assert found.share["nearest"] == 1 and found.share_margin["nearest"] == 0
    assert found.excess["nearest"] > 0.5


def test_a_model_that_gives_a_frequent_value_gives_nearest_values_by_chance_only(dealt, choices):
    asked, _, kinds = dealt
    answers = np.broadcast_to(choices.prior.argmax(1), (len(asked), len(ATTRIBUTES)))
    found = shares_of_kinds(answers.copy(), kinds).set_index("kind")
    assert found.share["prior"] + found.share["nearest"] == pytest.approx(1)
    assert found.excess["nearest"] == pytest.approx(0, abs=1e-12)
    assert found.excess["prior"] == pytest.approx(0, abs=1e-12)


def test_values_at_random_are_the_nearest_persons_no_more_often_than_chance(dealt, choices):
    _, _, kinds = dealt
    rng = np.random.default_rng(3)
    excess = [
        shares_of_kinds(choices.of_person[rng.permutation(len(choices.of_person))[:20]], kinds)
        .set_index("kind")
        .excess["nearest"]
        for _ in range(50)
    ]
    assert abs(np.mean(excess)) < 4 * np.std(excess) / 50**0.5


def test_the_distance_from_the_prior_is_in_nats_and_0_where_the_mean_is_the_prior():
    choices = FirstTokens(
        np.array([[3, 4, NO_CHOICE]]), np.array([[0.5, 0.5, 0.0]]), np.array([[0], [1]])
    )
    p = np.array([[[1.0, 0, 0]], [[0, 1.0, 0]]])  # sure of everybody, but of both as often
    assert distance_from_prior(p, choices) == 0
    assert distance_from_prior(p[:1], choices) == pytest.approx(np.log(2))
    p = np.array([[[0.8, 0.2, 0]]])
    expected = 0.8 * np.log(1.6) + 0.2 * np.log(0.4)
    assert distance_from_prior(p, choices) == pytest.approx(expected)


STEP = np.arange(0, 1000, 100)
KNOWN = [9, 5, 4.04, 4.02, 4.0, 3.9, 3.0, 2.0, 1.0, 0.5]
HELD_OUT = [9, 5, 4.1, 4.0, 4.04, 4.5, 5.0, 6.0, 7.0, 8.0]


def test_departures_by_hand():
    """Baseline 4; the held-out minimum is at step 300, where the known loss is 4.02."""
    losses = dict(zip(SETS, np.array([KNOWN, HELD_OUT, HELD_OUT, KNOWN], float)))
    found = departure_steps(STEP, losses, 4.0)
    assert len(found) == 8 * len(MARGINS)
    assert found["known loss below baseline", MARGIN] == 500  # below 3.98
    assert found["known loss below its level at the held-out minimum", MARGIN] == 500
    assert found["held out loss above its minimum", MARGIN] == 400  # above 4.02
    assert found["held out loss above its minimum", 0.05] == 500
    assert found["held out loss above known loss", MARGIN] == 400  # 0.04 > 0.02, at 300 below
    assert found["known loss below baseline", 0.05] == 600
    assert np.isnan(found["one part shared loss above known loss", MARGIN])
    assert np.isnan(found["one part shared loss above its minimum", MARGIN])


def test_departures_have_intervals_over_people_and_lags_to_the_end_of_the_plateau():
    rng = np.random.default_rng(4)
    of_people = {
        name: np.array(mean, float)[:, None] + rng.normal(0, 0.5, (1, 40))
        for name, mean in zip(SETS, (KNOWN, HELD_OUT, HELD_OUT, HELD_OUT))
    }
    of_people = {name: x - x.mean(1, keepdims=True) + np.array(m, float)[:, None]
                 for (name, x), m in zip(of_people.items(), (KNOWN, *[HELD_OUT] * 3))}  # fmt: skip
    found = departures(STEP, of_people, 4.0).set_index(["departure", "margin"])
    rise = found.loc["held out loss above its minimum", MARGIN]
    assert rise.step == 400 and rise.lag == -100 and rise.resolution == 100
    assert rise.step_low == rise.step_high == 400  # people differ by a constant: their own minimum
    below = found.loc["known loss below baseline", MARGIN]
    assert below.lag == below.lag_low == below.lag_high == 0
    assert below.step_low <= 500 <= below.step_high and below.step_low < below.step_high


def test_rises_start_from_the_held_out_minimum_and_a_fall_is_read_as_one():
    steps = np.arange(0, 2000, 50)
    late = 1 / (1 + np.exp(-(steps - 1000) / 50))
    noise = np.random.default_rng(5).normal(0, 0.01, (3, len(steps), 30))
    early = 5 * np.exp(-steps / 60)
    known, held_out = 4 + early - 3 * late, 4 + early + 3 * late
    curve = {
        "known": xr.Dataset({"loss": (("step", "person"), known[:, None] + noise[0]),
                             "max_probability": (("step", "person"), late[:, None] + noise[1])}),
        **{name: xr.Dataset({
            "loss": (("step", "person"), held_out[:, None] + noise[2]),
            "max_probability": (("step", "person"), late[:, None] + noise[1]),
        }) for name in SETS[1:]},
    }  # fmt: skip
    curve = {name: x.assign_coords(step=steps) for name, x in curve.items()}
    found = rises(steps, curve, 900.0).set_index(["set", "measure"])
    assert found.emerged.all() and found.from_step.between(250, 800).all()
    assert np.allclose(found.midpoint, 1000, atol=15) and np.allclose(found.lag, 100, atol=15)
    assert np.allclose(found.onset, 1000 - 50 * np.log(9), atol=25)
    assert found.falls["known", "loss"] and not found.falls["held out", "loss"]
    unended = rises(steps, curve, np.nan)
    assert not unended.emerged.any()


def test_the_tables_of_a_run_agree_with_its_metrics(run, suite, monkeypatch):
    monkeypatch.setattr("analyses.hallucination.people_sets.KEPT", {
        "two parts shared": (("first", "last"),) * 2, "one part shared": (("middle",), ("last",))
    })  # fmt: skip
    found = behaviour.tables_of_run(run, n=100, n_constructed=4, device="cpu")
    table = found["hallucination"].set_index(["set", "step"])
    metrics = suite.metrics[suite.metrics.attribute == AVERAGE].set_index(["split", "step"])
    for ours, theirs in (("known", "train"), ("held out", "held-out")):
        for measure in ("loss", "accuracy"):
            assert np.allclose(table.loc[ours][measure], metrics.loc[theirs][measure], rtol=1e-4)
    assert (table.baseline == suite.no_knowledge_baseline).all()
    answers = found["hallucination_answers"]
    assert np.allclose(answers.groupby(["step", "set", "among"]).share.sum(), 1)
    whole = answers[(answers.set == "held out") & (answers.step == 30)]
    of_all = whole[whole.among == "all"].set_index("kind")
    parts = whole[whole.among != "all"]
    assert parts.groupby("among").n.first().sum() == of_all.n.iloc[0]
    weighted = (parts.share * parts.n).groupby(parts.kind).sum() / of_all.n
    assert np.allclose(weighted[of_all.index], of_all.share)


def test_what_is_said_of_a_group_is_judged_by_its_own_peoples_relations():
    people = pd.DataFrame({"kept": ["last", "first", "last", "first"]})
    kinds = np.array([0, 3, 0, 3])[:, None, None] + np.zeros((1, 1, 2), int)
    answers = np.zeros((4, 1), int)
    found = pd.concat(
        behaviour._answers(answers, kinds, PeopleSet(people, None), "two parts shared", 5)
    ).set_index(["among", "kind"])
    assert found.share["all", "nearest"] == found.share["all", "other"] == 0.5
    assert found.share["last", "nearest"] == found.share["first", "other"] == 1
    assert set(found.step) == {5} and found.n["first", "other"] == 2


def test_a_run_that_has_not_left_its_plateau_says_so():
    table = pd.DataFrame({"seed": [0, 1], "plateau_end": [100.0, np.nan], "step": [5, 5]})
    said = behaviour.said({"hallucination": table, "hallucination_departures": None})
    assert said == ["the plateau had not ended by step 5 in every run"]


def test_what_is_said_of_two_runs_by_hand():
    at = {"baseline": 4.0, "ece_calibrated": 0.01, "step": 900, "max_probability": 0.8}
    rows = [
        at | {"seed": seed, "set": name, "plateau_end": 500.0 + 20 * seed, "loss": loss + seed,
              "accuracy": 0.5, "ece": 0.25}
        for seed in (0, 1)
        for name, loss in (("known", 0.5), ("held out", 9.0))
    ]  # fmt: skip
    rules = {"held out loss above its minimum": 460.0,
             "known loss below its level at the held-out minimum": 500.0}  # fmt: skip
    when = [
        {"departure": rule, "margin": margin, "step": step + seed * step / 10, "seed": seed}
        for rule, step in rules.items()
        for margin in MARGINS
        for seed in (0, 1)
    ]
    answers = [
        {"set": "two parts shared", "among": "all", "kind": kind, "share": share, "chance": 0.1,
         "step": 900}
        for kind, share in (("nearest", 0.3), ("nearest", 0.5), ("prior", 0.9))
    ]  # fmt: skip
    tables = {"hallucination": rows, "hallucination_departures": when,
              "hallucination_answers": answers}  # fmt: skip
    said = behaviour.said({name: pd.DataFrame(table) for name, table in tables.items()})
    assert said[0] == "end of the plateau by seed: step 500, 520"
    # 460 − 500 and 506 − 550; Student's t with one degree of freedom: 12.7062 · 4 ÷ 2 = 25
    assert said[1] == (
        "held-out loss is 0.5% above its minimum for good from step 460, 506, known loss as far "
        "below its level there from step 500, 550: a difference of -42 ± 25 steps (negative: "
        "hallucination is first)"
    )
    assert said[3].startswith("known, last step: loss 1.00 ± 6.35 nats per value (baseline 4.00)")
    assert said[-1].endswith("value in a share of 0.400 ± 1.271 (0.100 by chance) of all")
    assert len(said) == 6
