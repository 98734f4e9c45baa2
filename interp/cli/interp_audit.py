"""``interp-audit``. Heavy imports wait until the arguments are read."""

import sys
from collections.abc import Sequence
from pathlib import Path

from interp.cli.shell import guarded, parse, progress
from interp.config import AuditConfig


def main() -> None:
    """Entry point of ``interp-audit``."""
    guarded("interp-audit", _audit)


def _audit(arguments: list[str]) -> None:
    """Find identical, mixed-up or damaged checkpoints in a suite of any model.

    Reads all weights once and prints a table of what is wrong: damaged or missing files, configs,
    shapes and types that differ between steps, NaN, steps that share weights, steps of another run
    or in the wrong order, and, as a note, missing steps.

    Examples:

    interp-audit --ckpt checkpoints/demo

    interp-audit --ckpt checkpoints/demo --steps 0,100,200 --out digests.csv

    The exit code is 0 if nothing is wrong, 1 if something is, and 2 if the suite can't be opened.
    """
    config = parse(AuditConfig, "interp-audit", _audit.__doc__ or "", arguments)
    from interp.files import check_file, write_bytes
    from interp.results.audit import audit
    from interp.suite import load_suite, select_steps

    suite = load_suite(config.ckpt)
    steps = select_steps(suite, config.steps)
    if config.out:
        check_file(Path(config.out))
    with progress() as bar:
        task = bar.add_task("reading weights, checkpoint", total=len(steps))
        found = audit(suite, steps, on_step=lambda n: bar.update(task, completed=n))
    _print(suite.name, steps, found)
    if config.out:
        write_bytes(Path(config.out), found.tensors.to_csv(index=False).encode())
        print(f"digests: {config.out}")
    if not found.sound:
        sys.exit(1)


def _print(name: str, steps: Sequence[int], found) -> None:
    """The table: a row a check without findings, and a row a finding."""
    from rich.console import Console
    from rich.table import Table

    from interp.results.audit import CHECKS

    of = f"{len(steps)} checkpoint{'s' * (len(steps) > 1)}, {len(found.tensors):,} tensors"
    table = Table("check", "result", "steps", "finding", title=f"{name}: {of}")
    for check in CHECKS:
        of_check = [one for one in found.findings if one.check == check]
        if not of_check:
            table.add_row(check, "ok", "", "")
        for one in of_check:
            shown = ", ".join(map(str, one.steps[:6])) + (", ..." if len(one.steps) > 6 else "")
            table.add_row(check, "wrong" if one.wrong else "note", shown, one.text)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(table)
