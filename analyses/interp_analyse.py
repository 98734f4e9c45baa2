"""``interp-analyse NAME``: each analysis is a command."""

import os
import sys
from functools import partial
from importlib import import_module
from inspect import cleandoc
from pathlib import Path

from analyses.options import (
    CurriculumConfig,
    EmergenceConfig,
    LocalizationConfig,
    PhasesConfig,
    StudyConfig,
)
from interp.cli.shell import command_line, guarded, parse, progress


def analyse() -> None:
    """Entry point of ``interp-analyse``."""
    guarded("interp-analyse", _analyse)


def _analyse(arguments: list[str]) -> None:
    """usage: interp-analyse NAME [...]

    Ask a scientific question. NAME is one of:

    localization   which heads and MLPs attend to names, hold facts and extract them, since when

    emergence      when curves of your own rose, from a CSV

    These train runs, or read those they trained before:

    phases         plateau, attention and hallucination over training

    scaling        the plateau's length by number of people, batch, width and learning rate

    distributions  some people met more often than others

    curriculum     which warm-up on few people pays, within a budget of steps

    attention-patching   trained by the attention patterns of another checkpoint

    templates      in how many sentences a fact is told

    Examples:

    interp-analyse localization --ckpt checkpoints/demo

    interp-analyse emergence --curves docs/accuracy.csv

    interp-analyse phases --ckpt checkpoints/demo

    interp-analyse curriculum --people 1000 --steps 1500

    interp-analyse localization --help
    """
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(cleandoc(_analyse.__doc__))
    elif name not in ANALYSES:
        raise ValueError(f"no analysis {name!r}; there are {', '.join(ANALYSES)}")
    else:
        ANALYSES[name](rest)


def _localization(arguments: list[str]) -> None:
    """Which heads and MLPs attend to names, hold facts and extract them, and since when.

    Examples:

    interp-analyse localization --ckpt checkpoints/demo

    interp-analyse localization --ckpt checkpoints/demo --steps every:4 --facts 32 --workers 1

    Writes results, from which a second run goes on, and an interactive report.
    """
    config = parse(
        LocalizationConfig, "interp-analyse localization", _localization.__doc__, arguments
    )
    from analyses.localization import run
    from analyses.localization_report import report
    from interp.files import check_page, check_writable, write_bytes
    from interp.suite import load_suite, select_steps

    suite = load_suite(config.ckpt)
    total = len(select_steps(suite, config.steps))
    target = Path(config.report or suite.path / "localization.html")
    results = Path(config.out or suite.path / "results" / "localization")
    check_writable(results), check_page(target)
    command = command_line("interp-analyse", ["localization", *arguments])
    with progress() as bar:
        task = bar.add_task("localizing, checkpoint", total=total + 1)
        suite, found = run(config, command=command, on_step=lambda n: bar.update(task, completed=n))
    write_bytes(target, report(suite, found, command).encode())
    print(f"report: {target}  (open it in a browser)")


def _emergence(arguments: list[str]) -> None:
    """When curves rose: onset, midpoint and completion (10, 50 and 90 % of the rise), with
    intervals over facts; or that they have no step.

    Examples:

    interp-analyse emergence --curves docs/accuracy.csv

    interp-analyse emergence --curves docs/accuracy.csv --out times.csv
    """
    config = parse(EmergenceConfig, "interp-analyse emergence", _emergence.__doc__, arguments)
    from interp.files import check_file, write_bytes

    if config.out:
        check_file(Path(config.out))
        if os.path.exists(config.curves) and _is_same(config.out, config.curves):
            raise ValueError(f"out is {config.out}, the file of the curves; choose another --out")
    from analyses.emergence import run, said

    table, order = run(config)
    print(said(table, order))
    if config.out:
        write_bytes(Path(config.out), table.to_csv(index=False).encode())


def _is_same(one: str, other: str) -> bool:
    return os.path.exists(one) and os.path.samefile(one, other)


def _study(name: str, arguments: list[str]) -> None:
    kind, about, takes, examples = STUDIES[name]
    listed = "\n\n".join(f"    interp-analyse {example}" for example in examples)
    description = f"""{about} With --preset laptop: {takes} on two cores.

    Examples:

{listed}

    Trains runs into OUT/runs, which all studies of a size share: what is there is used, what was
    interrupted goes on. Writes tables (CSV) and a page of figures, beside the paper's
    (arXiv 2503.21676), to OUT.
    """
    config = parse(kind, f"interp-analyse {name}", description, arguments)
    from analyses.studies import save
    from interp.files import check_writable

    study = import_module(f"analyses.{name.replace('-', '_')}").study
    check_writable(Path(config.folder))
    command = command_line("interp-analyse", [name, *arguments])
    taken: dict[str, tuple[int, int]] = {}
    told: set[str] = set()
    with progress() as bar:
        task = bar.add_task("preparing", total=None)

        def on_step(run: str, step: int, n_steps: int) -> None:
            taken[run] = step, n_steps
            done, total = (sum(x) for x in zip(*taken.values()))
            ended = sum(a == b for a, b in taken.values())
            said = f"{ended} of {len(taken)} runs; steps of all"
            if bar.disable and run not in told and step == n_steps:  # a log file
                told.add(run)
                print(f"interp-analyse: {run} is done; {said}: {done} of {total}", file=sys.stderr)
            bar.update(task, completed=done, total=total, description=said)

        found = study(config, command=command, on_step=on_step)
    target = save(found, name, Path(config.folder), command)
    if config.preset == "smoke":
        print("smoke: too small to show anything but that it works")
    print(f"{found.said}\ntables: {config.folder}\nreport: {target}  (open it in a browser)")


STUDIES = {
    "phases": (
        PhasesConfig,
        "When the plateau begins and ends, where attention goes, and since when held-out people "
        "are hallucinated about.",
        "3 runs, 10 minutes",
        ("phases", "phases --ckpt checkpoints/demo"),
    ),
    "scaling": (
        StudyConfig,
        "How the plateau grows with the number of people, as a power law with intervals, and what "
        "batch size, width and learning rate change.",
        "21 runs, 50 minutes",
        ("scaling", "scaling --preset paper --workers 1"),
    ),
    "distributions": (
        StudyConfig,
        "What it changes if people are met by an inverse power law, or some are celebrities: "
        "plateau, final loss, accuracy by frequency.",
        "54 runs, 80 minutes",
        ("distributions",),
    ),
    "curriculum": (
        CurriculumConfig,
        "Which warm-up on few people pays within a budget of steps, with the gain over uniform "
        "sampling on fresh seeds.",
        "13 runs, 30 minutes",
        ("curriculum", "curriculum --people 1000 --steps 1500"),
    ),
    "attention-patching": (
        StudyConfig,
        "What a model learns by the attention patterns of another checkpoint, by that one's step: "
        "from the start, frozen, or learnt on few people.",
        "45 runs, 80 minutes",
        ("attention-patching",),
    ),
    "templates": (
        StudyConfig,
        "In how many sentences a fact must be told, and whether their order must change.",
        "6 runs, 15 minutes",
        ("templates",),
    ),
}
"""By name: what it can be told, what it asks, what it takes on two cores, examples."""
ANALYSES = {"localization": _localization, "emergence": _emergence} | {
    name: partial(_study, name) for name in STUDIES
}
