"""Small decoders whose weights are written by hand, so that it is known what carries the answer."""

import pandas as pd
import pytest
import torch

from interp.data.facts import PROMPT_ROLES, TEXT_COLUMNS, FactSet
from interp.model.decoder import DecoderConfig, HookedDecoder, initialise

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


def late_gate():
    """Layer 0, heads 0 and 1 move the names; the MLP of layer 1 makes the answer of the last
    name alone. Its two neurons are the first group of two.
    """
    model = with_gate(two_heads(n_layers=2), (-0.5, 0.5))
    model.blocks[1].mlp.up.weight.data[:, A_MOVED] = 0
    model.blocks[1].mlp.up.weight.data[:2, B_MOVED.start] *= 2
    return model


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
