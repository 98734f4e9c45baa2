"""Effects of ablations, held against patching, and the mechanisms found in planted circuits."""

import numpy as np
import pandas as pd
import pytest
import torch
from oracle import random_model

from interp.data.facts import PROMPT_ROLES, FactSet
from interp.localization.component_ablation import needs
from interp.localization.mechanisms import MIN_SHARE, mechanisms, readable_gain
from interp.localization.probes import read_off
from interp.model.decoder import DecoderConfig, HookedDecoder, initialise
from interp.patching import patch
from interp.suite import load_suite

N_NAMES, N_VALUES, D_HEAD = 6, 9, 40
PLACES_IN_PROMPT = ("bos", "name_first", "name_middle", "name_last", "cue", "final")
FIRST, LAST = range(N_NAMES), range(N_NAMES, 2 * N_NAMES)
VALUES = range(2 * N_NAMES, 2 * N_NAMES + N_VALUES)
BOS, MIDDLE, CUE, FINAL = range(VALUES.stop, VALUES.stop + 4)
D_VOCAB = FINAL + 1
# Pairs of dimensions hold a number and its negative, so that every residual stream has mean 0.
PAIR = torch.tensor([1.0, -1.0])
BLOCKS = dict(first=6, last=6, heard=6, known=9, out=9, is_first=1, is_last=1, asks=1, filler=1)
STARTS = dict(zip(BLOCKS, np.cumsum([0, *BLOCKS.values()])))
D_MODEL = 2 * sum(BLOCKS.values())
PLANTED = {
    ("name attention", "L0H0", "name_last ← other names"),
    ("memory", "L0 MLP", "name_last"),
    ("extraction", "L1H0", "final ← names"),
}


def dims(block, i=0):
    start = 2 * (STARTS[block] + i)
    return slice(start, start + 2)


def value_of(first, last):
    """A table that no sum of the two names gives."""
    return (first * last + 2 * first + last**2) % N_VALUES


def people():
    """Everybody, and a twin who shares no name and has another value."""
    rows = []
    for a in FIRST:
        for b in range(N_NAMES):
            for da in (1, 2, 3):
                c, d = (a + da) % N_NAMES, (b + 2) % N_NAMES
                if value_of(a, b) != value_of(c, d):
                    rows.append((a, b, c, d))
                    break
    prompts = [
        torch.tensor([[BOS, f, MIDDLE, N_NAMES + n, CUE, FINAL] for f, n in names])
        for names in ([(r[0], r[1]) for r in rows], [(r[2], r[3]) for r in rows])
    ]
    answers = [
        torch.tensor([[VALUES.start + value_of(f, n)] for f, n in names])
        for names in ([(r[0], r[1]) for r in rows], [(r[2], r[3]) for r in rows])
    ]
    n = len(rows)
    texts = pd.DataFrame({"person": range(n), "attribute": ["job"] * n, "corrupted_person": -1})
    for name in ("clean_prompt", "corrupted_prompt", "answer", "corrupted_answer"):
        texts[name] = ""
    indices = [PROMPT_ROLES.index(role) for role in PLACES_IN_PROMPT]
    return FactSet(*prompts, torch.full((n,), 6), torch.tensor([indices] * n), *answers, texts)


def wire(attention, head, *, query, key, moves):
    """A head that looks from where ``query`` is to where ``key`` is, and moves blocks."""
    q, k, v = (slice((3 * head + i) * D_HEAD, (3 * head + i + 1) * D_HEAD) for i in range(3))
    attention.qkv.weight.data[q][2, dims(query)] = 100 * PAIR
    attention.qkv.weight.data[k][2, dims(key)] = 100 * PAIR
    number = 0
    for source, target, size in moves:
        for i in range(BLOCKS[source]):
            attention.qkv.weight.data[v][number, dims(source, i)] = PAIR
            out = attention.out.weight.data[:, head * D_HEAD + number]
            out[dims(target, i)] = size * PAIR
            number += 1


