"""AUROC, risk and coverage against loops and numbers by hand; probes that must not remember people;
detectors on prompts that differ in nothing; prompts about any people against suite.facts.
"""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from oracle import random_model

from analyses.hallucination import detection
from interp.config import ATTRIBUTES
from interp.localization.answer_confidence import answer_confidence, mlp_activity, without_mlp
from interp.localization.located import locate
from interp.localization.people_probe import (
    left_out_scores,
    scores_of_chosen_layer,
    shuffled_by_person,
)
from interp.localization.probes import PLACES
from interp.localization.prompts_about import known_and_unknown, prompts_about, value_tokens
from interp.localization.selective_prediction import (
    aurc,
    auroc,
    auroc_table,
    resampled_auroc,
    risk_coverage,
)


@pytest.fixture(scope="module")
def wide(suite):
    return random_model(suite)


@pytest.fixture(scope="module")
def asked(suite):
    return known_and_unknown(suite)


def people(n_each=20, n_rows=4):
    """Rows of as many people of each kind: which are positive, and whose they are."""
    person = np.arange(2 * n_each).repeat(n_rows)
    return person < n_each, person


# Scores


def test_auroc_is_the_share_of_pairs_in_order_with_ties_one_half():
    positive = np.array([True, True, False, False, True])
    score = np.array([0.9, 0.4, 0.4, 0.1, 0.0])
    assert auroc(score, positive) == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 0) / 6)
    assert auroc(np.where(positive, 2.0, 1.0), positive) == 1
    assert auroc(np.where(positive, 1.0, 2.0), positive) == 0
    assert auroc(np.ones(5), positive) == 0.5
    rng = np.random.default_rng(0)
    score, positive = rng.integers(6, size=60).astype(float), rng.random(60) < 0.4
    pairs = [(h > low) + 0.5 * (h == low) for h in score[positive] for low in score[~positive]]
    assert auroc(score, positive) == pytest.approx(np.mean(pairs))
    with pytest.raises(ValueError, match="5 of 5 rows are positive"):
        auroc(score[:5], np.ones(5, bool))
    with pytest.raises(ValueError, match="1 scores are NaN"):
        auroc(np.array([np.nan, 1.0]), np.array([True, False]))


def test_resamples_are_those_of_repeated_rows_of_whole_people():
    rng = np.random.default_rng(1)
    person = np.array([5, 5, 5, 2, 9, 9, 4, 4, 7])
    positive = np.isin(person, (5, 9))
    score = rng.integers(4, size=9).astype(float)
    mine = resampled_auroc(score, positive, person, n_resamples=20, seed=3)
    drawn = np.random.default_rng([3, 20])
    counts = [drawn.multinomial(n, np.full(n, 1 / n), size=20) for n in (2, 3)]
    for i in range(20):
        times = dict(zip((5, 9), counts[0][i])) | dict(zip((2, 4, 7), counts[1][i]))
        rows = np.concatenate([np.flatnonzero(person == p).repeat(n) for p, n in times.items()])
        assert mine[i] == pytest.approx(auroc(score[rows], positive[rows]), abs=1e-12)
    with pytest.raises(ValueError, match="person 5 has positive and negative rows"):
        resampled_auroc(score, np.arange(9) == 0, person)


def test_intervals_are_over_people_and_differences_are_paired():
    positive, person = people(n_each=40, n_rows=5)
    rng = np.random.default_rng(2)
    of_person = (rng.normal(size=80) + 1.0 * (np.arange(80) < 40))[person]
    copies = of_person + 1e-6 * rng.normal(size=len(person))
    noise = rng.normal(size=len(person))
    scores = {"plain": copies, "same order": 3 * copies, "noise": noise}
    table = auroc_table(scores, positive, person, reference="plain").set_index("detector")
    plain = table.loc["plain"]
    once = auroc_table({"plain": copies[::5]}, positive[::5], person[::5], reference="plain").iloc[
        0
    ]
    assert plain.high - plain.low == pytest.approx(once.high - once.low, rel=0.05)
    columns = ["difference", "difference_low", "difference_high"]
    assert (table.loc["same order", columns] == 0).all()
    assert table.loc["noise"].low < 0.5 < table.loc["noise"].high
    assert table.loc["noise"].difference == pytest.approx(table.loc["noise"].auroc - plain.auroc)
    assert table.loc["noise"].difference_high < 0


