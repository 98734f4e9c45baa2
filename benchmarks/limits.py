"""What bf16 changes, and how much memory a sweep takes.

``python -m benchmarks.limits``: the demo run's last checkpoint and 8 layers of width 512 with
random weights, in bf16 against fp32, with Spearman's rank correlation of the effects of single
facts; then the peak memory of the large model's sweep at several
``max_memory``, each in a process of its own, and the largest difference of its results from those
at 2 GB.
"""

from interp.process import tune_process

tune_process()

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.patching import CHECKPOINT, compare, large_model
from interp.patching import patch, patch_sites
from interp.results.metrics import effect
from interp.suite import load_suite

SITES = ("resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern")
MEMORIES = (0.25, 0.5, 1.0, 2.0)


def main() -> None:
    if sys.argv[1:2] == ["memory"]:
        return one_sweep(float(sys.argv[2]), Path(sys.argv[3]))
    print("bf16 against fp32")
    suite = load_suite(CHECKPOINT)
    with tempfile.TemporaryDirectory() as folder:
        large = large_model(suite, Path(folder))[0]
    models = {"demo": (suite.load(suite.steps[-1]), 64, 6), "large": (large, 32, 3)}
    for name, (model, n_facts, rounds) in models.items():
        facts, ratios, ranks = suite.facts(n_facts), [], []
        low = type(model)(model.cfg)
        low.load_state_dict(model.state_dict())
        low.eval().to(torch.bfloat16)
        for site in SITES:
            seconds, values = compare(
                {
                    "fp32": lambda m=model, s=site, f=facts: effects(m, f, s),
                    "bf16": lambda m=low, s=site, f=facts: effects(m, f, s),
                },
                rounds,
            )
            there = np.isfinite(values["fp32"]) & (values["fp32"] != 0)
            ranks.append(spearmanr(values["fp32"][there], values["bf16"][there]).statistic)
            ratios.append(seconds["fp32"] / seconds["bf16"])
            print(f"{name:6} {site:10} {ratios[-1]:5.2f} ×  rank correlation {ranks[-1]:.4f}")
        print(
            f"{name}: geometric mean {np.exp(np.log(ratios).mean()):.2f} ×, least {min(ranks):.4f}"
        )
    memory()


def effects(model: torch.nn.Module, facts, site: str) -> np.ndarray:
    return effect(patch(model, facts, site=site)).values


def memory() -> None:
    print("max_memory   peak above the model   largest difference from 2 GB")
    with tempfile.TemporaryDirectory() as folder:
        peaks, values = {}, {}
        for limit in MEMORIES:
            out = Path(folder) / f"{limit}.npy"
            command = [sys.executable, "-m", "benchmarks.limits", "memory", str(limit), str(out)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[limit], values[limit] = float(done.stdout), np.load(out)
        for limit in MEMORIES:
            difference = np.nanmax(abs(values[limit] - values[2.0]))
            print(f"{limit:8.2f} GB {peaks[limit]:12.2f} GB {difference:20.1e}")


def one_sweep(limit: float, out: Path) -> None:
    """Three sites on 400 facts; prints gigabytes, and keeps the results."""
    suite = load_suite(CHECKPOINT)
    with tempfile.TemporaryDirectory() as folder:
        model = large_model(suite, Path(folder))[0]
    facts = suite.facts(400)
    sites = ["resid_pre", "mlp_out", "mlp_post"]
    patch(model, facts[:2], site="z")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = patch_sites(model, facts, sites=sites, max_memory=limit, n_neurons=512)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9)
    np.save(out, np.concatenate([results[site].patched.values.ravel() for site in sites]))


if __name__ == "__main__":
    main()
