"""What heads move to the answer position, against hooks in float64."""

import numpy as np
import pytest
import torch
from test_attention_scores import given, written_by  # noqa: F401  the models, and what parts write

from interp.attribution import value_attribution
from interp.attribution.parts import BIAS, part_names
from interp.data.facts import PROMPT_ROLES
from interp.localization.logit_attribution import answer_directions, direct_attribution


@pytest.fixture(scope="module")
def moved(given, facts):  # noqa: F811
    return value_attribution(given, facts)


def test_parts_and_roles_add_up_to_what_each_head_writes_towards_the_answer(given, facts, moved):  # noqa: F811
    direct = direct_attribution(given, facts)
    total = moved.moved.sum(("role", "part"))
    np.testing.assert_allclose(total, direct["head"].transpose(*total.dims), atol=1e-10)
    assert float(np.abs(total).max()) > 0.1  # the weights are large


@torch.no_grad()
@pytest.mark.parametrize("part", ["embed", "L0H1", "L0-MLP", "L1H3"])
def test_a_part_is_what_the_head_would_move_of_it_alone(given, facts, moved, part):  # noqa: F811
    """By hooks: values of layer 2 are replaced by the linear image of the part, norm scale held."""
    towards, layer = answer_directions(given, facts), "blocks.2."
    for i, fact in enumerate(facts):
        if i % 4:
            continue
        _, cache = given.run_with_cache(fact.clean[None])
        resid = cache[layer + "hook_resid_pre"][0]
        written = written_by(given, cache, part)[0]
        scale = resid.std(-1, unbiased=False, keepdim=True).square().add(given.cfg.ln_eps).sqrt()
        block = given.blocks[2]
        normed = (written - written.mean(-1, keepdim=True)) / scale * block.ln1.weight
        width = given.cfg.d_head
        for head in range(4):
            start = (3 * head + 2) * width  # queries, keys and values of a head lie side by side
            values = normed @ block.attn.qkv.weight[start : start + width].T
            out = block.attn.out.weight[:, head * width : (head + 1) * width]
            of_pos = cache[layer + "attn.hook_pattern"][0, head, -1] * (values @ out.T @ towards[i])
            for role in dict.fromkeys(fact.roles):
                theirs = sum(float(x) for x, name in zip(of_pos, fact.roles) if name == role)
                ours = moved.moved.isel(fact=i).sel(layer=2, head=head, role=role, part=part)
                assert float(ours) == pytest.approx(theirs, abs=1e-10)


def test_attention_sums_to_1_and_missing_roles_have_none(suite, given):  # noqa: F811
    facts = suite.facts(6, seed=1)
    middle = PROMPT_ROLES.index("name_middle")
    first = facts.roles[0]
    first[first == middle] = PROMPT_ROLES.index("cue")
    found = value_attribution(given, facts)
    np.testing.assert_allclose(found.attention.sum("role"), 1, atol=1e-9)
    lacking = found.isel(fact=0).sel(role="name_middle")
    assert lacking.moved.isnull().all() and lacking.attention.isnull().all()
    others = found.isel(fact=slice(1, None), layer=2).sel(role="name_middle")
    assert others.moved.notnull().all()


def test_the_first_layer_moves_nothing_but_the_embedding_and_biases(given, moved):  # noqa: F811
    assert part_names(3, 4)[1] == BIAS
    first = moved.moved.isel(layer=0, fact=0).notnull().any(("head", "role"))
    assert [str(x) for x in first.part[first.values].values] == ["embed", BIAS]
    model_bias = given.blocks[0].attn.qkv.bias.abs().sum() + given.blocks[0].ln1.bias.abs().sum()
    assert bool((moved.moved.sel(part=BIAS, layer=0) != 0).any()) == bool(model_bias > 0)
