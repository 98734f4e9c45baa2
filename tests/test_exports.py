"""``interp-report --format``: a file of each figure or table, whole or not at all."""

import shutil
import sys

import pandas as pd
import pytest

from interp.cli import interp_report
from interp.report import exports, images
from interp.results.store import read_folder
from interp.results.sweep import patch_suite
from interp.results.tidy_table import tidy_table

SITES = ["mlp_out", "z"]


@pytest.fixture(scope="module")
def patched(suite, facts, tmp_path_factory):
    """A folder of results in both directions, within a copy of the run."""
    run = shutil.copytree(suite.path, tmp_path_factory.mktemp("exports") / "run")
    for direction in ("noising", "denoising"):
        patch_suite(suite, facts, sites=SITES, steps=(10, 30), direction=direction,
                    out=run / "results" / "patching")  # fmt: skip
    return run / "results" / "patching"


@pytest.fixture
def report(monkeypatch, capsys):
    """Runs the command: (exit code, what it printed, what it said on stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["interp-report", *map(str, words)])
        monkeypatch.setattr("interp.cli.shell.tune_process", lambda: None)
        code = 0
        try:
            interp_report.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def test_tables_have_both_directions_and_the_numbers_of_the_results(
    patched, report, tmp_path, suite
):
    out = tmp_path / "tables"
    code, said, _ = report("--results", patched, "--out", out, "--format", "csv")
    assert code == 0 and f"3 csv files: {out}" in said
    assert sorted(path.name for path in out.iterdir()) == ["mlp_out.csv", "training.csv", "z.csv"]
    for site, result in read_folder(patched).items():
        read = pd.read_csv(out / f"{site}.csv")
        assert set(read.direction) == {"denoising", "noising"}
        own = read[read.direction == result.attrs["direction"]].reset_index(drop=True)
        pd.testing.assert_frame_equal(own, tidy_table(result), check_dtype=False, rtol=1e-6)
    curves = pd.read_csv(out / "training.csv").set_index(["split", "attribute", "step", "metric"])
    metrics = suite.metrics.set_index(["split", "attribute", "step"])
    for name, units in (("loss", "nats per value"), ("accuracy", "share of values")):
        row = curves.loc[("train", "average", 30, name)]
        assert row["mean"] == pytest.approx(metrics.loc[("train", "average", 30)][name], rel=1e-6)
        assert row.units == units


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_there_is_an_image_of_each_figure(patched, report, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(images, "browser", lambda: "chromium")  # test_images draws

    def drawn(figures, asked):
        assert asked == kind and figures["training"].data and figures["z"].data
        return {name: name.encode() for name in figures}

    monkeypatch.setattr(images, "images", drawn)
    code, *_ = report("--results", patched, "--out", tmp_path / "out", "--format", kind)
    assert code == 0
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    names = ["training", "mlp_out", "z", "enough-and-needed", "over-training"]
    assert found == {f"{name}.{kind}": name.encode() for name in names}


def test_a_run_without_checkpoints_and_one_direction_gives_fewer_figures(patched):
    results = read_folder(patched)
    assert list(exports.figures_of(results, None, None, None)) == [*SITES, "over-training"]
    assert list(exports.tables_of(results, None, None)) == SITES
    last = {site: result.isel(step=[-1]) for site, result in results.items()}
    assert list(exports.figures_of(last, None, None, None)) == SITES


def test_bad_input_gets_one_line_and_leaves_nothing(patched, report, tmp_path, monkeypatch):
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    (tmp_path / "file").write_text("")
    asked = ("--results", patched, "--out")
    for words, said in {
        (*asked, tmp_path / "a.png", "--format", "png"): "a.png is named as a file; give a folder",
        (*asked, tmp_path / "a.html", "--format", "csv"): "a.html is named as a file; give a fol",
        (*asked, tmp_path / "file", "--format", "csv"): "can't write to",
        (*asked, tmp_path / "x.html", "--format", "pdf"): "invalid choice 'pdf' for --format",
        ("--results", tmp_path, "--out", tmp_path, "--format", "csv"): "no results in",
    }.items():
        code, _, error = report(*words)
        assert code == 2 and error.count("\n") == 1 and said in error, error
    for kind in ("png", "svg"):
        monkeypatch.setenv("PATH", str(tmp_path))
        code, _, error = report(*asked, tmp_path / "out", "--format", kind)
        assert code == 2 and error.count("\n") == 1 and "install Chromium or Chrome" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_file_is_replaced_whole_or_left_as_it_was(patched, report, tmp_path, monkeypatch):
    (tmp_path / "z.csv").write_text("before")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "")))
    code, _, error = report("--results", patched, "--out", tmp_path, "--format", "csv")
    assert code == 2 and "free some space" in error
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"z.csv": "before"}