def planted():
    """Layer 0: head 0 brings the first name to the last, the MLP looks the pair up and writes the
    value; layer 1: head 0 brings it to the answer position. Decoys: L0H1 brings the first name to
    the answer position, where nobody reads it; the MLP of layer 1 makes the answer larger.
    """
    cfg = DecoderConfig(2, 2, D_MODEL, N_NAMES**2, D_VOCAB, rotary_dim=2, ln_eps=1e-12)
    model = HookedDecoder(cfg)
    initialise(model, std=0.0, seed=0)
    embed = model.embed.weight.data
    for i in FIRST:
        embed[i, dims("first", i)] = embed[i, dims("is_first")] = PAIR
        embed[N_NAMES + i, dims("last", i)] = embed[N_NAMES + i, dims("is_last")] = PAIR
    for token in (BOS, MIDDLE, CUE):
        embed[token, dims("filler")] = PAIR
    embed[FINAL, dims("asks")] = PAIR
    first, second = model.blocks
    one = 1 / (2 * (D_MODEL / 4) ** 0.5)  # of a token with two blocks, after LayerNorm
    wire(first.attn, 0, query="is_last", key="is_first", moves=[("first", "heard", one)])
    wire(first.attn, 1, query="asks", key="is_first", moves=[("first", "heard", one)])
    wire(second.attn, 0, query="asks", key="is_last", moves=[("known", "out", 1.0)])
    facts = people()
    _, cache = model.run_with_cache(facts.clean)
    unit = float(cache["blocks.0.ln2.hook_normalized"][0, 3].max())
    steep = 50.0
    for a in FIRST:
        for b in range(N_NAMES):
            neuron = a * N_NAMES + b
            first.mlp.up.weight.data[neuron, dims("heard", a)] = steep / unit * PAIR / 2
            first.mlp.up.weight.data[neuron, dims("last", b)] = steep / unit * PAIR / 2
            first.mlp.up.bias.data[neuron] = -1.5 * steep
            first.mlp.down.weight.data[dims("known", value_of(a, b)), neuron] = 4 / steep * PAIR
    for k in range(N_VALUES):
        second.mlp.up.weight.data[k, dims("out", k)] = PAIR
        second.mlp.down.weight.data[dims("out", k), k] = PAIR
        model.unembed.weight.data[VALUES.start + k, dims("out", k)] = PAIR
    return model.eval(), facts


def found(model, facts):
    table = mechanisms(needs(model, facts), readable_gain(read_off(model, facts)))
    named = table[table.named & (table.attribute == "all")]
    return set(zip(named.mechanism, named.component, named.place)), table


def test_the_planted_circuit_is_found_and_its_decoys_are_not():
    model, facts = planted()
    logits = model(facts.clean)[:, -1]
    assert (logits.argmax(-1) == facts.answers[:, 0]).all()
    named, table = found(model, facts)
    assert named == PLANTED  # precision 1 and recall 1
    whole = table[table.attribute == "all"].set_index(["component", "mechanism", "place"])
    assert whole.share["L1 MLP", "memory", "final"] > MIN_SHARE  # needed, but not a memory
    decoy = whole.loc["L0H1"]
    assert (decoy.share.abs() < 0.002).all()  # it changes the last LayerNorm's scale


def test_a_circuit_without_its_memory_implements_nothing():
    model, facts = planted()
    model.blocks[0].mlp.down.weight.data[:] = 0
    assert found(model, facts)[0] == set()


def test_a_removed_head_loses_its_mechanism_and_a_moved_one_keeps_it():
    model, facts = planted()
    model.blocks[0].attn.out.weight.data[:, :D_HEAD] = 0
    assert not {role for role, *_ in found(model, facts)[0]}
    model, _ = planted()
    attention = model.blocks[1].attn
    swapped = torch.cat((torch.arange(3 * D_HEAD, 6 * D_HEAD), torch.arange(3 * D_HEAD)))
    attention.qkv.weight.data = attention.qkv.weight.data[swapped]
    attention.qkv.bias.data = attention.qkv.bias.data[swapped]
    columns = torch.cat((torch.arange(D_HEAD, 2 * D_HEAD), torch.arange(D_HEAD)))
    attention.out.weight.data = attention.out.weight.data[:, columns]
    moved = {(role, who.replace("L1H0", "L1H1"), at) for role, who, at in PLANTED}
    assert found(model, facts)[0] == moved


@pytest.fixture(scope="module")
def demo():
    suite = load_suite("checkpoints/demo")
    return suite.load(suite.steps[-1]), suite.facts(48)


