"""Seconds of ``interp-patch`` on the demo run, from shell to report, and again; of its ``--help``;
of localizing the demo run; and of training the tiny preset; with the peak
memory of all its processes together.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import DEVNULL
from time import perf_counter, sleep

import psutil

BIN = Path(sys.executable).parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = shutil.copytree("checkpoints/demo", Path(folder) / "demo", ignore=_results)
        for name, arguments in {
            "interp-patch --ckpt checkpoints/demo": ["interp-patch", "--ckpt", str(run)],
            "the same again": ["interp-patch", "--ckpt", str(run)],
            "interp-patch --help": ["interp-patch", "--help"],
            "interp-analyse localization": ["interp-analyse", "localization", "--ckpt", str(run)],
            "interp-train --preset tiny": ["interp-train", "--preset=tiny", f"--out={folder}/tiny"],
        }.items():
            start = perf_counter()
            running = subprocess.Popen(
                [BIN / arguments[0], *arguments[1:]], stdout=DEVNULL, stderr=DEVNULL
            )
            peak = peak_gigabytes(running)
            if running.returncode:
                raise RuntimeError(f"{name} ended with {running.returncode}")
            print(f"{name:40} {perf_counter() - start:6.2f} s {peak:6.2f} GB at most")


def peak_gigabytes(running: subprocess.Popen) -> float:
    """Resident memory of a command and all its processes together, at most; waits for its end."""
    whole, peak = psutil.Process(running.pid), 0.0
    while running.poll() is None:
        total = 0
        try:
            for process in (whole, *whole.children(recursive=True)):
                total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        peak = max(peak, total / 1e9)
        sleep(0.05)
    return peak


def _results(_: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "results" or name.endswith(".html")}


if __name__ == "__main__":
    main()
