"""Imports point one way, and heavy ones wait."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import interp

ROOT = Path(interp.__file__).parent
ORDER = [
    "fields",
    "config",
    "files",
    "process",
    "provenance",
    "statistics",
    "bios",
    "ragged",
    "model",
    "tensor_file",
    "boundary",
    "facts",
    "checkpoints",
    "training",
    "drawing",
    "suite",
    "patching",
    "localization",
    "results",
    "sweep",
    "dynamics",
    "emergence",
    "figures",
    "headline",
    "report",
    "shell",
    "cli",
]
FORBIDDEN = {
    "config": {"torch", "transformer_lens", "numpy", "pandas", "xarray", "plotly"},
    "bios": {"torch", "transformer_lens", "xarray", "plotly"},
    "model": {"xarray", "plotly", "pandas"},
    "results": {"torch", "transformer_lens", "plotly"},
    "dynamics": {"torch", "transformer_lens", "plotly"},
    "figures": {"torch", "transformer_lens"},
    "headline": {"torch", "transformer_lens"},
    "report": {"torch", "transformer_lens"},
    "patching": {"plotly"},
    "localization": {"plotly"},
    "emergence": {"torch", "transformer_lens", "plotly"},
}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path, *, at_start: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_start else ast.walk(tree)
    plain = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    nodes = tree.body if at_start else ast.walk(tree)
    return plain | {n.module for n in nodes if isinstance(n, ast.ImportFrom)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_comes_before_it(path):
    part = part_of(path)
    for name in imported(path, at_start=True):
        if name.startswith("interp."):
            other = name.split(".")[1]
            assert ORDER.index(other) <= ORDER.index(part), f"{part} imports {other}"
        assert name.split(".")[0] not in FORBIDDEN.get(part, set())
        assert name.split(".")[0] != "analyses"


def test_every_module_has_its_place_in_the_order():
    assert {part_of(path) for path in FILES} == set(ORDER)


def test_only_the_command_line_prints_or_exits():
    for path in FILES:
        if part_of(path) not in ("shell", "cli"):
            calls = [
                n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)
            ]
            names = {f.id for f in calls if isinstance(f, ast.Name)}
            assert not names & {"print", "exit", "input"}, path


@pytest.mark.parametrize("module", ["interp", "interp.cli", "interp.config"])
def test_torch_is_not_imported_before_it_is_needed(module):
    heavy = ["torch", "transformer_lens", "plotly"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    for name in interp.__all__:
        assert getattr(interp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = interp.nonsense
