"""Direct attributions add up, and copying finds a head that copies."""

import numpy as np
import pytest
import torch
from oracle import random_model

from interp.localization.logit_attribution import copying, direct_attribution, final_directions


@pytest.fixture(scope="module")
def wide(suite):
    return random_model(suite)


def test_parts_add_up_to_the_logit_difference(wide, suite):
    facts = suite.facts(8, seed=3)
    parts = direct_attribution(wide, facts)
    whole = parts.embed + parts["head"].sum(["layer", "head"]) + parts.attn_bias.sum("layer")
    whole = whole + parts.mlp.sum("layer") + parts.constant
    np.testing.assert_allclose(whole, parts.logit_diff, atol=1e-10)
    last = [wide(fact.clean[None])[0, -1].detach() for fact in facts]
    theirs = [x[f.answer[0]] - x[f.corrupted_answer[0]] for x, f in zip(last, facts)]
    np.testing.assert_allclose(parts.logit_diff, theirs, atol=1e-10)
    assert float(abs(parts["head"]).max()) > 1e-2


def test_an_mlps_part_is_what_it_adds_under_a_held_scale(wide, suite):
    facts = suite.facts(3, seed=4)
    part = direct_attribution(wide, facts).mlp.isel(layer=1)
    for i, fact in enumerate(facts):
        _, cache = wide.run_with_cache(fact.clean[None])
        last = cache["blocks.2.hook_resid_post"][0, -1]
        written = cache["blocks.1.hook_mlp_out"][0, -1]
        scale = last.var(unbiased=False).add(1e-5).sqrt()
        normalised = (written - written.mean()) / scale * wide.ln_final.weight
        logits = (wide.unembed.weight @ normalised).detach()
        mine = float(logits[fact.answer[0]] - logits[fact.corrupted_answer[0]])
        assert float(part[i]) == pytest.approx(mine, abs=1e-9)


def test_the_linear_map_gives_the_models_logits(wide, suite):
    facts = suite.facts(4, seed=5)
    read = final_directions(wide, facts)
    for i, fact in enumerate(facts):
        logits, cache = wide.run_with_cache(fact.clean[None])
        last = cache["blocks.2.hook_resid_post"][0, -1]
        mine = read.unembed @ last * read.scale[i] + read.constant
        torch.testing.assert_close(mine, logits[0, -1], atol=1e-9, rtol=0)


def test_a_head_that_copies_values_is_found_and_others_are_at_chance(suite):
    model = random_model(suite, n_layers=2, n_heads=1)
    facts = suite.facts(40, attribute="company", seed=1)
    attention = model.blocks[1].attn
    with torch.no_grad():
        attention.qkv.weight[32:] = torch.eye(16, dtype=torch.float64)
        attention.qkv.bias[32:] = 0
        attention.out.weight.copy_(torch.eye(16))
        model.unembed.weight.copy_(model.embed.weight)
        model.ln_final.weight.fill_(1)
        model.blocks[1].ln1.weight.fill_(1)
        model.blocks[1].ln1.bias.fill_(0)
        lengths = model.embed.weight.norm(dim=-1, keepdim=True)
        model.embed.weight.div_(lengths)
        model.unembed.weight.copy_(model.embed.weight)
    result = copying(model, facts).sel(attribute="company")
    assert float(result[1, 0]) == 1
    assert float(result[0, 0]) <= 0.5
    assert float(result.chance) == pytest.approx(1 / len(facts.answers[:, 0].unique()))
