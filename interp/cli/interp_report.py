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
    """Make the HTML report again from a folder of results, or write its figures as images and its
    numbers as tables.

    Training curves are included if the run folder still has the checkpoints that the results are
    of.

    Examples:

    interp-report --results checkpoints/demo/results/patching --out report.html

    interp-report --results checkpoints/demo/results/patching --out tables --format csv

    If the folder has results for several questions (other facts or options), the report shows the
    most recent one, in both directions if it was asked in both.
    """
    config = parse(ReportConfig, "interp-report", _report.__doc__ or "", arguments)
    from interp.files import check_page
    from interp.results.store import read_folder, read_other_direction

    out = Path(config.out)
    if config.format == "html":
        check_page(out)
    else:
        _check_folder(out, config.format)
    folder = Path(config.results)
    results = read_folder(folder)
    made_by = json.loads(next(iter(results.values())).attrs["made_by"])
    run = folder / made_by.get("run", "../..")
    other = read_other_direction(folder, results)
    metrics = metrics_of(run) if _are_of(results, run) else None
    if config.format == "html":
        write_report(results, other, run, metrics, out)
        print(f"report: {out}")
    else:
        n_files = _write_files(results, other, run, metrics, out, config.format)
        print(f"{n_files} {config.format} files: {out}")


def _check_folder(out: Path, kind: str) -> None:
    """Makes sure that files of a format can be made, and written to the folder ``out``.

    Raises:
        ValueError: ``out`` is named as a file or is one, or images can't be drawn here.
    """
    from interp.files import check_writable
    from interp.report.images import browser

    if out.suffix in (".html", f".{kind}"):
        raise ValueError(f"{out} is named as a file; give a folder for {kind} files")
    if kind != "csv":
        browser()
    check_writable(out)


def _write_files(results, other, run: Path, metrics, folder: Path, kind: str) -> int:
    """Writes an image or a table of each site and of the training; the number of files."""
    from interp.files import write_bytes
    from interp.report.exports import figures_of, tables_of
    from interp.report.images import images
    from interp.training.run_folder import read_record

    results = {site: result for site, result in results.items() if result.patched.notnull().any()}
    if kind == "csv":
        tables = tables_of(results, other, metrics)
        contents = {name: table.to_csv(index=False).encode() for name, table in tables.items()}
    else:
        record = None if metrics is None else read_record(run)
        contents = images(figures_of(results, other, record, metrics), kind)
    for name, content in contents.items():
        write_bytes(folder / f"{name}.{kind}", content)
    return len(contents)


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


def write_report(
    results, other, run: Path, metrics, target: Path, command: str = "", name: str = ""
) -> None:
    """Writes the page of a sweep over the suite of this name, by default that of its folder."""
    from interp.files import write_bytes
    from interp.report.patching_page import build_report
    from interp.training.run_folder import read_record

    page = build_report(
        results,
        other=other,
        run=None if metrics is None else read_record(run),
        metrics=metrics,
        title=f"Where and when {name or run.resolve().name} recalls facts",
        command=command,
    )
    write_bytes(target, page.encode())
