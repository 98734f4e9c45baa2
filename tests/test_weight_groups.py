"""Groups of weights: a partition, unions, heads by hand, and what transplants do with them."""

import pytest
import torch
from oracle import random_model

from interp.localization.transplants import distances, transplanted
from interp.model.weight_groups import KINDS, weight_group


@pytest.fixture(scope="module")
def one(suite):
    return random_model(suite, n_layers=2)


def count(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def test_kinds_are_all_weights_once(one):
    total = sum(weight.numel() for weight in one.parameters())
    assert sum(count(weight_group(one, kind)) for kind in KINDS) == total
    assert count(weight_group(one, "all")) == total
    assert count(weight_group(one, "+".join(KINDS))) == total
    layers = sum(count(weight_group(one, f"L{i}")) for i in range(2))
    outside = count(weight_group(one, "embed+unembed")) + 2 * one.cfg.d_model  # the final norm
    assert layers + outside == total


def test_groups_of_a_layer_are_what_a_kind_and_the_layer_share(one):
    for kind, name in (("attention", "attention"), ("qk", "qk"), ("ov", "ov"), ("mlp", "MLP")):
        ours, shared = weight_group(one, f"L1-{name}"), weight_group(one, f"{kind}&L1")
        assert all(torch.equal(ours[key], shared[key]) for key in ours)
        assert count(ours)
    both = weight_group(one, "qk&ov")
    assert not count(both)


def test_a_head_is_its_rows_and_columns(one):
    """Rows of a head: d_head of queries, then keys, then values."""
    d, width = one.cfg.d_head, one.cfg.d_model
    masks = weight_group(one, "L1H2")
    rows = torch.zeros(3 * width, dtype=torch.bool)
    rows[2 * 3 * d : 3 * 3 * d] = True
    assert torch.equal(masks["blocks.1.attn.qkv.weight"], rows[:, None].expand(-1, width))
    assert torch.equal(masks["blocks.1.attn.qkv.bias"], rows)
    columns = torch.zeros(width, dtype=torch.bool)
    columns[2 * d : 3 * d] = True
    assert torch.equal(masks["blocks.1.attn.out.weight"], columns.expand(width, -1))
    assert count(masks) == 3 * d * width + 3 * d + width * d
    queries = weight_group(one, "L1H2&qk")
    assert count(queries) == 2 * d * width + 2 * d


def test_transplanting_all_is_the_donor_and_a_part_is_that_part(suite, one):
    other = random_model(suite, n_layers=2, seed=9)
    whole = transplanted(one, other, "all")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters()))
    mixed = transplanted(one, other, "L0-MLP")
    for name, weight in mixed.named_parameters():
        source = other if name.startswith("blocks.0.mlp.") else one
        assert torch.equal(weight, dict(source.named_parameters())[name])
    moved = distances(one, mixed, ["L0-MLP", "attention", "all"]).set_index("group")
    assert moved.distance["attention"] == 0 and moved.distance["L0-MLP"] > 0
    assert moved.distance["all"] == pytest.approx(moved.distance["L0-MLP"])
    change = dict(other.named_parameters())["blocks.0.mlp.up.bias"].sub(one.blocks[0].mlp.up.bias)
    biases = distances(one, transplanted(one, other, "L0-MLP"), ["L0-MLP"])
    assert biases.distance[0] ** 2 > float(change.square().sum())


@pytest.mark.parametrize("name", ["", "L2", "L0H4", "mlps", "L0-mlp", "attention+", "L-1"])
def test_unknown_groups_are_refused(one, name):
    with pytest.raises(ValueError, match="no group of weights"):
        weight_group(one, name)


def test_models_of_other_shapes_are_refused(suite, one):
    with pytest.raises(ValueError, match="don't fit into one of"):
        transplanted(one, random_model(suite, n_layers=3), "mlp")
