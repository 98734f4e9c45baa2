"""Pairs of unknown and known people, laws of patching with them, and how alike two maps are."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from builders import one_result
from oracle import metrics, random_model

from analyses.hallucination import causes
from analyses.hallucination.mlp_ablation import falls_without_mlps
from interp.localization import pairs_of_people
from interp.localization.answer_confidence import answer_confidence, without_mlp
from interp.localization.map_similarity import TOP, map_similarity, share_difference
from interp.localization.pairs_of_people import PAIRS, falsehood_pairs, with_other_answers
from interp.localization.prompts_about import known_and_unknown, prompts_about, value_tokens
from interp.patching import patch
from interp.results.metrics import recovered

PARTS = ("first", "middle", "last")
N = 30


@pytest.fixture(scope="module")
def wide(suite):
    return random_model(suite)


def says(suite, monkeypatch, *, of_unknown=0.9, right=lambda facts: np.ones(len(facts), bool)):
    """As if a model knew known people and said of each unknown one, with a probability, another
    value of the attribute than the true one.
    """
    values = value_tokens(suite)
    known = set(suite.population.id[suite.population.split == "train"])

    def answers(model, facts, tokens):
        own = facts.answers[:, 0].numpy()
        is_known = facts.texts.person.isin(known).to_numpy()
        other = [int(values[a][values[a] != x][0]) for a, x in zip(facts.texts.attribute, own)]
        correct = is_known & right(facts)
        said = np.where(is_known, own, other)
        p = np.where(is_known, 1.0, of_unknown)
        columns = {"max_probability": p, "said": said, "correct": correct, "said_value": True}
        return pd.DataFrame(columns)

    monkeypatch.setattr(pairs_of_people, "answer_confidence", answers)


@pytest.fixture
def pairs(wide, suite, monkeypatch):
    says(suite, monkeypatch)
    return falsehood_pairs(wide, suite, n=N)


def test_a_falsehood_is_held_against_recall_in_the_same_sentence(pairs, suite):
    assert tuple(pairs) == PAIRS
    people = suite.population.set_index("id")
    false, recall, again = (pairs[name] for name in PAIRS)
    assert len(false) == len(recall) == len(again) == N
    assert false.texts.attribute.value_counts().eq(N // 6).all()
    for facts in (recall, again):
        assert torch.equal(false.corrupted, facts.corrupted)
        assert torch.equal(false.roles, facts.roles)
        assert torch.equal(false.corrupted_answers, facts.corrupted_answers)
    for name, facts in pairs.items():
        of = people.loc[facts.texts.person]
        assert set(of.split) == {"held-out" if name == "falsehood" else "train"}
        twins = people.loc[facts.texts.corrupted_person]
        assert set(twins.split) == {"train"}
        for part in PARTS:
            assert (of[part].to_numpy() != twins[part].to_numpy()).all()
        assert facts.answers.shape == facts.corrupted_answers.shape == (N, 1)
        assert (facts.answers != facts.corrupted_answers).all()
        names = of[list(PARTS)].agg(" ".join, axis=1)
        assert all(x in prompt for x, prompt in zip(names, facts.texts.clean_prompt))
    for a, x, person, twin in zip(
        false.texts.attribute, false.answers[:, 0], false.texts.person, false.texts.corrupted_person
    ):
        word = suite.tokenizer.id_to_token(int(x))
        assert not people[a][person].startswith(word) and not people[a][twin].startswith(word)
    for fact in recall:
        word = suite.tokenizer.id_to_token(int(fact.answer[0]))
        assert people[fact.text["attribute"]][fact.text["person"]].startswith(word)
    assert (recall.texts.person != again.texts.person).all()


def test_only_confident_falsehoods_and_known_answers_make_pairs(wide, suite, monkeypatch):
    says(suite, monkeypatch, of_unknown=0.49)
    assert falsehood_pairs(wide, suite, n=N) == {}
    assert len(falsehood_pairs(wide, suite, n=N, least=0.4)["falsehood"]) == N
    says(suite, monkeypatch, right=lambda facts: np.zeros(len(facts), bool))
    assert falsehood_pairs(wide, suite, n=N) == {}
    says(suite, monkeypatch, right=lambda facts: facts.texts.person.to_numpy() % 2 == 0)
    found = falsehood_pairs(wide, suite, n=N)
    assert (found["recall"].texts.person % 2 == 0).all()
    assert (found["falsehood"].texts.corrupted_person % 2 == 0).all()


def test_the_unknown_name_whole_gives_the_unknown_run_and_back(wide, pairs):
    facts = pairs["falsehood"][:6]
    how = {"whole_value": False, "layers": (0,), "groups": (causes.NAME,)}
    there = patch(wide, facts, site="resid_pre", direction="denoising", **how)
    back = patch(wide, facts, site="resid_pre", direction="noising", **how)
    np.testing.assert_allclose(there.patched.squeeze(), there.clean, atol=1e-5)
    np.testing.assert_allclose(back.patched.squeeze(), back.corrupted, atol=1e-5)
    assert float(np.abs(there.clean - there.corrupted).min()) > 1e-3
    fact = facts[2]
    clean, corrupted = (
        metrics(wide(prompt[None]), fact)[0] for prompt in (fact.clean, fact.corrupted)
    )
    assert float(there.clean[2]) == pytest.approx(clean, abs=1e-5)
    assert float(there.corrupted[2]) == pytest.approx(corrupted, abs=1e-5)


def test_the_control_scores_the_values_of_another_fact(pairs):
    recall = pairs["recall"]
    control = with_other_answers(recall)
    assert torch.equal(control.clean, recall.clean)
    own, other = (
        torch.cat((facts.answers, facts.corrupted_answers), 1) for facts in (recall, control)
    )
    assert not (own[:, :, None] == other[:, None]).any()
    all_pairs = set(map(tuple, own.tolist()))
    assert all(tuple(pair) in all_pairs for pair in other.tolist())
    of = dict(zip(map(tuple, own.tolist()), recall.texts.attribute))
    same = [of[tuple(pair)] == a for pair, a in zip(other.tolist(), recall.texts.attribute)]
    assert np.mean(same) > 0.7
    with pytest.raises(ValueError, match="all other facts share a value with fact 0"):
        with_other_answers(recall[[0, 0]])


# How alike two maps are


def test_similarity_is_that_of_a_loop_over_resamples():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(15, 8)) + np.arange(15)[:, None]
    other = one + 4 * rng.normal(size=(15, 8))
    mine = map_similarity(one, other, n_resamples=50, seed=5)
    counts = np.random.default_rng(5).multinomial(8, np.full(8, 1 / 8), size=50)
    pearson, overlap = [], []
    for times in [np.ones(8, int), *counts]:
        means = [x[:, np.arange(8).repeat(times)].mean(1) for x in (one, other)]
        pearson.append(np.corrcoef(means)[0, 1])
        tops = [set(np.abs(x).argsort()[-TOP:]) for x in means]
        overlap.append(len(tops[0] & tops[1]) / TOP)
    for name, values in (("pearson", pearson), ("overlap", overlap)):
        assert mine[name] == pytest.approx(values[0], abs=1e-12)
        ends = np.quantile(values[1:], [0.025, 0.975])
        assert [mine[f"{name}_low"], mine[f"{name}_high"]] == pytest.approx(ends, abs=1e-12)
    assert mine["chance"] == TOP / 15 and mine["n_cells"] == 15 and mine["n_facts"] == 8


def test_the_same_map_is_alike_and_noise_is_not():
    rng = np.random.default_rng(1)
    one = rng.normal(size=(200, 1)) + 0.1 * rng.normal(size=(200, 30))
    same = map_similarity(one, 3 * one)
    assert same["size_ratio"] == pytest.approx(3)
    assert same["pearson"] == pytest.approx(1) and same["overlap"] == 1
    negative = map_similarity(one, -one)
    assert negative["pearson"] == pytest.approx(-1) and negative["overlap"] == 1
    noise = map_similarity(one, rng.normal(size=(200, 30)))
    assert abs(noise["pearson"]) < 0.25  # 200 cells: a standard error of 0.07
    assert noise["overlap"] < 0.4
    with pytest.raises(ValueError, match="more than 10 cells"):
        map_similarity(one[:10], one[:10])


def test_shares_of_both_directions_are_those_by_hand():
    ends = {"clean": [4.0, 6.0], "corrupted": [0.0, -2.0]}
    patched = np.array([[[1.0, 2.0]]])
    rows = {}
    for direction in ("denoising", "noising"):
        result = one_result(patched, **ends, direction=direction).isel(layer=0, role=0)
        other = result.assign(patched=result.patched + 3)
        rows[direction] = share_difference(result, other)
    assert rows["denoising"]["falsehood"] == pytest.approx(((1 - 0) + (2 + 2)) / (4 + 8))
    assert rows["noising"]["falsehood"] == pytest.approx(((4 - 1) + (6 - 2)) / (4 + 8))
    assert rows["denoising"]["difference"] == pytest.approx(-6 / 12)
    assert rows["noising"]["difference"] == pytest.approx(6 / 12)
    # resamples are of the same facts: twice the one, both, or twice the other
    assert rows["denoising"]["difference_low"] == pytest.approx(-6 / 8)
    assert rows["denoising"]["difference_high"] == pytest.approx(-6 / 16)
    same = share_difference(result, result)
    assert same["difference"] == same["difference_low"] == same["difference_high"] == 0


# The analysis


def test_the_fall_without_an_mlp_is_the_mean_over_people(wide, suite):
    silent = random_model(suite)
    for name in ("weight", "bias"):
        getattr(silent.blocks[1].mlp.down, name).data.zero_()
    table = falls_without_mlps(silent, suite).set_index(["layer", "role"])
    nothing = table.loc[1, ["known", "unknown", "difference"]]
    np.testing.assert_allclose(nothing, 0, atol=1e-15)
    asked = known_and_unknown(suite)
    facts = prompts_about(suite, asked)
    before = answer_confidence(silent, facts, value_tokens(suite)).max_probability.to_numpy()
    fall = before - without_mlp(silent, facts, layer=0, role="name_middle")
    row, known = table.loc[0, "name_middle"], asked.known.to_numpy()
    assert row.known == pytest.approx(fall[known].mean(), abs=1e-12)
    assert row.unknown == pytest.approx(fall[~known].mean(), abs=1e-12)
    assert row.difference == pytest.approx(row.unknown - row.known, abs=1e-12)
    assert row.unknown_before == pytest.approx(before[~known].mean(), abs=1e-12)
    assert row.n_known == row.n_unknown == 20
    assert row.unknown_low < row.unknown < row.unknown_high


@pytest.fixture
def tables(run, wide, suite, pairs, monkeypatch):
    """Of a random model, whose pairs are as if it knew known people."""
    monkeypatch.setattr(type(suite), "load", lambda self, step, device: wide)
    some = {name: facts[: causes.FEWEST] for name, facts in pairs.items()}
    monkeypatch.setattr(causes, "falsehood_pairs", lambda model, suite, n: some)
    # answers of the prompts' own, so that the two runs can be told apart
    for name, facts in some.items():
        clean, corrupted = (
            torch.stack([wide(x[: len(f.clean)][None])[0, -1].argmax() for f, x in zip(facts, y)])
            for y in (facts.clean, facts.corrupted)
        )
        differ = (clean != corrupted)[:, None]
        some[name] = replace(
            facts,
            answers=torch.where(differ, clean[:, None], facts.answers),
            corrupted_answers=torch.where(differ, corrupted[:, None], facts.corrupted_answers),
        )
    return some, causes.causes_of_run(run, "cpu")


def test_maps_are_shares_recovered_and_the_controls_are_beside_them(tables, wide):
    some, found = tables
    maps = found["hallucination_cause_maps"]
    expected = recovered(patch(wide, some["recall"], site="z", whole_value=False))
    at = (maps.pairs == "recall") & (maps.direction == "denoising") & (maps.site == "z")
    for row in maps[at].itertuples():
        cell = expected.sel(layer=row.layer, head=row.head, role=row.role)
        assert row.share == pytest.approx(float(cell), abs=1e-5)
    assert set(maps.site) == set(causes.SITES) and set(maps.pairs) == set(PAIRS)
    alike = found["hallucination_cause_similarity"].set_index(["direction", "cells", "comparison"])
    untrained = alike.xs(f"falsehood and {causes.UNTRAINED}", level="comparison")
    np.testing.assert_allclose(untrained.pearson, 1, atol=1e-6)  # here it is the same model
    groups = found["hallucination_cause_groups"]
    whole = groups[(groups.site == "attn_out") & (groups.layers == "all")]
    whole = whole[whole.place == "answer position"]
    # the token there is the same in both prompts, so all that differs comes through attention
    np.testing.assert_allclose(whole[["falsehood", "recall"]], 1, atol=1e-4)
    with_seeds = {
        name: pd.concat([table.assign(seed=seed) for seed in (0, 1)], ignore_index=True)
        for name, table in found.items()
    }
    assert len(causes.figures(with_seeds)) == 3
    late = groups[(groups.layers == "late") & (groups.direction == "denoising")]
    late = late[(late.site == "mlp_out") & (late.place == "answer position")]
    expected = f"{late.falsehood.iloc[0]:.2f} ± 0.00 of a confident falsehood and"
    words = causes.said(with_seeds)
    assert (expected in words) == (late[["falsehood", "recall"]].max().max() >= causes.LEAST_SAID)
    assert "(falsehood and recall)" in words


def test_a_run_without_confident_falsehoods_says_so(run):
    found = causes.causes_of_run(run, "cpu")
    assert found["hallucination_cause_maps"].empty
    with_seeds = {name: table.assign(seed=0) for name, table in found.items()}
    assert causes.figures(with_seeds) == {}
    said = causes.said(with_seeds).splitlines()
    assert said[0] == "no run has 12 confident falsehoods to patch from"
    assert len(said) == 1 + causes.N_SAID
    falls = found["hallucination_cause_ablation"].set_index(["layer", "role"]).known
    layer, role = falls.idxmax()
    expected = (
        f"mean-ablated L{layer} MLP at {role}: the maximum probability falls by {falls.max():.3f}"
    )
    assert said[1].startswith(expected)
