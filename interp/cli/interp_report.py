"""``interp-report``. Heavy imports wait until the arguments are read."""

import json
import warnings
from os.path import normpath
from pathlib import Path

from interp.cli.shell import guarded, parse
from interp.config import ReportConfig


def main() -> None:
    """Entry point of ``interp-report``."""
    guarded("interp-report", _report)


def _report(arguments: list[str]) -> None:
    """Make the HTML report again from a folder of results.

    Training curves are included if the run folder still has the checkpoints that the results are
    of.

    Example:

    interp-report --results checkpoints/demo/results/patching --out report.html

    If the folder has results for several questions (other facts or options), the report shows the
    most recent one, in both directions if it was asked in both.
    """
    config = parse(ReportConfig, "interp-report", _report.__doc__, arguments)
    from interp.files import check_page
    from interp.results.store import read_folder, read_other_direction

    check_page(Path(config.out))
    folder = Path(config.results)
    results = read_folder(folder)
    made_by = json.loads(next(iter(results.values())).attrs["made_by"])
    run = folder / made_by.get("run", "../..")
    other = read_other_direction(folder, results)
    metrics = metrics_of(run) if _are_of(results, run) else None
    write_report(results, other, run, metrics, Path(config.out))
    print(f"report: {config.out}")


def _are_of(results, run: Path) -> bool:
    """Whether the last checkpoint in ``results`` is the one in the run folder."""
    from interp.model.checkpoint_folder import step_folders
    from interp.suite import load_suite

    if not (run / "run.json").is_file() or not step_folders(run):
        return False
    suite, checkpoints = load_suite(run), next(iter(results.values())).attrs["checkpoints"]
    step, digest = max((int(step), digest) for step, digest in json.loads(checkpoints).items())
    same = step in suite.steps and suite.sha256(step) == digest
    if not same:
        warnings.warn(
            f"the results are of another run than the one in {normpath(run)}, or its checkpoints "
            "were replaced; its training curves are left out",
            stacklevel=2,
        )
    return same


def metrics_of(run: Path):
    """A run's metrics table; None if its folder has none."""
    from interp.training.metrics_table import read_metrics

    path = run / "metrics.parquet"
    return read_metrics(path) if path.is_file() and (run / "run.json").is_file() else None


def write_report(results, other, run: Path, metrics, target: Path, command: str = "") -> None:
    from interp.files import write_bytes
    from interp.report.patching_page import build_report
    from interp.training.run_folder import read_record

    page = build_report(
        results,
        other=other,
        run=None if metrics is None else read_record(run),
        metrics=metrics,
        title=f"Where and when {run.resolve().name} recalls facts",
        command=command,
    )
    write_bytes(target, page.encode())
