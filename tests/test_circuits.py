"""Circuits with hand-made weights: sweeps find exactly them, and gates behave as theory says."""

import numpy as np
import pytest
from planted import (
    AND,
    FIRST,
    LAST,
    MIDDLE,
    ONE,
    OR,
    OUT,
    PAIR,
    A,
    B,
    C,
    facts,
    late_gate,
    looks_by_query,
    token,
    two_heads,
    wire,
    with_gate,
)

from interp.patching import patch
from interp.results.metrics import recovered

NAMES = ("name_first", "name_last", "name_first+name_last")


def shares(model, site, direction, **options):
    result = patch(model, facts(), site=site, direction=direction, **options)
    moved = recovered(result)
    return moved if direction == "denoising" else 1 - moved


@pytest.mark.parametrize(
    ("gate", "direction", "alone"),
    [
        (AND, "denoising", 0.0),
        (AND, "noising", 1.0),
        (OR, "denoising", 1.0),
        (OR, "noising", 0.0),
    ],
    ids=["AND hides from denoising", "AND shows in noising", "OR shows in denoising",
         "OR hides from noising"],
)  # fmt: skip
def test_a_gate_shows_in_one_direction_and_hides_from_the_other(gate, direction, alone):
    model = with_gate(two_heads(), gate)
    by_name = shares(model, "embed", direction, groups=NAMES).isel(layer=0)
    np.testing.assert_allclose(by_name, [alone, alone, 1.0], atol=1e-5)
    by_head = shares(model, "z", direction).sel(role="final", layer=0)
    np.testing.assert_allclose(by_head[:2], [alone, alone], atol=1e-5)
    np.testing.assert_array_equal(by_head[2:], [0.0, 0.0])


@pytest.fixture(scope="module")
def circuit():
    return late_gate()


PLANTED = {
    "z": [{"layer": 0, "head": 1, "role": "final"}],
    "attn_out": [{"layer": 0, "role": "final"}],
    "mlp_out": [{"layer": 1, "role": "final"}],
    "mlp_post": [{"layer": 1, "neuron": 0, "role": "final"}],
    "v": [{"layer": 0, "head": 1, "role": "name_last"}],
    "q": [],
    "k": [],
    "pattern": [],
    "embed": [{"layer": 0, "role": "name_last"}],
    "resid_pre": [{"layer": 0, "role": "name_last"}, {"layer": 1, "role": "final"}],
    "embed-v": [{"layer_1": 0, "head_1": 1, "role": "name_last"}],
    "z-mlp_out": [{"layer": 0, "head": 1, "layer_1": 1, "role": "final"}],
    "z-logits": [],
    "mlp_out-logits": [{"layer": 1, "role": "final"}],
    "embed-v-mlp_out-logits": [
        {"layer_1": 0, "head_1": 1, "layer_2": 1, "role": "name_last"}
    ],
}  # fmt: skip


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("site", PLANTED)
def test_a_planted_head_and_mlp_are_found_and_all_else_is_exactly_0(circuit, site, direction):
    result = patch(circuit, facts(), site=site, direction=direction, n_neurons=2)
    base = result.corrupted if direction == "denoising" else result.clean
    effects = (result.patched - base).isel(fact=0)
    assert float(result.clean[0] - result.corrupted[0]) > 0.5
    for place in PLANTED[site]:
        share = float(effects.sel(place) / (result.clean - result.corrupted)[0])
        assert share == pytest.approx(1 if direction == "denoising" else -1, abs=1e-5)
        effects.loc[place] = 0
    np.testing.assert_array_equal(effects.fillna(0), np.zeros(effects.shape))


def test_cutting_the_planted_edge_is_what_knockout_finds(circuit):
    result = patch(circuit, facts(), site="knockout", direction="noising").isel(fact=0)
    lost = (result.patched - result.clean).fillna(0)
    place = {"layer": 0, "dest": "final", "src": "name_last"}
    assert float(lost.sel(place)) < -0.2
    lost.loc[place] = 0
    lost.loc[{"dest": "final", "src": "name_first"}] = 0  # the first name is moved, and not heard
    np.testing.assert_allclose(lost, 0, atol=1e-5)


def looks_by_key():
    """Head 0 looks at the first name in the clean run and at the last in the corrupted one, by
    their keys; the first always holds one value, the last the other.
    """
    model = two_heads()
    embed = model.embed.weight.data
    embed[:, FIRST] = embed[:, LAST] = embed[:, A] = embed[:, B] = 0
    model.blocks[0].attn.out.weight.data[:] = 0
    for name in ("first+", "last-"):
        embed[token(name), MIDDLE] = PAIR
    for name in ("first-", "last+"):
        embed[token(name), LAST] = PAIR  # so that all names are as long
    for name in ("first+", "first-", "last+", "last-"):
        embed[token(name), C] = PAIR if name.startswith("first") else -PAIR
    wire(model.blocks[0].attn, 0, query=ONE, key=MIDDLE, value=C, out=OUT)
    return model


BY_QUERY = {
    "q": {(1, 0, "final"): 1.0},
    "k": {},
    "v": {(0, 0, "name_first"): 1.0},
    "pattern": {(1, 0, "final"): 1.0},
    "z": {(0, 0, "final"): 1.0, (1, 0, "final"): 1.0},
    # one weight of two, without its counterpart
    "edge": {(1, 0, "final", "name_middle"): 0.5, (1, 0, "final", "name_last"): 0.5},
    "z-q": {(0, 0, 1, 0, "final"): 1.0},
}
BY_KEY = {
    "q": {},
    # both names look the part, or neither does
    "k": {(0, 0, "name_first"): 0.5, (0, 0, "name_last"): 0.5},
    "v": {},
    "pattern": {(0, 0, "final"): 1.0},
    "z": {(0, 0, "final"): 1.0},
    "edge": {(0, 0, "final", "name_first"): 0.5, (0, 0, "final", "name_last"): 0.5},
    "embed-k": {(0, 0, "name_first"): 0.5, (0, 0, "name_last"): 0.5},
}


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(
    ("model", "planted"), [(looks_by_query, BY_QUERY), (looks_by_key, BY_KEY)], ids=["query", "key"]
)
def test_a_head_that_looks_elsewhere_shows_in_what_it_looks_by(model, planted, direction):
    for site, found in planted.items():
        share = shares(model(), site, direction)
        order = [dim for dim in share.dims if dim != "role" and dim not in ("dest", "src")]
        share = share.transpose(*order, ...)
        for place, expected in found.items():
            cell = dict(zip(share.dims, place))
            assert float(share.sel(cell)) == pytest.approx(expected, abs=1e-5), (site, cell)
            share.loc[cell] = 0
        np.testing.assert_allclose(share.fillna(0), 0, atol=1e-6, err_msg=site)
