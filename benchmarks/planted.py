"""Precision and recall of ``interp.localization.mechanisms`` where it is known which components can
implement which mechanism, and how far that moves with their weights.

Trained in: models that do without some heads and MLPs, so that what can implement a mechanism is
known before anything is measured. Transplanted: the demo run's last model with its heads in another
order and layers of an untrained model, which are part of no mechanism, between its own; what is
compared is what was found before and after.
"""

import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from interp.config import PRESETS
from interp.data.facts import FactSet
from interp.localization import mechanisms, needs, read_off, readable_gain
from interp.model.decoder import HookedDecoder
from interp.suite import load_suite
from interp.training.loop import train

Named = set[tuple[str, str]]
"""Mechanisms and the components that implement them."""
HEADS, N_SEEDS, N_TRANSPLANTS, N_DECOYS, LOUDNESS = 4, 2, 5, 2, 3.0
N_STEPS = 2000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(N_SEEDS):
            _trained_in(Path(folder), *_late_heads(seed))
            _trained_in(Path(folder), *_one_mlp(seed))
    for seed in range(N_TRANSPLANTS):
        _transplanted(seed)


def _late_heads(seed: int) -> tuple:
    """Two layers, heads in the second only: no head can combine names, these alone can bring
    them to the answer position, and only the MLP after them sees a whole name.
    """
    removed = {f"L0H{head}" for head in range(HEADS)}
    heads = [f"L1H{head}" for head in range(HEADS)]
    may = {"memory": ["L1 MLP"], "extraction": heads, "relation": heads}
    return f"heads in layer 1 of 2, seed {seed}", 2, seed, removed, may


def _one_mlp(seed: int) -> tuple:
    """Three layers, an MLP in the middle one only: it is the memory, wherever it works; what heads
    of the last layer do to names comes too late.
    """
    heads = [f"L{layer}H{head}" for layer, head in product(range(3), range(HEADS))]
    may = {"memory": ["L1 MLP"], "extraction": heads, "relation": heads}
    may["name attention"] = heads[: 2 * HEADS]
    return f"one MLP of 3, seed {seed}", 3, seed, {"L0-MLP", "L2-MLP"}, may


def _trained_in(
    folder: Path,
    label: str,
    n_layers: int,
    seed: int,
    removed: set[str],
    may: dict[str, list[str]],
) -> None:
    """Precision: named pairs that can be right; recall: mechanisms that must be found."""
    config = replace(
        PRESETS["tiny"],
        n_layers=n_layers,
        seed=seed,
        n_steps=N_STEPS,
        removed=tuple(sorted(removed)),
    )
    suite = load_suite(train(config, folder / label.replace(" ", "-")))
    metrics = suite.metrics.set_index(["step", "split", "attribute"])
    accuracy = metrics.accuracy[config.n_steps, "train", "average"]
    found = named(suite.load(config.n_steps), suite.facts(6 * 64))
    right = {(role, who) for role, who in found if who in may.get(role, [])}
    must = {"memory", "extraction"}
    say(f"{label}; accuracy {accuracy:.2f}", "precision", right, found)
    say("", "recall", must & {role for role, _ in right}, must)


def named(model: HookedDecoder, facts: FactSet) -> Named:
    table = mechanisms(needs(model, facts), readable_gain(read_off(model, facts)))
    whole = table[table.named & (table.attribute == "all")]
    return set(zip(whole.mechanism, whole.component))


def say(label: str, measure: str, right: set, whole: set) -> None:
    missing = f"; not {', '.join(map(str, sorted(whole - right)))}" if whole - right else ""
    print(f"{label:50} {measure} {len(right)}/{len(whole)}{missing}", flush=True)


def _transplanted(seed: int) -> None:
    suite = load_suite("checkpoints/demo")
    model, decoys = suite.load(suite.steps[-1]), suite.load(0)
    facts = suite.facts(6 * 64)
    moved, places = transplanted(model, decoys, seed=seed)
    before = {(role, places[who]) for role, who in named(model, facts)}
    after = named(moved, facts)
    accuracy = " and ".join(f"{first_token_accuracy(m, facts):.2f}" for m in (model, moved))
    say(f"transplant {seed}; accuracy {accuracy}", "precision", before & after, after)
    say("", "recall", before & after, before)


def first_token_accuracy(model: HookedDecoder, facts: FactSet) -> float:
    logits = model(facts.clean)[torch.arange(len(facts)), facts.lengths - 1]
    return float((logits.argmax(-1) == facts.answers[:, 0]).float().mean())


def transplanted(
    model: HookedDecoder, decoys: HookedDecoder, *, seed: int
) -> tuple[HookedDecoder, dict[str, str]]:
    """``model`` with each layer's heads in a random order and ``N_DECOYS`` layers of ``decoys``,
    ``LOUDNESS`` times as loud, at random places; and the new name of each of its components.
    """
    rng = np.random.default_rng(seed)
    cfg = replace(model.cfg, n_layers=model.cfg.n_layers + N_DECOYS)
    moved, places = HookedDecoder(cfg).eval(), {}
    own = np.sort(rng.choice(cfg.n_layers, model.cfg.n_layers, replace=False))
    loud = iter(range(N_DECOYS))
    with torch.no_grad():
        moved.embed.weight.copy_(model.embed.weight)
        moved.unembed.weight.copy_(model.unembed.weight)
        moved.ln_final.load_state_dict(model.ln_final.state_dict())
        for layer, block in enumerate(moved.blocks):
            if layer not in own:
                block.load_state_dict(decoys.blocks[next(loud)].state_dict())
                block.attn.out.weight.mul_(LOUDNESS), block.mlp.down.weight.mul_(LOUDNESS)
                continue
            old = int(np.searchsorted(own, layer))
            block.load_state_dict(model.blocks[old].state_dict())
            order = rng.permutation(cfg.n_heads)
            _reorder(block.attn, order, cfg.d_head)
            places[f"L{old} MLP"] = f"L{layer} MLP"
            places |= {f"L{old}H{was}": f"L{layer}H{now}" for now, was in enumerate(order)}
    return moved.requires_grad_(False), places


def _reorder(attention, order: np.ndarray, d_head: int) -> None:
    rows, columns = (
        np.concatenate([np.arange(width * h, width * (h + 1)) for h in order])
        for width in (3 * d_head, d_head)
    )
    attention.qkv.weight.copy_(attention.qkv.weight[rows].clone())
    attention.qkv.bias.copy_(attention.qkv.bias[rows].clone())
    attention.out.weight.copy_(attention.out.weight[:, columns].clone())


if __name__ == "__main__":
    main()
