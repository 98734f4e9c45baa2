"""Analyses register themselves, and are listed without importing what computes."""

import subprocess
import sys

import pytest

import analyses
from analyses import interp_analyse
from analyses.registry import registered

COLOURS = """
from dataclasses import dataclass
from analyses.registry import Analysis, imported_late

@dataclass(frozen=True)
class ColoursConfig:
    shade: str = "dark"

run = imported_late("analyses.colours.paint", "run")
ANALYSIS = Analysis("colours", "Which colours there are.", ColoursConfig, ("colours",), run)
"""
PAINT = """
def run(config, *, command, bar):
    return f"{config.shade} blue, by {command}"
"""


@pytest.fixture
def ask(monkeypatch):
    monkeypatch.setattr(interp_analyse, "guarded", lambda name, run: run(sys.argv[1:]))

    def asked(*words):
        monkeypatch.setattr(sys, "argv", ["interp-analyse", *words])
        interp_analyse.analyse()

    return asked


@pytest.fixture
def colours(monkeypatch, tmp_path):
    """One more analysis, which is nothing but a folder."""
    folder = tmp_path / "colours"
    folder.mkdir()
    (folder / "__init__.py").write_text(COLOURS)
    (folder / "paint.py").write_text(PAINT)
    monkeypatch.setattr(analyses, "__path__", [*analyses.__path__, str(tmp_path)])
    yield
    for name in ("analyses.colours", "analyses.colours.paint"):
        sys.modules.pop(name, None)


def test_a_new_folder_is_listed_documented_and_run(colours, ask, capsys):
    ask("--help")
    assert "colours: Which colours there are." in capsys.readouterr().out
    ask("colours", "--shade", "light")
    said = capsys.readouterr().out
    assert said == "light blue, by interp-analyse colours --shade light\n"
    with pytest.raises(SystemExit) as end:
        ask("colours", "--help")
    assert end.value.code == 0
    assert "interp-analyse colours\n" in capsys.readouterr().out


def test_the_registry_holds_all_analyses_those_that_train_runs_last():
    assert list(registered()) == [
        "associative-memory", "attention-attribution", "circuits", "emergence", "localization",
        "report",
        "attention-patching", "curriculum", "distributions", "finetuning", "hallucination",
        "mitigation", "phases", "scaling", "templates",
    ]  # fmt: skip
    assert [name for name, x in registered().items() if x.study] == list(registered())[6:]


def test_listing_the_analyses_imports_nothing_slow():
    slow = ["numpy", "pandas", "xarray", "torch", "plotly"]
    code = (
        "import sys; from analyses.registry import registered; registered();"
        f"print([name for name in {slow} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
