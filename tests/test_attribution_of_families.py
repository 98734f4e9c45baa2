"""Attributions of models with grouped keys, gated neurons, and norms of heads or after components:
the same laws as of GPT-NeoX.
"""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import AFTER, GROUPED, random_model

from analyses.localization import in_depth
from interp.attribution.attention_scores import CONTRASTS, contrasts_of, score_attribution
from interp.attribution.circuits import everything, run_circuits
from interp.attribution.edges import edge_effects, graph_of
from interp.attribution.value_attribution import value_attribution
from interp.localization.attention_to_names import attention
from interp.localization.component_ablation import needs
from interp.localization.logit_attribution import direct_attribution
from interp.localization.neurons import written
from interp.localization.probes import read_off
from interp.model.weight_groups import weight_group
from interp.patching import patch
from interp.results.metrics import recovered

SHAPES = {"grouped": GROUPED, "after": AFTER}


@pytest.fixture(scope="module", params=SHAPES)
def wide(request, suite):
    model = random_model(suite, n_layers=2, **SHAPES[request.param])
    for block in model.blocks if request.param == "after" else ():
        block.attn.out.bias.data.zero_()  # no such model has one
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def few(suite):
    return suite.facts(6, seed=3)


def test_direct_contributions_and_what_heads_move_add_up(wide, few):
    direct, moved = direct_attribution(wide, few), value_attribution(wide, few)
    parts = direct.embed + direct["head"].sum(["layer", "head"]) + direct.mlp.sum("layer")
    parts = parts + direct.attn_bias.sum("layer") + direct.constant
    np.testing.assert_allclose(parts, direct.logit_diff, atol=1e-10)
    total = moved.moved.sum(("role", "part"))
    np.testing.assert_allclose(total, direct["head"].transpose(*total.dims), atol=1e-10)
    assert abs(total).max() > 0.01


def test_terms_of_scores_add_up_to_the_hooked_scores(wide, few):
    found = score_attribution(wide, few)
    dest, weights = contrasts_of(few)
    with torch.no_grad():
        _, cache = wide.run_with_cache(few.clean)
    for layer in range(2):
        scores = cache[f"blocks.{layer}.attn.hook_attn_scores"]
        for c, fact in ((0, 1), (2, 4), (len(CONTRASTS) - 1, 0)):
            n = int(few.lengths[fact])
            row = scores[fact, :, dest[c, fact], :n].nan_to_num(neginf=0.0)
            expected = row @ weights[c, fact, :n]
            ours = found.score.sel(prompt="clean").isel(layer=layer, contrast=c, fact=fact)
            np.testing.assert_allclose(ours, expected, atol=1e-10)
            terms = found.terms.sel(prompt="clean").isel(layer=layer, contrast=c, fact=fact)
            np.testing.assert_allclose(terms.sum(("query_part", "key_part")), expected, atol=1e-10)


def test_the_embedding_patched_is_the_corrupted_query_in_the_first_layer(wide, few):
    """There it is all that queries read."""
    found = score_attribution(wide, few).isel(layer=0)
    dest, weights = contrasts_of(few)
    with torch.no_grad():
        clean, corrupted = (wide.run_with_cache(x)[1] for x in (few.clean, few.corrupted))
    q, other_q = (run["blocks.0.attn.hook_rot_q"] for run in (clean, corrupted))
    k = clean["blocks.0.attn.hook_rot_k"].repeat_interleave(2, 2)
    for c, fact in ((0, 0), (1, 3)):
        moved = (other_q - q)[fact, dest[c, fact]]
        expected = (
            torch.einsum("hd,shd,s->h", moved, k[fact], weights[c, fact]) * q.shape[-1] ** -0.5
        )
        ours = found.patched.sel(side="query", part="embed").isel(contrast=c, fact=fact)
        np.testing.assert_allclose(ours, expected, atol=1e-10)
        held = found.estimated.sel(side="query", part="embed").isel(contrast=c, fact=fact)
        assert abs(held - ours).max() > 1e-6


def test_everything_is_the_clean_run_and_nothing_the_corrupted(wide, few):
    whole = everything(graph_of(wide.cfg), len(few.roles.unique()) - 1)
    roles = [few.role_names[i] for i in few.roles.unique() if i >= 0]
    found = run_circuits(wide, few, np.stack([whole, whole & False]), roles)
    ends = patch(wide, few, site="z", whole_value=False)
    np.testing.assert_allclose(found[0], ends.clean, atol=1e-5)
    np.testing.assert_allclose(found[1], ends.corrupted, atol=1e-5)


