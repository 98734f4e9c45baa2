"""The localization of a run, on one that has learnt nothing, and its page."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from analyses import cli, localization
from analyses.config import LocalizationConfig
from analyses.localization import find, job_curves, leaders, run
from analyses.localization_report import report
from interp.localization.checkpoint import QUESTIONS, localize
from interp.localization.jobs import ROLES


@pytest.fixture(scope="module")
def copy(suite, tmp_path_factory):
    return shutil.copytree(suite.path, tmp_path_factory.mktemp("localized") / "run")


@pytest.fixture(scope="module")
def asked(copy):
    return LocalizationConfig(str(copy), facts=16, people=40, workers=1)


@pytest.fixture(scope="module")
def found(asked):
    with pytest.MonkeyPatch.context() as smaller:
        smaller.setattr(localization, "N_EDITED", 6)
        smaller.setattr(localization, "N_IN_DEPTH", 24)
        return run(asked)


def test_every_checkpoint_is_asked_every_question_and_once(asked, found, copy, monkeypatch):
    suite, result = found
    for question in QUESTIONS:
        assert result.answers[question].step.values.tolist() == suite.steps
    files = sorted((copy / "results" / "localization").glob("*.nc"))
    assert len(files) == len(QUESTIONS) * len(suite.steps) + len(localization.DEPTH)
    for name in ("_of_step", "_in_depth"):  # nothing is computed again
        monkeypatch.setattr(localization, name, lambda *_, **__: pytest.fail("computed again"))
    monkeypatch.setattr(localization, "N_EDITED", 6)
    again = run(asked)[1]
    pd.testing.assert_frame_equal(again.roles, result.roles)
    xr.testing.assert_equal(again.depth["edits"], result.depth["edits"])


def test_a_run_that_has_learnt_nothing_has_no_roles_and_no_times(found):
    _, result = found
    assert not result.roles.named.any()
    assert result.formed is None and result.orders == {}  # four checkpoints
    assert set(result.roles.attribute) == {"all", *result.answers["needs"].attribute.values}
    assert list(leaders(result.roles).index) == list(ROLES)


def test_answers_are_those_of_single_checkpoints(found, asked):
    suite, result = found
    facts = suite.facts(16 * 6)
    alone = localize(suite.load(20), facts, facts, questions=["needs", "attention"])
    mine = result.answers["needs"].sel(step=20)
    np.testing.assert_allclose(mine.effect, alone["needs"].effect, atol=1e-5)
    np.testing.assert_allclose(
        result.answers["attention"].pattern.sel(step=20), alone["attention"].pattern, atol=1e-6
    )
    with pytest.raises(ValueError, match="no question 'nonsense'; there are needs, readings"):
        localize(suite.load(20), facts, facts, questions=["nonsense"])


def test_curves_are_those_of_the_leaders(found):
    _, result = found
    led = leaders(result.roles)
    curves = job_curves(result.answers, result.roles)
    layer, head = (int(x) for x in led.component["extraction"][1:].split("H"))
    pattern = result.answers["attention"].pattern.sel(edge="final ← names")
    mine = curves.sel(curve="extraction: in place")
    np.testing.assert_array_equal(mine, pattern.isel(layer=layer, head=head))
    needed = result.answers["needs"]
    at = (needed.kind == "all") & (needed.place == led.place["memory"])
    at &= needed.role == "memory"
    mine = curves.sel(curve="memory: needed")
    np.testing.assert_array_equal(mine, needed.effect.isel(cell=np.flatnonzero(at)[0]))


def test_with_enough_checkpoints_times_and_orders_are_found(found):
    """The same four checkpoints over and over have nothing that emerges; made to rise, they do."""
    answers = {}
    for name, answer in found[1].answers.items():
        answer = xr.concat([answer] * 3, "step").assign_coords(step=np.arange(12) * 10)
        answers[name] = answer.assign_attrs(found[1].answers[name].attrs)
    risen = xr.DataArray((np.arange(12) > 5).astype(float), dims="step")
    noise = np.random.default_rng(0).normal(0, 0.1, answers["needs"].sizes["fact"])
    risen = risen * xr.DataArray(1 + noise, dims="fact")
    answers["needs"]["effect"] = xr.zeros_like(answers["needs"].effect) + risen
    answers["attention"]["pattern"] = answers["attention"].pattern * 0 + 0.5
    result = find(answers, 40.0)
    formed = result.formed.sel(curve="extraction: needed")
    assert bool(formed.emerged) and float(formed.midpoint) == pytest.approx(55, abs=1)
    assert not bool(result.formed.emerged.sel(curve="extraction: in place"))
    assert not result.orders["needed"].significant  # they rise together
    lag = result.lags.sel(curve="extraction: needed")
    assert float(lag.lag) == pytest.approx(15, abs=1) and bool(lag.resolved)
    html = report(found[0], replace(result, depth=found[1].depth), "")
    assert "<td>+15 [" in html and find(answers, np.nan).lags is None


def test_the_page_leads_with_who_does_what_and_says_what_it_cannot(found):
    suite, result = found
    html = report(suite, result, "interp-analyse localization --x <y>")
    assert html == report(suite, result, "interp-analyse localization --x <y>")
    assert "nobody" in html and "too few checkpoints" in html
    assert "--x &lt;y&gt;" in html and "<y>" not in html.split("</script>", 1)[1]
    for name in ("timeline", "roles-memory", "readable", "direct", "parts"):
        assert f'id="figure-{name}"' in html


def test_the_command_writes_the_page_and_help_is_short(asked, found, monkeypatch, capsys, copy):
    monkeypatch.setattr(cli, "guarded", lambda name, command: command(sys.argv[1:]))
    words = ["localization", "--ckpt", str(copy), "--facts", "16", "--people", "40"]
    monkeypatch.setattr(sys, "argv", ["interp-analyse", *words, "--workers", "1"])
    cli.analyse()
    assert (copy / "localization.html").stat().st_size > 1e6
    monkeypatch.setattr(sys, "argv", ["interp-analyse", "--help"])
    cli.analyse()
    assert "interp-analyse localization --ckpt checkpoints/demo" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["interp-analyse", "nonsense"])
    with pytest.raises(
        ValueError, match="no analysis 'nonsense'; there are localization, emergence"
    ):
        cli.analyse()
    with pytest.raises(ValueError, match="facts is 0; it must be at least 1"):
        LocalizationConfig("x", facts=0)
