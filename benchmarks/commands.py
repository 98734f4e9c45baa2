"""Seconds of ``interp-patch`` on the demo run, from shell to report, and again; of its ``--help``;
and of training the tiny preset.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

BIN = Path(sys.executable).parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = shutil.copytree("checkpoints/demo", Path(folder) / "demo", ignore=_results)
        for name, arguments in {
            "interp-patch --ckpt checkpoints/demo": ["interp-patch", "--ckpt", str(run)],
            "the same again": ["interp-patch", "--ckpt", str(run)],
            "interp-patch --help": ["interp-patch", "--help"],
            "interp-train --preset tiny": ["interp-train", "--preset=tiny", f"--out={folder}/tiny"],
        }.items():
            start = perf_counter()
            subprocess.run([BIN / arguments[0], *arguments[1:]], check=True, capture_output=True)
            print(f"{name:40} {perf_counter() - start:6.2f} s")


def _results(_: str, names: list[str]) -> set[str]:
    return {"results", "report.html"} & set(names)


if __name__ == "__main__":
    main()
