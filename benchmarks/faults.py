"""Bad input, damage, kills, full disks, races and hostile texts, tried on every command.

``python -m benchmarks.faults``: what each case must end in is a clean error (exit code 2 and one
line that names what is wrong) or the right value. Parts:

A  the rows of ``benchmarks.fault_table`` and its continuations
B  truncations and single bit flips of every file of a run folder with results
C  kill -9 at random moments, then the same command again, to its end
D  a full disk
E  two processes on one folder
F  hostile texts, and the pages with them in a browser

Exit code 1 if any case ended in a traceback, in silence with another value, not at all, or with
data lost.
"""

import random
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.fault_flips import damaged_files, damages
from benchmarks.fault_inputs import make_template
from benchmarks.fault_kills import (
    BOTH,
    DELAYS,
    FULL,
    SHARES,
    full_disks,
    killed,
    two_at_once,
)
from benchmarks.fault_pages import hostile_texts
from benchmarks.fault_rows import ROWS, bad_inputs
from benchmarks.fault_runner import BAD, KINDS, Findings, load
from interp.cli.shell import progress

PARTS = ("A", "B", "C", "D", "E", "F")


def main(
    parts: tuple[str, ...] = PARTS,
    kills: int = 100,
    flips: int = 4,
    seed: int = 0,
    only: str = "",
    sample: int = 0,
) -> None:
    """Try every command with bad input, damage, kills, full disks, races and hostile texts.

    Args:
        parts: Which to try.
        kills: How many in part C.
        flips: Bit flips a file in part B.
        seed: Of places and moments.
        only: Rows of part A whose sentence or command has this text.
        sample: So many rows of part A, evenly spread, and two places of part B; 0 is all.
    """
    load()
    found = Findings()
    with tempfile.TemporaryDirectory() as folder:
        template = make_template(Path(folder) / "template")
        place = Path(folder) / "case"
        rows = [row for row in ROWS if only in row.what or only in row.where]
        places = damages(template, flips, seed)
        if sample:
            rows = rows[:: max(1, len(rows) // sample)]
            places = random.Random(seed).sample(places, 2)
        todo: dict[str, tuple[int, Iterable[None]]] = {
            "A": (len(rows), bad_inputs(rows, template, place, found)),
            "B": (len(places), damaged_files(places, template, place, found)),
            "C": (kills, killed(kills, seed, template, place, found)),
            "D": (len(FULL) * len(SHARES), full_disks(template, place, found)),
            "E": (len(BOTH) * len(DELAYS), two_at_once(template, place, found)),
            "F": (7, hostile_texts(place, found)),
        }
        with progress() as bar:
            for part in parts:
                total, cases = todo[part]
                task = bar.add_task(f"part {part}", total=total)
                for _ in cases:
                    bar.advance(task)
    say(found)
    sys.exit(1 if found.bad else 0)


def say(found: Findings) -> None:
    """Prints counts by part and kind, and every case that was neither clean nor right."""
    table = Table("part", *KINDS, title="Faults")
    for part in dict.fromkeys(finding.part for finding in found.all):
        table.add_row(part, *(str(found.count(part, kind)) for kind in KINDS))
    Console(width=120).print(table)
    for finding in found.all:
        if finding.kind in (*BAD, "other message"):
            print(f"{finding.part} {finding.kind}: {finding.what}: {finding.got}")


if __name__ == "__main__":
    tyro.cli(main)
