"""Facts from token ids of one's own: what they lack is refused when it is asked for."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from oracle import HOOKS, inputs, metrics, random_model

from interp.data.facts import PROMPT_ROLES, FactSet, from_tokens
from interp.data.token_ids import prompts_of
from interp.patching import patch, patch_sites
from interp.patching.cost import plan
from interp.report.patching_page import build_report
from interp.report.summary import _places
from interp.results.metrics import effect, interval, recovered
from interp.results.sweep import patch_suite

CLEAN = torch.tensor([[1, 5, 6, 7, 8], [1, 6, 9, 7, 4], [1, 2, 3, 4, 5]])
CORRUPTED = torch.tensor([[1, 9, 6, 7, 8], [1, 5, 9, 7, 4], [1, 7, 3, 4, 5]])
NAMES = ["start", "a", "b", "c", "d"]


@pytest.fixture(scope="module")
def small(suite):
    return random_model(suite)


@pytest.fixture(scope="module")
def own():
    return from_tokens(CLEAN, CORRUPTED, answers=[4, 5, 6], corrupted_answers=[5, 6, 7])


def ablated_by_hand(model, facts, site, layer, at, new):
    """logit_diff, first_logprob and value_logprob of every fact, each with ``new`` pasted."""
    rows = []
    for i, fact in enumerate(facts):

        def hook(x, hook, i=i):
            x = x.clone()
            x[(0, *at)] = new(i)
            return x

        _, tokens = inputs(fact)
        logits = model.run_with_hooks(tokens, fwd_hooks=[(HOOKS[site].format(layer), hook)])
        rows.append(metrics(logits, fact))
    return np.array(rows).T


def test_tables_lists_and_lengths_say_the_same(own):
    ragged = from_tokens(
        [row.tolist() for row in CLEAN],
        [row.tolist() for row in CORRUPTED],
        answers=[torch.tensor(4), torch.tensor([5]), 6],
        corrupted_answers=np.array([5, 6, 7]),
    )
    wide = torch.nn.functional.pad(CLEAN, (0, 2), value=77)
    padded = from_tokens(wide, answers=[4, 5, 6], lengths=[5, 5, 5])
    assert torch.equal(ragged.clean, own.clean) and torch.equal(padded.clean, own.clean)
    assert own[0].clean.tolist() == [1, 5, 6, 7, 8] and own[0].roles == ()
    assert own.texts.clean_prompt[0] == "1 5 6 7 8" and own[1].answer.tolist() == [5]


def test_prompts_of_several_lengths_keep_their_own_tokens():
    facts = from_tokens(
        [[1, 2], [1, 2, 3]], answers=[[4, 5], [6]], roles=[["x", "y"], ["x", "y", "z"]]
    )
    assert facts.lengths.tolist() == [2, 3] and facts.role_names == ("x", "y", "z")
    assert facts[0].clean.tolist() == [1, 2] and facts[0].answer.tolist() == [4, 5]
    assert facts[1].roles == ("x", "y", "z") and facts[1].corrupted is None


def test_means_by_position_are_over_the_position(small, own):
    with torch.no_grad():
        _, cache = small.run_with_cache(CLEAN)
    result = patch(small, own, site="mlp_out", by="pos", direction="noising", replacement="mean")
    for layer, pos in ((0, 1), (1, 3), (2, 4)):
        mean = cache[HOOKS["mlp_out"].format(layer)][:, pos].mean(0)
        by_hand = ablated_by_hand(small, own, "mlp_out", layer, (pos,), lambda _, m=mean: m)
        np.testing.assert_allclose(result.patched[layer, pos], by_hand[0], atol=1e-6)
        np.testing.assert_allclose(result.patched_value_logprob[layer, pos], by_hand[2], atol=1e-6)
    assert float(abs(effect(result)).max()) > 0.1


def test_means_by_position_are_not_those_over_a_role(small, own):
    options = {"site": "mlp_out", "direction": "noising", "replacement": "mean"}
    named = from_tokens(CLEAN, CORRUPTED, answers=[4, 5, 6], roles=["all tokens"] * 5)
    of_role = patch(small, named, groups=("all tokens",), **options)
    of_pos = patch(small, named, by="pos", groups=("all",), **options)
    assert float(abs(of_role.patched_first_logprob - of_pos.patched_first_logprob).max()) > 1e-2


def test_resampling_by_position_takes_the_same_position_of_another_fact(small, own):
    with torch.no_grad():
        _, cache = small.run_with_cache(CLEAN)
    options = {"direction": "noising", "replacement": "resample", "seed": 3}
    result = patch(small, own, site="z", by="pos", **options)
    z = cache[HOOKS["z"].format(1)]
    found = result.patched.values[1, 2, 3]
    for i in range(3):
        tried = [
            ablated_by_hand(small, own[[i]], "z", 1, (3, 2), lambda _, j=j: z[j, 3, 2])[0, 0]
            for j in range(3)
            if j != i
        ]
        assert min(abs(np.array(tried) - found[i])) < 1e-6


@pytest.mark.parametrize("replacement", ["mean", "zero", "resample"])
def test_ablations_need_neither_twins_nor_roles(small, own, replacement):
    alone = from_tokens(CLEAN, answers=[4, 5, 6])
    options = {"by": "pos", "direction": "noising", "replacement": replacement}
    one, two = patch(small, alone, site="z", **options), patch(small, own, site="z", **options)
    for name in ("patched_first_logprob", "patched_value_logprob", "clean_first_logprob"):
        np.testing.assert_array_equal(one[name], two[name])
    assert one.corrupted_first_logprob.isnull().all() and one.patched.isnull().all()
    assert effect(one, "first_logprob").notnull().all()
    for shares in (recovered, interval):
        with pytest.raises(
            ValueError, match="no corrupted prompts, so there is no clean − corrupted gap"
        ):
            shares(one, "first_logprob")
    with pytest.raises(ValueError, match="no corrupted answers, so no logit_diff; use metric='fir"):
        effect(one)


def test_more_roles_than_a_biography_has_lose_no_cell(small):
    clean = torch.arange(1, 25).reshape(2, 12)
    roles = [f"part {i}" for i in range(12)]
    facts = from_tokens(clean, clean.flip(0), answers=[3, 4], corrupted_answers=[4, 3], roles=roles)
    by_role = patch_sites(small, facts, sites=["resid_pre", "z"])
    by_pos = patch_sites(small, facts, sites=["resid_pre", "z"], by="pos")
    for site, result in by_role.items():
        assert result.role.values.tolist() == roles and result.patched.notnull().all()
        np.testing.assert_array_equal(result.patched, by_pos[site].patched)
    options = {"direction": "noising", "replacement": "mean"}
    means = patch(small, facts, site="mlp_out", **options)
    at_pos = patch(small, facts, site="mlp_out", by="pos", **options)
    np.testing.assert_allclose(means.patched, at_pos.patched, atol=1e-6)


def test_noise_goes_on_roles_that_are_called_name(small):
    roles = ["start", "name of the person", "b", "c", "d"]
    facts = from_tokens(CLEAN, answers=[4, 5, 6], corrupted_answers=[5, 6, 7], roles=roles)
    result = patch(small, facts, site="resid_pre", replacement="noise", noise_draws=2)
    moved = abs(effect(result)).max(["layer", "fact"])
    assert (
        float(moved.sel(role="start")) == 0 and float(moved.sel(role="name of the person")) > 1e-3
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no corrupted prompts to patch from; give some, or ablate"),
        ({"direction": "noising", "replacement": "mean"}, "have no roles; patch by='pos'"),
        ({"by": "pos", "replacement": "noise"}, "noise goes on tokens whose role begins with name"),
        (
            {"by": "pos", "direction": "noising", "replacement": "zero", "control": True},
            "a control needs corrupted answers",
        ),
    ],
)
def test_what_own_facts_lack_is_refused_when_it_is_asked_for(small, options, message):
    facts = from_tokens(CLEAN, answers=[4, 5, 6])
    with pytest.raises(ValueError, match=message):
        patch(small, facts, site="z", **options)
    with pytest.raises(ValueError, match=message):
        plan(small.cfg, facts, sites=["z"], **options)


def test_roles_of_minus_1_are_no_roles(small, own):
    with pytest.raises(ValueError, match="these facts have no roles; patch by='pos'"):
        patch(small, own, site="z", direction="noising", replacement="mean")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"answers": [4, 5]}, "answers has 2 entries for 3 prompts"),
        ({"answers": [4, 5, []]}, "fact 2 has no token, a gap or a negative id in its answers"),
        ({"answers": [4, 5, 0.5]}, r"answers 2 is \[0.5\]; give a list of token ids"),
        ({"answers": [4, [5, -1, 6], 6]}, "fact 1 has no token, a gap or a negative id"),
        ({"answers": [4, 5, -3]}, "fact 2 has no token, a gap or a negative id in its answers"),
        ({"corrupted_answers": [4, 9, 9]}, "fact 0 has two answers that begin with the same token"),
        ({"clean": []}, r"clean is \[\]; give token ids, a row a fact"),
        ({"clean": CLEAN[0]}, "clean prompt 0 is 1; give a list of token ids"),
        ({"answers": [[[4, 5]], 5, 6]}, r"answers 0 is \[\[4, 5\]\]; give a list of token ids"),
        ({"clean": [[1, 2], [], [3]]}, "fact 1 has a prompt length that is not from 1 to 2"),
        (
            {"clean": [[1, -2], [1, 2], [3, 4]]},
            "fact 0 has a negative token id in its clean prompt",
        ),
        (
            {"corrupted": CORRUPTED[:, :4]},
            "fact 0 has a clean prompt of 5 tokens and a corrupted one",
        ),
        ({"lengths": [5, 6, 5]}, "fact 1 has length 6, its clean prompt 5 tokens"),
        ({"lengths": [5, 0, 5]}, "fact 1 has length 0"),
        ({"corrupted": CORRUPTED[:2]}, "3 clean prompts and 2 corrupted; give one each"),
        ({"corrupted": CLEAN}, "fact 0 has a corrupted prompt like its clean one"),
        ({"answers": [4, 5, 2**70]}, r"answers 2 is \[1180591620717411303424\]; give a list"),
        ({"lengths": [5]}, "lengths has 1 entries, clean has 3"),
        ({"roles": ["x"]}, r"roles name \[1, 1, 1\] positions of prompts of \[5, 5, 5\] tokens"),
        (
            {"roles": ["all", "b", "c", "d", "e"]},
            "role_names are .*; name each role once, not 'all'",
        ),
        ({"roles": ["a+b", "b", "c", "d", "e"]}, "without '\\+'"),
    ],
    ids=str,
)
def test_token_ids_that_do_not_fit_are_refused_by_fact(arguments, message):
    given = {"clean": CLEAN, "answers": [4, 5, 6]} | arguments
    with pytest.raises(ValueError, match=message):
        from_tokens(given.pop("clean"), given.pop("corrupted", None), **given)


def test_a_table_of_another_library_is_quoted_in_one_line():
    with pytest.raises(ValueError, match=r"^clean is 0 1 2 3 4 0 1 5 .*; give token ids, a row a"):
        prompts_of(pd.DataFrame(CLEAN), None, "clean")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lengths": torch.tensor([5, 9, 5])},
            "fact 1 has a prompt length that is not from 1 to 5",
        ),
        ({"lengths": torch.tensor([0, 5, 5])}, "fact 0 has a prompt length"),
        ({"answers": torch.tensor([[4, 1], [-1, 5], [6, 1]])}, "fact 1 has no token, a gap"),
        ({"roles": torch.full((3, 5), 7)}, "fact 0 has a position without one of the 7 role_names"),
        (
            {"roles": torch.tensor([[0] * 5, [0] * 5, [0, -1, 0, 0, 0]])},
            "fact 2 has a position with",
        ),
        ({"texts": pd.DataFrame({"person": [1, 2, 3]})}, "texts has no column corrupted_person"),
    ],
    ids=str,
)
def test_a_fact_set_that_cannot_be_is_refused_by_fact(own, changes, message):
    with pytest.raises(ValueError, match=message):
        FactSet(**vars(own) | {"role_names": tuple("abcdefg")} | changes)


def test_token_ids_outside_the_vocabulary_name_the_fact(small, own):
    n = small.cfg.d_vocab
    many = from_tokens(CLEAN, CORRUPTED, answers=[4, n, 6], corrupted_answers=[5, 6, 7])
    with pytest.raises(
        ValueError, match=f"fact 1 has token id {n} among its answers, the model has"
    ):
        patch(small, many, site="z", by="pos")
    with pytest.raises(ValueError, match=f"fact 1 has token id {n} among its answers"):
        plan(small.cfg, many, sites=["z"], by="pos")


def test_prompts_longer_than_the_model_takes_name_the_fact(small):
    long = from_tokens([[1] * 3, [1] * (small.cfg.n_ctx + 1)], answers=[4, 5])
    options = {"by": "pos", "direction": "noising", "replacement": "zero"}
    with pytest.raises(
        ValueError, match="fact 0 has 513 tokens with its value, the model takes at"
    ):
        patch(small, long[[1]], site="z", **options)


def test_no_facts_and_facts_by_mask(own, small):
    assert len(own[[]]) == 0 and len(own[[True, False, True]]) == 2
    assert own[np.array([2, 0])].clean[0].tolist() == CLEAN[2].tolist()
    with pytest.raises(
        ValueError, match=r"facts can be chosen by whole numbers or a mask, got 0.5"
    ):
        own[0.5]
    with pytest.raises(ValueError, match="there are no facts to patch"):
        patch(small, own[[]], site="z", by="pos")


def test_a_mask_of_another_length_is_refused(own):
    with pytest.raises(ValueError, match="a mask of 2 entries can't choose among 3 facts"):
        own[[True, False]]


def test_a_change_that_makes_nan_is_refused_and_not_taken_for_a_missing_cell(suite, own):
    model = random_model(suite, ln_eps=0.0)
    options = {"by": "pos", "direction": "noising", "replacement": "zero"}
    with pytest.raises(
        ValueError, match=r"patching resid_post at layer \d makes logits that are not"
    ):
        patch(model, own, site="resid_post", **options)


def test_the_roles_of_biographies_are_those_of_the_runs_own_facts(own):
    names = ["bos", "name_first", "name_last", "cue", "final"]
    named = from_tokens(CLEAN, CORRUPTED, answers=[4, 5, 6], roles=names)
    assert named.role_names == PROMPT_ROLES and named[0].roles == tuple(names)


def test_a_share_of_facts_without_twins_is_refused_and_the_effect_advised_is_there(small):
    alone = from_tokens(CLEAN, answers=[4, 5, 6])
    result = patch(small, alone, site="z", by="pos", direction="noising", replacement="zero")
    for metric in ("logit_diff", "first_logprob"):
        with pytest.raises(ValueError, match=r"no corrupted prompts, .*metric='first_logprob'\)"):
            recovered(result, metric)
    assert effect(result, metric="first_logprob").notnull().all()


def test_a_report_of_facts_without_twins_says_what_it_needs(suite):
    alone = from_tokens(CLEAN, answers=[4, 5, 6])
    options = {"by": "pos", "direction": "noising", "replacement": "mean"}
    tree = patch_suite(suite, alone, sites=["z"], steps=[0, 30], **options)
    with pytest.raises(ValueError, match="a report needs facts with corrupted prompts and answers"):
        build_report(tree, title="Alone")


def test_the_summary_names_the_strongest_cell_of_any_role(suite):
    named = from_tokens(
        CLEAN, CORRUPTED, answers=[4, 5, 6], corrupted_answers=[5, 6, 7], roles=NAMES
    )
    tree = patch_suite(suite, named, sites=["resid_pre", "z"], steps=[0, 30])
    assert set(_places(tree["z"].to_dataset())) == {"at any role"}


def test_a_knockout_needs_no_corrupted_prompts(suite):
    model, facts = random_model(suite), suite.facts(6, seed=3)
    alone = replace(facts, corrupted=None)
    for site in ("knockout", "head_knockout"):
        found, wanted = (patch(model, x, site=site, direction="noising") for x in (alone, facts))
        np.testing.assert_array_equal(found.patched, wanted.patched)
        assert found.corrupted.isnull().all()
    with pytest.raises(ValueError, match="these facts have no corrupted prompts to patch from"):
        patch_sites(model, alone, sites=["knockout", "z"], direction="noising")


def test_options_of_noise_without_noise_are_refused(small, own):
    with pytest.raises(ValueError, match=r"noise_std is 9.0, which does nothing without noise"):
        patch(small, own, site="z", noise_std=9.0)
