"""Attention statistics against sums written out by hand."""

import numpy as np
import pytest
from oracle import random_model

from interp.localization.attention_to_names import EDGES, attention


@pytest.fixture(scope="module")
def wide(suite):
    return random_model(suite)


def test_shares_and_entropies_are_those_of_the_cached_patterns(wide, suite):
    facts = suite.facts(6, seed=3)
    result = attention(wide, facts)
    i, layer, head = 4, 1, 2
    fact = facts[i]
    _, cache = wide.run_with_cache(fact.clean[None])
    pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head].detach()
    values = cache[f"blocks.{layer}.attn.hook_v"][0, :, head].detach()
    written = values @ wide.blocks[layer].attn.out.weight[:, 4 * head : 4 * head + 4].mT.detach()
    at = {role: [p for p, r in enumerate(fact.roles) if r == role] for role in fact.roles}
    dest = at["name_last"][-1]
    others = at["name_first"] + at["name_middle"]
    mine = result.sel(edge="name_last ← other names").isel(layer=layer, head=head, fact=i)
    assert float(mine.pattern) == pytest.approx(float(pattern[dest, others].sum()), abs=1e-6)
    moved = pattern[dest] * written.norm(dim=-1)
    share = float(moved[others].sum() / moved.sum())
    assert float(mine.value_weighted) == pytest.approx(share, abs=1e-6)
    assert abs(share - float(mine.pattern)) > 1e-3
    row = pattern[dest, : dest + 1]
    entropy = float(-(row * row.log()).sum() / np.log(dest + 1))
    assert float(mine.entropy) == pytest.approx(entropy, abs=1e-6)
    mine = result.sel(edge="final ← cue").isel(layer=layer, head=head, fact=i)
    assert float(mine.pattern) == pytest.approx(float(pattern[-1, at["cue"]].sum()), abs=1e-6)


def test_names_cue_and_rest_add_up(wide, suite):
    facts = suite.facts(6, seed=3, n_context=1)
    result = attention(wide, facts)
    for name in ("pattern", "value_weighted"):
        parts = result[name].sel(edge=["final ← cue", "final ← rest"]).sum("edge")
        names = result[name].sel(edge="final ← names of all sentences")
        np.testing.assert_allclose(parts + names, 1, atol=1e-5)
    own = result.pattern.sel(edge="final ← names")
    every = result.pattern.sel(edge="final ← names of all sentences")
    assert (every > own).all()  # the earlier sentence holds the name, too
    assert float((every - own).max()) > 0.05


def test_even_attention_has_entropy_1_and_the_shares_of_its_numbers(suite):
    model = random_model(suite)
    for block in model.blocks:
        block.attn.qkv.weight.data[:8] = 0  # queries and keys of head 0
        block.attn.qkv.bias.data[:8] = 0
    facts = suite.facts(3, seed=2)
    result = attention(model, facts).isel(head=0)
    for i, fact in enumerate(facts):
        n_names = sum(role.startswith("name") for role in fact.roles)
        share = result.pattern.sel(edge="final ← names").isel(fact=i)
        np.testing.assert_allclose(share, n_names / len(fact.clean), atol=1e-6)
    np.testing.assert_allclose(result.entropy.sel(edge="final ← names"), 1, atol=1e-6)


def test_results_do_not_depend_on_batches(wide, suite, monkeypatch):
    facts = suite.facts(7, seed=3)
    whole = attention(wide, facts)
    monkeypatch.setattr("interp.localization.attention_to_names.FACTS_AT_ONCE", 2)
    parts = attention(wide, facts)
    for name in whole.data_vars:
        np.testing.assert_allclose(whole[name], parts[name], atol=1e-6)
    assert whole.edge.values.tolist() == list(EDGES)
