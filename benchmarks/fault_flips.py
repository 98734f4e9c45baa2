"""Part B: every file of a run folder with results, cut short or with one bit flipped at random
places, then the same patching and its report again.

A flip in weights that leaves them finite makes another model, which nothing can tell from one that
was trained so unless its digest is recorded: such cases are counted apart, as ``other model``.
"""

import random
from collections.abc import Iterable
from pathlib import Path

from benchmarks.fault_damage import cut, flip
from benchmarks.fault_inputs import PATCHED
from benchmarks.fault_runner import (
    Digests,
    Findings,
    agree,
    command,
    judge,
    new_folder,
    numbers,
    page_numbers,
    run,
)

COMMANDS = (
    f"interp-patch --ckpt done {PATCHED}",
    "interp-report --results done/results/patching --out report.html",
)


def damages(template: Path, n_flips: int, seed: int) -> list[tuple[str, str, float, int]]:
    """File, what is done, at which share of it, and to which bit; two cuts a file."""
    rng, places = random.Random(seed), []
    for path in sorted((template / "done").rglob("*")):
        if path.is_file() and path.stat().st_size:
            name = str(path.relative_to(template))
            places += [(name, "flip", rng.random(), rng.randrange(8)) for _ in range(n_flips)]
            places += [(name, "cut", rng.random(), 0) for _ in range(2)]
    return places


def damaged_files(
    places: list[tuple[str, str, float, int]], template: Path, place: Path, found: Findings
) -> Iterable[None]:
    """Adds a finding a (place, command); yields after each place."""
    wanted = {}
    for line in COMMANDS:
        folder = new_folder(place, template, {"done"})
        run(command(line.split()), folder)
        wanted[line] = _shown(folder, line)
    for name, what, share, bit in places:
        for line in COMMANDS:
            folder = new_folder(place, template, {"done"})
            path = str(folder / name)
            cut(path, share) if what == "cut" else flip(path, share, bit)
            ended = run(command(line.split()), folder)
            same = agree(_shown(folder, line), wanted[line])
            kind, got = judge(ended, ".", same)
            if kind == "silent" and what == "flip" and _is_weight(name):
                kind = "other model"
            where = f"bit {bit} of {name} flipped" if what == "flip" else f"{name} cut"
            found.add("B", f"{where} at {share:.4f}; {line.split()[0]}", kind, got)
        yield


def _shown(folder: Path, line: str) -> Digests:
    """Of the results of patching, or of the report's page."""
    if line.startswith("interp-patch"):
        return numbers(folder) | page_numbers(folder)
    return {"report.html": page_numbers(folder).get("report.html", "")}


def _is_weight(name: str) -> bool:
    return "/step-" in name and name.endswith("model.safetensors")
