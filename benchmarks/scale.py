"""The cost model (``interp.plan``) against runs at three sizes, in shapes of Pythia: operations,
bytes of weights, and memory; and what it says of a sweep over Pythia-1.4b. Random weights, facts of
16 random tokens with five roles, eight sites, by role. Each size in a process of its own.
"""

import subprocess
import sys
from resource import RUSAGE_SELF, getrusage
from time import perf_counter

import numpy as np
import torch

import interp
from benchmarks.patching import product_rates
from interp.data.facts import FactSet
from interp.model.decoder import DecoderConfig, HookedDecoder, initialise
from interp.patching import patch_sites
from interp.patching.cost import weight_gigabytes
from interp.process import tune_process

SITES = ("resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern")
LENGTH, MAX_MEMORY = 16, 1.0
ROLES = ["name_first"] * 2 + ["name_middle"] * 2 + ["name_last"] * 3 + ["cue"] * 8 + ["final"]
SIZES = {
    "pythia-14m": (6, 4, 128, 48),
    "pythia-70m": (6, 8, 512, 16),
    "pythia-160m": (12, 12, 768, 4),
}
"""Layers, heads, width and facts."""
LARGE, N_STEPS, N_FACTS = (24, 16, 2048), 154, 1000
"""Pythia-1.4b."""


def main() -> None:
    if len(sys.argv) > 1:
        return measure(sys.argv[1])
    for name in SIZES:
        subprocess.run([sys.executable, "-m", "benchmarks.scale", name], check=True)
    cfg, facts = shape_of(*LARGE), facts_of(N_FACTS)
    plans = interp.plan(cfg, facts, sites=SITES, max_memory=MAX_MEMORY)
    flops = sum(of.flops for of in plans)
    held, weights = max(of.megabytes for of in plans) / 1e3, weight_gigabytes(cfg)
    gigabytes = n_weights(cfg) * 4 / 1e9
    print(
        f"Pythia-1.4b, {N_FACTS} facts, {len(SITES)} sites: {flops / 1e15:.2f} PFLOP a checkpoint "
        f"({sum(of.forwards for of in plans):,.0f} forward passes of a prompt), {gigabytes:.1f} GB "
        f"of weights in fp32, which take {weights:.1f} GB, and {held:.1f} GB of activations and "
        f"results; {N_STEPS} checkpoints "
        f"{flops * N_STEPS / 1e18:.3f} EFLOP, {gigabytes * N_STEPS / 2:.0f} GB read in fp16"
    )


def shape_of(n_layers: int, n_heads: int, d_model: int) -> DecoderConfig:
    return DecoderConfig(
        n_layers, n_heads, d_model, 4 * d_model, 50_304, 2048, parallel=True,
        rotary_dim=d_model // n_heads // 4,
    )  # fmt: skip


def facts_of(n: int) -> FactSet:
    rng = np.random.default_rng(0)
    clean = rng.integers(2, 50_000, (n, LENGTH))
    corrupted = clean.copy()
    corrupted[:, :7] = rng.integers(2, 50_000, (n, 7))
    answers = rng.choice(50_000, (2, n), replace=False)
    return interp.facts.from_tokens(
        clean, corrupted, answers=answers[0], corrupted_answers=answers[1], roles=ROLES
    )


def n_weights(cfg: DecoderConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in HookedDecoder(cfg).parameters())


def measure(name: str) -> None:
    """Prints what was measured at one size beside what was predicted."""
    tune_process()
    *shape, n_facts = SIZES[name]
    cfg, facts = shape_of(*shape), facts_of(n_facts)
    plans = interp.plan(cfg, facts, sites=SITES, max_memory=MAX_MEMORY)
    rates, before = product_rates(cfg.d_model), peak()
    model = HookedDecoder(cfg)
    initialise(model, std=0.05, seed=0)
    model.eval().requires_grad_(False)
    start = perf_counter()
    found = patch_sites(model, facts, sites=list(SITES), max_memory=MAX_MEMORY)
    seconds = perf_counter() - start
    counted = found["z"].attrs["flops"]  # of all sites together
    predicted = sum(of.flops for of in plans)
    weights, held = weight_gigabytes(cfg), max(of.megabytes for of in plans) / 1e3
    print(
        f"{name}: {n_facts} facts, predicted ÷ counted operations {predicted / counted:.2f} "
        f"({counted / 1e9:,.0f} GFLOP), memory predicted {weights + held:.2f} GB ({weights:.2f} of "
        f"weights), taken {peak() - before:.2f} GB, "
        f"{seconds:.1f} s, {counted / seconds / 1e9:.0f} GFLOP/s ({rates})",
        flush=True,
    )


def peak() -> float:
    """Gigabytes that this process has held at most."""
    return getrusage(RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
