"""Attention scores by the parts that wrote query and key, against hooks in float64."""

import numpy as np
import pytest
import torch
from oracle import random_model
from test_gpt2 import saved

from interp.attribution.attention_scores import (
    CONTRASTS,
    PROMPTS,
    contrasts_of,
    score_attribution,
)
from interp.attribution.parts import BIAS, part_names
from interp.data.facts import PROMPT_ROLES
from interp.model.checkpoint_io import read_checkpoint


@pytest.fixture(scope="module", params=["rotary", "partly rotary", "parallel", "learned positions"])
def given(suite, request, tmp_path_factory):
    if request.param == "learned positions":
        sizes = dict(vocab_size=suite.tokenizer.get_vocab_size(), n_layer=3, n_head=4)
        folder = saved(tmp_path_factory.mktemp("gpt2"), n_positions=40, **sizes)
        return read_checkpoint(folder).double()
    shape = {"partly rotary": {"rotary_dim": 2}, "parallel": {"parallel": True}}
    return random_model(suite, **shape.get(request.param, {})).requires_grad_(False)


@pytest.fixture(scope="module")
def found(given, facts):
    return score_attribution(given, facts)


def places(fact, role):
    return [i for i, name in enumerate(fact.roles) if name in role]


def contrast(scores, fact, name):
    """Of a prompt's scores (head, dest, src), by its definition."""
    role, *of_sources = CONTRASTS[name]
    dest = max(places(fact, (role,)))
    first, second = ([j for j in places(fact, x) if j <= dest] for x in of_sources)
    row = scores[:, dest]
    return (row[:, first].mean(1) - row[:, second].mean(1)).numpy()


@torch.no_grad()
@pytest.mark.parametrize("prompt", PROMPTS)
def test_terms_add_up_to_the_contrasts_of_the_scores_that_hooks_see(given, facts, found, prompt):
    for i, fact in enumerate(facts):
        _, cache = given.run_with_cache(getattr(fact, prompt)[None])
        for layer in range(3):
            scores = cache[f"blocks.{layer}.attn.hook_attn_scores"][0]
            for name in CONTRASTS:
                theirs = contrast(scores, fact, name)
                ours = found.isel(fact=i).sel(prompt=prompt, contrast=name, layer=layer)
                np.testing.assert_allclose(ours.score, theirs, atol=1e-10)
                total = ours.terms.sum(("query_part", "key_part"))
                np.testing.assert_allclose(total, theirs, atol=1e-10)
    assert float(np.abs(found.terms).max()) > 1  # the weights are large


def test_a_part_written_later_has_no_term_and_the_first_layer_reads_the_embedding(found):
    names = part_names(3, 4)
    assert names == ["embed", BIAS, *(f"L0H{i}" for i in range(4)), "L0-MLP",
                     *(f"L1H{i}" for i in range(4)), "L1-MLP"]  # fmt: skip
    there = found.terms.isel(prompt=0, head=0, contrast=2, fact=0).notnull().any("query_part")
    assert there.sum("key_part").values.tolist() == [2, 7, 12]


def written_by(model, cache, part):
    if part == "embed":
        return cache["blocks.0.hook_resid_pre"]
    layer = int(part[1])
    if part.endswith("MLP"):
        return cache[f"blocks.{layer}.hook_mlp_out"]
    width, head = model.cfg.d_head, int(part[3])
    weight = model.blocks[layer].attn.out.weight[:, head * width : (head + 1) * width]
    return cache[f"blocks.{layer}.attn.hook_z"][:, :, head] @ weight.T


@torch.no_grad()
@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("part", ["embed", "L0H1", "L0-MLP", "L1H3"])
def test_a_part_is_patched_as_a_hook_before_the_layer_would(given, facts, found, side, part):
    """The residual stream entering layer 2 is changed, and its queries or its keys kept."""
    for i, fact in enumerate(facts):
        if i % 3:
            continue
        (_, clean), (_, other) = (
            given.run_with_cache(x[None]) for x in (fact.clean, fact.corrupted)
        )
        change = written_by(given, other, part) - written_by(given, clean, part)
        at = "blocks.2."
        kept = "k" if side == "query" else "q"
        scores = []
        hooks = [
            (at + "hook_resid_pre", lambda x, hook, change=change: x + change),
            (at + f"attn.hook_{kept}", lambda x, hook, clean=clean: clean[hook.name]),
            (at + "attn.hook_attn_scores", lambda x, hook, kept=scores: kept.append(x[0])),
        ]
        given.run_with_hooks(fact.clean[None], fwd_hooks=hooks)
        for name in CONTRASTS:
            before = contrast(clean[at + "attn.hook_attn_scores"][0], fact, name)
            theirs = contrast(scores[0], fact, name) - before
            ours = found.patched.isel(fact=i).sel(contrast=name, layer=2, part=part, side=side)
            np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_with_the_norm_held_the_changes_of_all_parts_add_up_where_the_norm_changes_little(
    given, facts
):
    """In the first layer, whose input is the embedding alone: estimate and patch differ by the
    norm's scale only, and what is equal in both runs changes nothing.
    """
    found = score_attribution(given, facts)
    first = found.isel(layer=0)
    np.testing.assert_allclose(first.patched.sel(part=BIAS), 0, atol=1e-9)
    np.testing.assert_allclose(first.estimated.sel(part=BIAS), 0, atol=1e-9)
    final = first.sel(contrast="final: names − cue", part="embed", side="query")
    np.testing.assert_allclose(final.patched, 0, atol=1e-9)  # the last token is the same
    named = first.sel(contrast="final: names − cue", part="embed", side="key")
    assert float(np.abs(named.patched).min()) > 1e-6


def test_a_contrast_by_hand(facts):
    dest, weights = contrasts_of(facts)
    for i, fact in enumerate(facts):
        names = places(fact, ("name_first", "name_middle", "name_last"))
        cue = places(fact, ("cue",))
        row = np.zeros(weights.shape[2])
        row[names], row[cue] = 1 / len(names), -1 / len(cue)
        assert dest[2, i] == len(fact.clean) - 1
        np.testing.assert_allclose(weights[2, i], row, atol=1e-6)
    assert set(PROMPT_ROLES) >= {role for role, *_ in CONTRASTS.values()}


def test_a_prompt_without_a_destination_has_no_contrast(suite, given):
    facts = suite.facts(6, seed=1)
    facts.roles[facts.roles == PROMPT_ROLES.index("name_middle")] = PROMPT_ROLES.index("cue")
    found = score_attribution(given, facts)
    assert found.score.sel(contrast="name_middle: name_first − context").isnull().all()
    assert found.score.sel(contrast="final: names − cue").notnull().all()


def test_facts_without_names_or_twins_are_refused(given, suite):
    from interp.data.facts import from_tokens

    facts = from_tokens([[1, 5, 6]], answers=[7])
    with pytest.raises(ValueError, match="this question is about tokens of names"):
        score_attribution(given, facts)
