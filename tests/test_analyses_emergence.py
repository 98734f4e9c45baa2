"""When a file's curves rose, as the command says it."""

import sys

import numpy as np
import pandas as pd
import pytest

from analyses import interp_analyse as cli
from analyses.emergence import EmergenceConfig
from analyses.emergence.rise_times import run, said

STEPS = np.arange(12) * 100


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """Of ten facts each: one curve rises between 300 and 400, one between 800 and 900, one not."""
    rng, rows = np.random.default_rng(0), []
    for curve, risen in {"late": STEPS > 800, "early": STEPS > 300, "flat": STEPS < 0}.items():
        for fact in range(10):
            values = risen + rng.normal(0, 0.05, len(STEPS))
            rows += [(curve, step, fact, x) for step, x in zip(STEPS, values)]
    path = tmp_path_factory.mktemp("curves") / "curves.csv"
    pd.DataFrame(rows, columns=["curve", "step", "fact", "value"]).to_csv(path, index=False)
    return path


def test_each_curve_of_a_file_has_its_times_or_a_reason(curves):
    table, order = run(EmergenceConfig(str(curves)))
    found = table.set_index("curve")
    assert found.emerged.to_dict() == {"late": True, "early": True, "flat": False}
    assert found.midpoint["early"] == pytest.approx(350, abs=5)
    assert found.midpoint["late"] == pytest.approx(850, abs=5)
    assert found.midpoint_low["late"] < found.midpoint["late"] < found.midpoint_high["late"]
    assert found.resolution_midpoint["early"] == 100
    assert order.labels == ("early", "late") and order.significant
    text = said(table, order)
    assert "early: onset 31" in text and "flat: no step, " in text
    assert "order of midpoints: early → late (significant, so in 100% of bootstrap samples)" in text


def test_a_single_curve_needs_no_label_and_no_facts(tmp_path):
    path = tmp_path / "one.csv"
    pd.DataFrame({"step": STEPS, "value": STEPS > 500}).astype(float).to_csv(path, index=False)
    table, order = run(EmergenceConfig(str(path)))
    assert order is None and table.midpoint.tolist() == pytest.approx([550])
    assert said(table, order).startswith("value: onset 510, checkpoints 100 apart; midpoint 550")


def test_the_command_prints_and_writes_the_table(curves, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "guarded", lambda name, command: command(sys.argv[1:]))
    out = tmp_path / "times.csv"
    words = ["interp-analyse", "emergence", "--curves", str(curves), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    cli.analyse()
    assert "late: onset" in capsys.readouterr().out
    assert pd.read_csv(out).curve.tolist() == ["late", "early", "flat"]


def test_steps_that_are_not_whole_are_said_to_a_tenth_of_the_checkpoints_distance(tmp_path):
    epochs = np.arange(12) / 4
    path = tmp_path / "epochs.csv"
    table = pd.DataFrame({"step": epochs, "value": (epochs > 0.7) + 0.1 * (epochs > 0.45)})
    table.to_csv(path, index=False)
    text = said(*run(EmergenceConfig(str(path))))
    assert text == (
        "value: onset 0.5, checkpoints 0.25 apart; midpoint 0.61, checkpoints 0.25 apart; "
        "completion 0.72, checkpoints 0.25 apart"
    )


@pytest.mark.parametrize("spelling", ["the same", "another", "a symlink", "a hard link"])
def test_curves_are_not_overwritten_by_their_times(curves, tmp_path, monkeypatch, capsys, spelling):
    path = tmp_path / "curves.csv"
    path.write_bytes(curves.read_bytes())
    (tmp_path / "symlink.csv").symlink_to(path)
    (tmp_path / "link.csv").hardlink_to(path)
    other = {"the same": path, "another": f"{tmp_path}/./curves.csv"}
    links = {"a symlink": tmp_path / "symlink.csv", "a hard link": tmp_path / "link.csv"}
    out = str((other | links)[spelling])
    monkeypatch.setattr(
        sys, "argv", ["interp-analyse", "emergence", "--curves", str(path), "--out", out]
    )
    with pytest.raises(SystemExit):
        cli.analyse()
    said = capsys.readouterr().err
    assert said == (
        f"interp-analyse: error: out is {out}, the file of the curves; choose another --out\n"
    )
    assert path.read_bytes() == curves.read_bytes()


def test_many_curves_are_set_in_order_whatever_the_confidence(tmp_path):
    """Their pairs need more resamples than the usual 1000 to be significant."""
    rng = np.random.default_rng(0)
    rows = [
        (f"curve {i}", step, fact, (step > 100 * i + 50) + rng.normal(0, 0.02))
        for i in range(9)
        for step in STEPS
        for fact in range(5)
    ]
    path = tmp_path / "many.csv"
    pd.DataFrame(rows, columns=["curve", "step", "fact", "value"]).to_csv(path, index=False)
    table, order = run(EmergenceConfig(str(path)))
    assert table.emerged.sum() == len(order.labels) > 7 and order.labels[0] < order.labels[-1]