def test_mechanisms_of_a_trained_model_follow_its_heads(demo):
    """Weights transplanted to another place: exchanging two heads exchanges their effects."""
    model, facts = demo
    before = needs(model, facts)
    d = model.cfg.d_head
    attention = model.blocks[1].attn
    kept = {name: x.clone() for name, x in attention.state_dict().items()}
    order = [3, 1, 2, 0]
    rows = torch.cat([torch.arange(3 * d * h, 3 * d * (h + 1)) for h in order])
    columns = torch.cat([torch.arange(d * h, d * (h + 1)) for h in order])
    with torch.no_grad():
        attention.qkv.weight.copy_(kept["qkv.weight"][rows])
        attention.qkv.bias.copy_(kept["qkv.bias"][rows])
        attention.out.weight.copy_(kept["out.weight"][:, columns])
        after = needs(model, facts)
        attention.load_state_dict(kept)
    names = {"L1H3": "L1H0", "L1H0": "L1H3"}
    moved = [names.get(name, name) for name in before.component.values]
    key = list(zip(moved, before.role.values, before.place.values, before.kind.values))
    there = list(
        zip(after.component.values, after.role.values, after.place.values, after.kind.values)
    )
    order = [there.index(x) for x in key]
    np.testing.assert_allclose(after.effect.values[order], before.effect.values, atol=2e-4)
    assert (
        float(before.effect[key.index(("L1H0", "extraction", "final ← names", "head"))].mean()) > 1
    )


def test_a_head_taken_out_of_a_trained_model_is_needed_for_nothing(demo):
    model, facts = demo
    weight = model.blocks[1].attn.out.weight
    columns, kept = slice(3 * model.cfg.d_head, 4 * model.cfg.d_head), weight.detach().clone()
    with torch.no_grad():
        weight[:, columns] = 0
        without = needs(model, facts)
        weight.copy_(kept)
    mine = without.component == "L1H3"
    np.testing.assert_allclose(without.effect[mine], 0, atol=1e-4)


def test_what_is_lost_is_what_patching_says(suite):
    model = random_model(suite)
    facts = suite.facts(48, attribute=["major", "company"], seed=1)
    needed = needs(model, facts)
    options = {"direction": "noising", "whole_value": False}
    cut = patch(model, facts, site="head_knockout", **options)
    at = {"layer": 1, "head": 2, "dest": "name_middle", "src": "name_first"}
    one = needed.isel(cell=np.flatnonzero(needed.component == "L1H2")[0])
    assert one.place.item() == "name_middle ← name_first"
    np.testing.assert_allclose(one.effect, cut.clean - cut.patched.sel(at), atol=1e-6)
    swapped = patch(model, facts, site="mlp_out", **options)
    mine = (needed.component == "L2 MLP") & (needed.place == "final")
    one = needed.isel(cell=int(np.flatnonzero(mine)[0]))
    lost = swapped.clean - swapped.patched.sel(layer=2, role="final")
    np.testing.assert_allclose(one.effect, lost, atol=1e-6)
    every = needed.isel(cell=np.flatnonzero(needed.kind == "all"))
    assert set(zip(every.component.values, every.role.values)) == {
        ("all heads", "name attention"),
        ("all heads", "extraction"),
        ("all heads", "relation"),
        ("all MLPs", "memory"),
    }
    whole = patch(model, facts, site="knockout", window=6, layers=(1,), **options)
    lost = (whole.clean - whole.patched.isel(layer=0)).sel(dest="final", src="cue")
    mine = every.effect.isel(cell=int(np.flatnonzero(every.role == "relation")[0]))
    np.testing.assert_allclose(mine, lost, atol=1e-6)


def test_needs_of_the_whole_value_are_what_patching_says(suite):
    model, facts = random_model(suite), suite.facts(12, attribute="birth_date", seed=1)
    needed = needs(model, facts, whole_value=True)
    cut = patch(model, facts, site="head_knockout", direction="noising")
    at = {"layer": 1, "head": 2, "dest": "final", "src": "cue"}
    mine = (needed.component == "L1H2") & (needed.place == "final ← cue")
    one = needed.isel(cell=int(np.flatnonzero(mine)[0]))
    for metric in ("first_logprob", "value_logprob"):
        lost = cut[f"clean_{metric}"] - cut[f"patched_{metric}"].sel(at)
        np.testing.assert_allclose(one[f"effect_{metric}"], lost, atol=1e-5)
    assert not np.allclose(one.effect_first_logprob, one.effect_value_logprob, atol=1e-3)
    assert "effect_value_logprob" not in needs(model, facts)