def test_keys_of_a_group_are_one_reader(wide, few):
    graph = graph_of(wide.cfg)
    assert sum(reader.startswith("L1") for reader in graph.readers) == 4 + 2 + 2 + 1
    own, others = graph.readers_of(graph.writers.index("L1H3"))
    names = [graph.readers[i] for i in own + others]
    assert names == ["L1H3.q", "L1H1.k", "L1H1.v"]
    effects = edge_effects(wide, few, method="exact").effect
    assert np.isfinite(effects.sel(writer="embed", reader="L1H1.k").isel(role=1)).any()


def test_estimates_that_such_a_model_does_not_allow_are_refused(wide, few):
    with pytest.raises(ValueError, match="relp has no rule here for neurons that are multiplied"):
        patch(wide, few, site="z", method="relp")
    with pytest.raises(ValueError, match="use rot_q, or another method"):
        patch(wide, few, site="q", method="atp-star")
    if wide.cfg.qk_norm == "all":
        with pytest.raises(ValueError, match="eap can't tell the q of single heads apart"):
            edge_effects(wide, few, method="eap")
    else:
        assert np.isfinite(edge_effects(wide, few, method="eap").effect).any()


def test_neurons_add_up_to_what_their_mlp_writes(wide, few):
    plain = deepcopy(wide)
    for block in plain.blocks:
        block.mlp.down.bias.zero_()  # which is no neuron's
    direct = direct_attribution(plain, few).mlp.sel(layer=1)
    np.testing.assert_allclose(written(plain, few, layer=1).sum("neuron"), direct, atol=1e-10)
    assert abs(direct).max() > 0.01


def test_localization_by_cause_and_attention_run(wide, few, suite):
    found = needs(wide, suite.facts(96, seed=3))
    assert np.isfinite(found.effect).all() and "L1H3" in found.component.values
    assert np.nanmax(attention(wide, few).value_weighted) <= 1 + 1e-6


def test_a_narrow_model_is_widened_before_its_last_norms(wide, few):
    direct = direct_attribution(deepcopy(wide).to(torch.bfloat16), few)
    assert np.isfinite(direct["head"]).all() and direct["head"].dtype == np.float32
    wide_one = direct_attribution(wide, few)["head"]
    assert np.corrcoef(direct["head"].values.ravel(), wide_one.values.ravel())[0, 1] > 0.9


def test_the_extraction_heads_group_feeds_it(wide, suite):
    """Head 3 reads the values of the second group."""
    facts = suite.facts(12, seed=3)
    asked = in_depth.AskedInDepth(
        wide, suite, facts, {"extraction": {"component": "L1H3"}}, seed=0, max_memory=1.0
    )
    ours = in_depth.feeds(asked).recovered
    some = asked.some(in_depth.N_IN_DEPTH)
    theirs = recovered(patch(wide, some, site="mlp_out-L1H1.v", whole_value=False))
    np.testing.assert_array_equal(ours, theirs)
    other = recovered(patch(wide, some, site="mlp_out-L1H0.v", whole_value=False))
    assert np.nanmax(abs(ours.values - other.values)) > 1e-4


def test_facts_asked_in_depth_are_chosen_among_those_with_the_role(wide, suite):
    """Where the first facts have no middle name, later ones are taken."""
    facts = suite.facts(24, seed=3)
    roles, middle = facts.roles.clone(), facts.role_names.index("name_middle")
    lacking = roles[:18]
    lacking[lacking == middle] = facts.role_names.index("cue")
    some = replace(facts, roles=roles)
    asked = in_depth.AskedInDepth(wide, suite, some, {}, seed=0, max_memory=1.0)
    chosen = asked.some(3, "name_middle")
    assert len(chosen) and (chosen.roles == middle).any(1).all()
    assert len(asked.some(3)) > 0 and not (asked.some(3).roles == middle).any(1).all()


def test_heads_that_a_norm_follows_have_no_logit_alone(wide, suite):
    read = read_off(wide, suite.facts(12, attribute="major", seed=3))
    of_heads = read.logit.sel(reader=["L0H0", "L1H2"])
    assert bool(of_heads.isnull().all()) == wide.cfg.norm_after
    assert bool(read.logit.sel(reader="unembed").notnull().any())


def test_norms_of_queries_and_keys_belong_to_the_qk_circuit(wide):
    qk, ov = weight_group(wide, "qk"), weight_group(wide, "ov")
    for kind in "qk":
        name = f"blocks.0.attn.{kind}_norm.weight"
        assert qk[name].all() and not ov[name].any()
    whole = weight_group(wide, "attention")
    for name, mask in whole.items():
        assert torch.equal(mask, qk[name] ^ ov[name]), name
