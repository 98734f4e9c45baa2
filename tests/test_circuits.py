"""Circuits with hand-made weights: sweeps find exactly them, and gates behave as theory says."""

import numpy as np
import pandas as pd
import pytest
import torch

from interp.facts import PROMPT_ROLES, FactSet
from interp.model import DecoderConfig, HookedDecoder, initialise
from interp.patching import patch
from interp.patching.patch import FACT_COORDS
from interp.results import recovered

ROLES = ("bos", "name_first", "name_middle", "name_last", "cue", "final")
TOKENS = ("bos", "first+", "first-", "middle", "last+", "last-", "cue", "final", "right", "wrong")
D_MODEL, D_HEAD = 32, 8
# Pairs of dimensions hold a number and its negative, so that every residual stream has mean 0.
FIRST, LAST, ONE, A, B, A_MOVED, B_MOVED, OUT = (slice(2 * i, 2 * i + 2) for i in range(8))
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
        texts=pd.DataFrame({name: [""] for name in FACT_COORDS}),
    )


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
    for head, (marker, what, moved) in enumerate([(FIRST, A, A_MOVED), (LAST, B, B_MOVED)]):
        q, k, v = (slice((3 * head + i) * D_HEAD, (3 * head + i + 1) * D_HEAD) for i in range(3))
        attention.qkv.weight.data[q][2, ONE] = 100 * PAIR
        attention.qkv.weight.data[k][2, marker] = 100 * PAIR
        attention.qkv.weight.data[v][3, what] = PAIR
        attention.out.weight.data[moved, head * D_HEAD + 3] = PAIR
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


@pytest.fixture(scope="module")
def circuit():
    """Layer 0, heads 0 and 1 move the names; the MLP of layer 1 makes the answer of the last
    name alone. Its two neurons are the first group of two.
    """
    model = with_gate(two_heads(n_layers=2), (-0.5, 0.5))
    model.blocks[1].mlp.up.weight.data[:, A_MOVED] = 0
    model.blocks[1].mlp.up.weight.data[:2, B_MOVED.start] *= 2
    return model


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
