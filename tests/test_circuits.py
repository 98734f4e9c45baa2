"""Circuits with hand-made weights: sweeps find exactly them, and gates behave as theory says."""

import numpy as np
import pandas as pd
import pytest
import torch

from interp.data.facts import PROMPT_ROLES, TEXT_COLUMNS, FactSet
from interp.model.decoder import DecoderConfig, HookedDecoder, initialise
from interp.patching import patch
from interp.results.metrics import recovered

ROLES = ("bos", "name_first", "name_middle", "name_last", "cue", "final")
TOKENS = ("bos", "first+", "first-", "middle", "last+", "last-", "cue", "final", "right", "wrong")
D_MODEL, D_HEAD = 32, 8
# Pairs of dimensions hold a number and its negative, so that every residual stream has mean 0.
FIRST, LAST, ONE, A, B, A_MOVED, B_MOVED, OUT, MIDDLE, C = (
    slice(2 * i, 2 * i + 2) for i in range(10)
)
PAIR = torch.tensor([1.0, -1.0])


def token(name):
    return TOKENS.index(name)


def facts():
    """One fact: the right answer after first+ and last+, the wrong one after first− and last−."""
    clean, corrupted = (
        torch.tensor(
            [[token(t) for t in ("bos", f"first{s}", "middle", f"last{s}", "cue", "final")]]
        )
        for s in "+-"
    )
    return FactSet(
        clean=clean,
        corrupted=corrupted,
        lengths=torch.tensor([6]),
        roles=torch.tensor([[PROMPT_ROLES.index(role) for role in ROLES]]),
        answers=torch.tensor([[token("right")]]),
        corrupted_answers=torch.tensor([[token("wrong")]]),
        texts=pd.DataFrame({name: [""] for name in TEXT_COLUMNS}),
    )


def wire(attention, head, *, query, key, value, out):
    """A head that looks where query and key have the same sign, and moves a value."""
    q, k, v = (slice((3 * head + i) * D_HEAD, (3 * head + i + 1) * D_HEAD) for i in range(3))
    attention.qkv.weight.data[q][2, query] = 100 * PAIR
    attention.qkv.weight.data[k][2, key] = 100 * PAIR
    attention.qkv.weight.data[v][3, value] = PAIR
    attention.out.weight.data[out, head * D_HEAD + 3] = PAIR


def two_heads(n_layers=1):
    """Head 0 moves what the first name says to every later position, head 1 what the last says;
    their attention to all other tokens is exactly 0.
    """
    shape = (n_layers, D_MODEL // D_HEAD, D_MODEL, 4, len(TOKENS))
    cfg = DecoderConfig(*shape, rotary_dim=2, ln_eps=1e-12)
    model = HookedDecoder(cfg)
    initialise(model, std=0.0, seed=0)
    embed, attention = model.embed.weight.data, model.blocks[0].attn
    for name in TOKENS:
        embed[token(name), ONE] = PAIR
        if name.startswith(("first", "last")):
            sign = 1.0 if name.endswith("+") else -1.0
            marker, what = (FIRST, A) if name.startswith("first") else (LAST, B)
            embed[token(name), marker] = PAIR
            embed[token(name), what] = sign * PAIR
    wire(attention, 0, query=ONE, key=FIRST, value=A, out=A_MOVED)
    wire(attention, 1, query=ONE, key=LAST, value=B, out=B_MOVED)
    model.unembed.weight.data[token("right"), OUT] = PAIR
    return model.eval()


def with_gate(model, thresholds):
    """The MLP of the last layer writes its output where a + b is between two thresholds, and its
    full output above: a ramp of two neurons.
    """
    mlp, last = model.blocks[-1].mlp, len(model.blocks) - 1
    _, cache = model.run_with_cache(facts().clean)
    heard = cache[f"blocks.{last}.ln2.hook_normalized"][0, -1]
    unit = float(heard[A_MOVED][0])
    assert unit > 0 and float(heard[B_MOVED][0]) == pytest.approx(unit)
    steep = 50.0
    for neuron, (threshold, sign) in enumerate(zip(thresholds, (1.0, -1.0))):
        for moved in (A_MOVED, B_MOVED):
            mlp.up.weight.data[neuron, moved.start] = steep / unit
        mlp.up.bias.data[neuron] = -steep * threshold
        mlp.down.weight.data[OUT, neuron] = sign / steep * PAIR
    return model


AND = (0.5, 1.5)  # of a + b in −2, 0, 2: above both only when both are 1
OR = (-1.5, -0.5)  # above both already when one is
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


def late_gate():
    """Layer 0, heads 0 and 1 move the names; the MLP of layer 1 makes the answer of the last
    name alone. Its two neurons are the first group of two.
    """
    model = with_gate(two_heads(n_layers=2), (-0.5, 0.5))
    model.blocks[1].mlp.up.weight.data[:, A_MOVED] = 0
    model.blocks[1].mlp.up.weight.data[:2, B_MOVED.start] *= 2
    return model


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


def looks_by_query():
    """Layer 0, head 0 moves the first name's sign; by it layer 1, head 0 looks at the middle or at
    the last name, which hold different values, the same for everybody.
    """
    model = two_heads(n_layers=2)
    model.blocks[0].attn.out.weight.data[B_MOVED] = 0
    for name, sign in (("middle", 1.0), ("last+", -1.0), ("last-", -1.0)):
        model.embed.weight.data[token(name), MIDDLE] = sign * PAIR
        model.embed.weight.data[token(name), C] = sign * PAIR
    for unused in (slice(20, 22), slice(22, 24)):  # as long as the last name
        model.embed.weight.data[token("middle"), unused] = PAIR
    wire(model.blocks[1].attn, 0, query=A_MOVED, key=MIDDLE, value=C, out=OUT)
    return model


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
