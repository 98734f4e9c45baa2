"""Precision and recall of ``interp.localization.jobs.roles`` where it is known who has which role.

Trained in: models that do without all components but some, so that who does a job is known before
anything is measured. Transplanted: the demo run's last model with its heads in another order and
layers of a random model, which are no part of any job, between its own.
"""

import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from interp.config import PRESETS
from interp.facts import FactSet
from interp.localization import needs, read_off, readable_gain, roles
from interp.model import HookedDecoder
from interp.suite import load_suite
from interp.training.loop import train

Named = set[tuple[str, str]]
"""Roles, and components that have them."""
HEADS, N_TRANSPLANTS, N_DECOYS, LOUDNESS = 4, 5, 2, 3.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for kept in range(HEADS):
            _trained_in(Path(folder), *_one_head(kept))
        for kept in range(2):
            _trained_in(Path(folder), *_one_mlp(kept))
    for seed in range(N_TRANSPLANTS):
        _transplanted(seed)


def _one_head(kept: int) -> tuple:
    """Two layers; of the heads only one in the second. So no head can bring names together, that
    one alone can bring them to the answer position, and only the MLP after it sees a whole name.
    """
    heads = {f"L{layer}H{head}" for layer, head in product(range(2), range(HEADS))}
    must = {("extraction", f"L1H{kept}"), ("memory", "L1 MLP")}
    removed = heads - {f"L1H{kept}"}
    return f"one head, L1H{kept}", 2, kept, removed, must, {("relation", f"L1H{kept}")}


def _one_mlp(seed: int) -> tuple:
    """Three layers, an MLP in the middle one only: it is the memory, wherever it works."""
    may = set(product(("name attention", "extraction", "relation"), _heads(3)))
    return f"one MLP, seed {seed}", 3, seed, {"L0-MLP", "L2-MLP"}, {("memory", "L1 MLP")}, may


def _heads(n_layers: int) -> list[str]:
    return [f"L{layer}H{head}" for layer, head in product(range(n_layers), range(HEADS))]


def _trained_in(
    folder: Path, label: str, n_layers: int, seed: int, removed: set[str], must: Named, may: Named
) -> None:
    config = replace(PRESETS["tiny"], n_layers=n_layers, seed=seed, removed=tuple(sorted(removed)))
    suite = load_suite(train(config, folder / label.replace(" ", "-")))
    metrics = suite.metrics.set_index(["step", "split", "attribute"])
    accuracy = metrics.accuracy[config.n_steps, "train", "average"]
    found = named(suite.load(config.n_steps), suite.facts(6 * 64))
    say(f"{label}; accuracy {accuracy:.2f}", found, must, may)


def named(model: HookedDecoder, facts: FactSet) -> Named:
    table = roles(needs(model, facts), readable_gain(read_off(model, facts)))
    whole = table[table.named & (table.attribute == "all")]
    return set(zip(whole.role, whole.component))


def say(label: str, found: Named, must: Named, may: Named) -> None:
    right = len(found & (must | may))
    wrong = ", ".join(f"{who} {role}" for role, who in sorted(found - must - may))
    missed = ", ".join(f"{who} {role}" for role, who in sorted(must - found))
    print(
        f"{label:35} precision {right}/{len(found)}, recall {len(found & must)}/{len(must)}"
        f"{'; wrong: ' + wrong if wrong else ''}{'; missed: ' + missed if missed else ''}",
        flush=True,
    )


def _transplanted(seed: int) -> None:
    suite = load_suite("checkpoints/demo")
    model, decoys = suite.load(suite.steps[-1]), suite.load(0)
    facts = suite.facts(6 * 64)
    moved, places = transplanted(model, decoys, seed=seed)
    truth = {(role, places[who]) for role, who in named(model, facts)}
    right = [
        float((m(facts.clean[:64])[torch.arange(64), facts.lengths[:64] - 1].argmax(-1)
               == facts.answers[:64, 0]).float().mean())
        for m in (model, moved)
    ]  # fmt: skip
    label = f"transplant {seed}; accuracy {right[0]:.2f}, {right[1]:.2f}"
    say(label, named(moved, facts), truth, set())


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