def test_risk_and_coverage_are_those_by_hand():
    score, correct = np.array([0.7, 0.9, 0.6, 0.8]), np.array([True, True, True, False])
    curve = risk_coverage(score, correct)
    assert curve.threshold.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 1 / 3, 1 / 4])
    assert aurc(score, correct) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    tied = risk_coverage(np.array([0.5, 0.9, 0.5]), np.array([False, True, True]))
    np.testing.assert_allclose(tied, [[0.9, 1 / 3, 0], [0.5, 1, 1 / 3]])
    # of the two tied rows either comes first: one half of a wrong answer among the first two
    area = aurc(np.array([0.5, 0.9, 0.5]), np.array([False, True, True]))
    assert area == pytest.approx((0 + 1 / 4 + 1 / 3) / 3)


def test_the_area_is_the_mean_over_orders_of_tied_rows():
    rng = np.random.default_rng(3)
    score, correct = rng.integers(3, size=12).astype(float), rng.random(12) < 0.6
    areas = []
    for _ in range(4000):
        order = np.lexsort((rng.random(12), -score))
        areas.append((np.cumsum(~correct[order]) / np.arange(1, 13)).mean())
    # 4000 orders have a standard error of 0.0006 at most here
    assert aurc(score, correct) == pytest.approx(np.mean(areas), abs=0.003)
    assert aurc(np.ones(12), correct) == pytest.approx((~correct).mean())


# Probes


def test_a_probe_reads_a_label_and_does_not_remember_people():
    label, person = people(n_each=40)
    rng = np.random.default_rng(4)
    own = rng.normal(size=(80, 100))[person]  # the same in all rows of a person
    noise = 0.1 * rng.normal(size=(len(person), 100))
    written = np.where(label, 1.0, -1.0)[:, None] * np.eye(100)[0]
    features = np.stack((own + noise, own + noise + 4 * written))
    remembered, read = (auroc(x, label) for x in left_out_scores(features, label, person))
    assert read > 0.9
    # 80 people: the standard error of an AUROC of 0.5 is 0.065
    assert 0.3 < remembered < 0.7
    apart = np.arange(len(person))  # as if each row were a person of its own
    assert auroc(left_out_scores(features[:1], label, apart)[0], label) > 0.9
    scores, chosen = scores_of_chosen_layer(features, label, person)
    assert (chosen == 1).all() and auroc(scores, label) > 0.9
    with pytest.raises(ValueError, match="3 people are True; 5 folds need as many"):
        left_out_scores(features[:, :24], person[:24] < 3, person[:24])


def test_the_layer_is_chosen_without_the_people_left_out():
    label, person = people(n_each=25, n_rows=2)
    rng = np.random.default_rng(5)
    features = rng.normal(size=(20, 50, 3))[:, person]  # many layers, none of which says anything
    best = max(auroc(x, label) for x in left_out_scores(features, label, person))
    scores, _ = scores_of_chosen_layer(features, label, person)
    assert best > 0.65  # the best of 20 after the fact
    assert auroc(scores, label) < 0.62


def test_shuffled_labels_are_dealt_to_people_and_read_by_no_probe():
    label, person = people(n_each=40)
    rng = np.random.default_rng(6)
    features = np.where(label, 1.0, -1.0)[:, None] + rng.normal(size=(len(person), 5))
    found = []
    for seed in range(10):
        dealt = shuffled_by_person(label, person, seed=seed)
        table = pd.DataFrame({"person": person, "label": dealt}).groupby("person").label
        assert (table.nunique() == 1).all() and table.first().sum() == 40
        found.append(auroc(left_out_scores(features[None], dealt, person)[0], dealt))
    assert abs(np.mean(found) - 0.5) < 0.1  # ten AUROCs with standard errors of 0.065
    assert auroc(left_out_scores(features[None], label, person)[0], label) > 0.95


# Prompts


def test_prompts_about_training_people_are_those_of_the_suite(suite):
    facts = suite.facts(12, seed=3)
    rows = pd.Index(suite.population.id)
    asked = pd.DataFrame(
        {
            "person": rows.get_indexer(facts.texts.person),
            "attribute": [ATTRIBUTES.index(x) for x in facts.texts.attribute],
            "twin": rows.get_indexer(facts.texts.corrupted_person),
        }
    )
    found = []
    for i, row in enumerate(asked.itertuples()):
        templates = suite.texts.template_order[row.person, row.attribute, -5:]
        for template in templates:
            mine = prompts_about(suite, asked[i : i + 1].assign(template=int(template)))
            if mine.texts.clean_prompt[0] == facts.texts.clean_prompt[i]:
                found.append(mine)
    assert len(found) == 12
    for theirs, (mine,) in zip(facts, found):
        assert theirs.text == mine.text and theirs.roles == mine.roles
        for name in ("clean", "corrupted", "answer", "corrupted_answer"):
            assert torch.equal(getattr(theirs, name), getattr(mine, name))


