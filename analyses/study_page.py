"""Runs a training study from the command line with a progress bar, and writes its tables and a page
of figures.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from analyses.options import StudyConfig
from analyses.studies import Study
from interp.files import check_writable, write_bytes, write_json
from interp.provenance import provenance
from interp.report.page import Bullets, Plot, Prose, Section, Table, anchor, page

N_FIRST = 8
"""Findings above the figures; the others are below them."""


def run_study(name: str, module: str, config: StudyConfig, *, command: str, bar) -> str:
    """The findings in words, and where they were written."""
    study = import_module(module).study
    check_writable(Path(config.folder))
    found = study(config, command=command, on_step=_shown_on(bar))
    if config.cluster.is_part:
        return "all runs are trained; the same command without --status or --task-id writes tables"
    target = save(found, name, Path(config.folder), command)
    smoke = "smoke: too small to show anything but that it works\n"
    return (
        f"{smoke if config.preset == 'smoke' else ''}{found.said}\ntables: {config.folder}\n"
        f"report: {target}  (open it in a browser)"
    )


def _shown_on(bar) -> Callable[[str, int, int], None]:
    """Shows the steps of all runs together; without a terminal, reports each finished run."""
    task = bar.add_task("preparing", total=None)
    taken: dict[str, tuple[int, int]] = {}
    told: set[str] = set()

    def on_step(run: str, step: int, n_steps: int) -> None:
        taken[run] = step, n_steps
        done, total = (sum(x) for x in zip(*taken.values()))
        ended = sum(a == b for a, b in taken.values())
        said = f"{ended} of {len(taken)} runs; steps of all"
        if bar.disable and run not in told and step == n_steps:  # a log file
            told.add(run)
            print(f"interp-analyse: {run} is done; {said}: {done} of {total}", file=sys.stderr)
        bar.update(task, completed=done, total=total, description=said)

    return on_step


def save(study: Study, name: str, folder: Path, command: str) -> Path:
    """The page of the study, written to ``folder`` beside its tables, but for empty ones, and what
    made them.
    """
    tables = {key: table for key, table in study.tables.items() if len(table)}
    for table_name, table in tables.items():
        csv = table.to_csv(index=False, float_format="%.6g")
        write_bytes(folder / f"{table_name}.csv", csv.encode())
    names = set().union(*(table.run for table in tables.values() if "run" in table))
    made = {"command": command, "runs": len(names)} | provenance()
    write_json(folder / f"{name}.json", made)
    shown = {
        key: ", ".join(f"{a} {b}" for a, b in x.items()) if isinstance(x, dict) else str(x)
        for key, x in made.items()
    }
    sections = [
        Section(heading, [Plot(anchor(heading), figure)])
        for heading, figure in study.figures.items()
    ]
    links = Prose("table_links.html.j2", {"names": list(tables)})
    lines = study.said.splitlines()
    if lines[N_FIRST:]:
        sections.append(Section("More findings", [Bullets(lines[N_FIRST:], "lead")]))
    sections.append(Section("Made by", [Table([], list(shown.items())), links]))
    lead = [Bullets(lines[:N_FIRST], "lead")]
    target = folder / f"{name}.html"
    write_bytes(target, page(name.replace("-", " ").capitalize(), lead, sections).encode())
    return target
