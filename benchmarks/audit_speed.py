"""How fast a suite is opened and audited: seconds for the index of 154 steps, and gigabytes a
second of ``interp.audit`` beside ``sha256sum``, in turn, on files in the page cache, by the clock
and by the time of the processor.
"""

from interp.process import tune_process

tune_process()

import os
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch
from safetensors.torch import save_file

from interp.results.audit import audit
from interp.suite import load_suite

PYTHIA = [0, *(2**i for i in range(10)), *range(1000, 144_000, 1000)]
ROUNDS, N_STEPS, N_MATRICES, WIDTH = 5, 4, 24, 1024
CHECKPOINT = Path("checkpoints/demo/step-006500")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        index(Path(folder) / "many")
        for dtype in (torch.float32, torch.bfloat16):
            beside_sha256sum(Path(folder) / str(dtype), dtype)


def index(folder: Path) -> None:
    """A suite with Pythia's steps, each a copy of one of the demo run's."""
    for step in PYTHIA:
        shutil.copytree(CHECKPOINT, folder / f"step{step}")
    opened, checked = [], []
    for _ in range(ROUNDS):
        start = perf_counter()
        suite = load_suite(folder)
        opened.append(perf_counter() - start)
        suite.check(suite.steps)
        checked.append(perf_counter() - start)
    print(
        f"{len(PYTHIA)} steps: opened in {median(opened):.3f} s, all headers and configs checked "
        f"after {median(checked):.2f} s"
    )


def beside_sha256sum(folder: Path, dtype: torch.dtype) -> None:
    """A suite of random matrices that move on from step to step."""
    torch.manual_seed(0)
    weights = {f"layers.{i}.weight": torch.randn(WIDTH, WIDTH) for i in range(N_MATRICES)}
    for step in range(N_STEPS):
        path = folder / f"step{step}"
        path.mkdir(parents=True)
        (path / "config.json").write_text("{}")
        save_file({name: w.to(dtype) for name, w in weights.items()}, path / "model.safetensors")
        weights = {name: w + 0.1 * torch.randn_like(w) for name, w in weights.items()}
    files = sorted(folder.glob("*/*.safetensors"))
    n_bytes = sum(path.stat().st_size for path in files)
    audited, summed = [], []
    for _ in range(ROUNDS):
        start, busy = perf_counter(), process_time()
        found = audit(load_suite(folder), on_step=lambda n_done: None)
        audited.append((perf_counter() - start, process_time() - busy))
        start, busy = perf_counter(), _of_children()
        subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)
        summed.append((perf_counter() - start, _of_children() - busy))
        assert found.sound, found.findings
    print(f"{n_bytes / 1e9:.2f} GB of {dtype}, {len(os.sched_getaffinity(0))} cores, GB/s:")
    for i, clock in enumerate(("clock", "processor")):
        ours, theirs = (
            [n_bytes / 1e9 / took[i] for took in rounds] for rounds in (audited, summed)
        )
        ratio = median(a / b for a, b in zip(ours, theirs))
        print(
            f"  {clock}: audit {median(ours):.2f}, sha256sum {median(theirs):.2f}, "
            f"ratio {ratio:.2f} ({min(ours):.2f} to {max(ours):.2f} and "
            f"{min(theirs):.2f} to {max(theirs):.2f})"
        )


def _of_children() -> float:
    """Seconds of processor time of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