def test_known_and_unknown_people_are_asked_alike(suite, asked):
    split = suite.population.split.to_numpy()[asked.person]
    np.testing.assert_array_equal(split == "train", asked.known)
    assert asked.known.sum() == (~asked.known).sum() == 20 * len(ATTRIBUTES)
    assert not asked.duplicated(["person", "attribute"]).any()
    facts = prompts_about(suite, asked)
    assert facts.corrupted is None
    for i in (0, 77, 200):
        row = asked.iloc[i]
        order = suite.texts.template_order[row.person, row.attribute]
        assert row.template in order[-5:]
        name = " ".join(suite.population.loc[row.person, ["first", "middle", "last"]])
        assert name in facts.texts.clean_prompt[i]
        assert facts.texts.answer[i] == suite.population[ATTRIBUTES[row.attribute]][row.person]


# What detectors read


def test_confidence_is_that_of_the_logits_one_prompt_at_a_time(wide, suite, asked, monkeypatch):
    monkeypatch.setattr(sys.modules["interp.localization.answer_confidence"], "FACTS_AT_ONCE", 4)
    facts, values = prompts_about(suite, asked[::29]), value_tokens(suite)
    table = answer_confidence(wide, facts, values)
    vectors = wide.unembed.weight.detach()
    for i, fact in enumerate(facts):
        logits = wide(fact.clean[None])[0, -1].detach()
        p = logits.softmax(-1)
        (first, second), (said, next_) = (x.tolist() for x in logits.topk(2))
        among = logits[values[fact.text["attribute"]]].sort(descending=True).values
        row = table.iloc[i]
        assert row.max_probability == pytest.approx(float(p.max()), abs=1e-12)
        assert row.negative_entropy == pytest.approx(float((p * p.log()).sum()), abs=1e-10)
        assert row.logit_margin == pytest.approx(first - second, abs=1e-10)
        distance = (first - second) / float((vectors[said] - vectors[next_]).norm())
        assert row.geometric_margin == pytest.approx(distance, abs=1e-10)
        assert row.value_margin == pytest.approx(float(among[0] - among[1]), abs=1e-10)
        assert row.said == said and row.correct == (said == int(fact.answer[0]))
        assert row.said_value == (said in values[fact.text["attribute"]])


def test_the_geometric_margin_is_the_distance_to_an_equal_choice(wide, suite, asked):
    facts = prompts_about(suite, asked[:1])
    (row,) = answer_confidence(wide, facts, value_tokens(suite)).itertuples()
    _, cache = wide.run_with_cache(facts.clean, names_filter=["ln_final.hook_normalized"])
    hidden = cache["ln_final.hook_normalized"][0, -1].detach()
    hidden = hidden * wide.ln_final.weight.detach() + wide.ln_final.bias.detach()
    vectors = wide.unembed.weight.detach()
    logits = vectors @ hidden
    one, other = logits.topk(2).indices
    towards = vectors[other] - vectors[one]
    moved = vectors @ (hidden + row.geometric_margin * towards / towards.norm())
    assert float(moved[one]) == pytest.approx(float(moved[other]), abs=1e-9)


def test_mlp_activity_is_the_norm_at_the_last_token_of_a_role(wide, suite, asked):
    facts = prompts_about(suite, asked[::53])
    norms = mlp_activity(wide, facts)
    for i, fact in enumerate(facts):
        _, cache = wide.run_with_cache(fact.clean[None])
        for role in PLACES:
            at = max(p for p, x in enumerate(fact.roles) if x == role)
            for site, hook in (("mlp_out", "hook_mlp_out"), ("mlp_post", "mlp.hook_post")):
                there = cache[f"blocks.2.{hook}"][0, at].norm()
                mine = norms.sel(site=site, role=role).isel(layer=2, fact=i)
                assert float(mine) == pytest.approx(float(there), abs=1e-9)


