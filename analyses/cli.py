"""``interp-analyse NAME``: each analysis is a command."""

from inspect import cleandoc
from pathlib import Path

from analyses.config import EmergenceConfig, LocalizationConfig
from interp.shell import command_line, guarded, parse, progress


def analyse() -> None:
    """Entry point of ``interp-analyse``."""
    guarded("interp-analyse", _analyse)


def _analyse(arguments: list[str]) -> None:
    """usage: interp-analyse NAME [...]

    Ask a scientific question. NAME is one of:

    localization   which heads and MLPs attend to names, hold facts and extract them, since when

    emergence      when curves of your own rose, from a CSV

    Examples:

    interp-analyse localization --ckpt checkpoints/demo

    interp-analyse emergence --curves docs/accuracy.csv

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
    from interp.files import check_file, check_writable, write_bytes
    from interp.suite import load_suite, select_steps

    suite = load_suite(config.ckpt)
    total = len(select_steps(suite, config.steps))
    target = Path(config.report or suite.path / "localization.html")
    check_writable(Path(config.out or suite.path / "results" / "localization")), check_file(target)
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
    from analyses.emergence import run, said

    table, order = run(config)
    print(said(table, order))
    if config.out:
        write_bytes(Path(config.out), table.to_csv(index=False).encode())


ANALYSES = {"localization": _localization, "emergence": _emergence}