def test_a_mean_ablated_mlp_writes_the_same_for_everybody(wide, suite, asked, monkeypatch):
    facts = prompts_about(suite, asked[::29])
    outputs = []
    for fact in facts:
        at = max(p for p, x in enumerate(fact.roles) if x == "name_last")
        _, cache = wide.run_with_cache(fact.clean[None])
        outputs.append(cache["blocks.1.hook_mlp_out"][0, at])
    mean, expected = torch.stack(outputs).mean(0), []
    for fact in facts:
        at = max(p for p, x in enumerate(fact.roles) if x == "name_last")

        def write(x, hook, at=at):
            x = x.clone()
            x[0, at] = mean
            return x

        hooks = [("blocks.1.hook_mlp_out", write)]
        logits = wide.run_with_hooks(fact.clean[None], fwd_hooks=hooks)[0, -1]
        expected.append(logits.softmax(-1).max().item())
    monkeypatch.setattr(sys.modules["interp.localization.answer_confidence"], "FACTS_AT_ONCE", 3)
    mine = without_mlp(wide, facts, layer=1, role="name_last")
    np.testing.assert_allclose(mine, expected, atol=1e-12)
    plain = answer_confidence(wide, facts, value_tokens(suite)).max_probability
    assert np.abs(plain - mine).max() > 0.001
    alone = facts[:1]  # of one prompt the mean is its own output
    np.testing.assert_allclose(
        without_mlp(wide, alone, layer=1, role="name_last"), plain[:1], atol=1e-12
    )


def test_located_are_a_memory_and_its_extraction_heads(wide, suite):
    found = locate(wide, suite)
    assert (found.mechanism == "memory").sum() == 1
    assert found.component[found.mechanism == "memory"].iloc[0].endswith("MLP")
    assert found.component[found.mechanism == "extraction"].str.fullmatch(r"L\dH\d").all()


# The analysis


@pytest.fixture(scope="module")
def tables(run):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("N_STEPS", "N_SHUFFLES"):
            patch.setattr(detection, name, 2)
        return detection.detection_of_run(run, "cpu")


def test_before_training_no_detector_works_and_every_table_is_there(tables, suite):
    found = tables["hallucination_detection"]
    assert sorted(found.step.unique()) == [0, 30]
    start = found[found.step == 0]
    # 14 intervals of 95 %: more than three misses have a probability below 0.01
    misses = (start.low > 0.5) | (start.high < 0.5)
    assert misses.sum() <= 3, start[misses]
    plain = found[found.detector == detection.CONFIDENCE]
    assert (plain[["difference", "difference_low", "difference_high"]] == 0).all().all()
    probes = tables["hallucination_probes"]
    assert set(probes.layer) == {0, 1, 2} and set(probes.labels) == {"true", "shuffled"}
    assert (probes.step[probes.labels == "shuffled"] == 30).all()
    risks = tables["hallucination_risk_coverage"]
    assert (risks.coverage >= risks.asked_coverage - 1e-9).all()
    whole = risks[risks.asked_coverage == 1].risk
    areas = tables["hallucination_aurc"]
    np.testing.assert_allclose(whole, areas.risk.iloc[0])
    np.testing.assert_allclose(areas.risk, (areas.risk_known + areas.risk_unknown) / 2)
    assert (areas.aurc >= areas.least - 1e-12).all()


def test_detectors_are_of_the_run_and_its_prompts(tables, suite, asked):
    model, facts = suite.load(30), prompts_about(suite, asked)
    known = asked.known.to_numpy()
    table = answer_confidence(model, facts, value_tokens(suite))
    found = tables["hallucination_detection"]
    found = found[found.step == 30].set_index("detector").auroc
    expected = auroc(table.negative_entropy.to_numpy(), known)
    assert found["negative entropy"] == pytest.approx(expected, abs=1e-12)
    located = tables["hallucination_located"]
    memory = located[located.mechanism == "memory"].component.iloc[0]
    norms = mlp_activity(model, facts).isel(layer=int(memory[1]))
    expected = auroc(norms.sel(site="mlp_post", role="name_last").to_numpy(), known)
    assert found["memory's neurons, last name"] == pytest.approx(expected, abs=1e-12)
    expected = auroc(facts.lengths.numpy().astype(float), known)
    assert found[detection.CONTROL] == pytest.approx(expected, abs=1e-12)


def test_figures_and_words_say_what_the_tables_do(tables):
    with_seeds = {
        name: pd.concat([table.assign(seed=seed) for seed in (0, 1)], ignore_index=True)
        for name, table in tables.items()
    }
    drawn = detection.figures(with_seeds)
    assert len(drawn) == 4 and all(len(figure.data) for figure in drawn.values())
    found = tables["hallucination_detection"]
    last = found[(found.step == 30) & (found.detector == detection.CONFIDENCE)].auroc.iloc[0]
    assert f"maximum probability with an AUROC of {last:.2f} ± 0.00" in detection.said(with_seeds)
