"""Imports point one way, and heavy ones wait."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import interp

ROOT = Path(interp.__file__).parent
ORDER = [
    "fields",
    "config",
    "files",
    "process",
    "cluster",
    "provenance",
    "statistics",
    "jupyter",
    "data",
    "dynamics",
    "model",
    "training",
    "suite",
    "patching",
    "localization",
    "attribution",
    "results",
    "report",
    "cli",
]
FORBIDDEN = {
    "config": {"torch", "transformer_lens", "numpy", "pandas", "xarray", "plotly"},
    "data": {"transformer_lens", "xarray", "plotly"},
    "model": {"xarray", "plotly", "pandas"},
    "dynamics": {"torch", "transformer_lens", "plotly"},
    "report": {"torch", "transformer_lens"},
    "patching": {"plotly"},
    "localization": {"plotly"},
    "attribution": {"plotly"},
}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path, *, everywhere: bool = True) -> set[str]:
    """Modules that a file imports, by full name; ``everywhere``: in functions and under
    TYPE_CHECKING too.
    """
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name for name in full if name in MODULES} or {node.module}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_comes_before_it(path):
    part = part_of(path)
    for name in imported(path):
        if name.startswith("interp."):
            other = name.split(".")[1]
            assert ORDER.index(other) <= ORDER.index(part), f"{part} imports {other}"
        assert name.split(".")[0] not in FORBIDDEN.get(part, set())
        assert name.split(".")[0] != "analyses"


def test_no_modules_import_each_other_in_a_ring():
    graph = {name: imported(path) & MODULES.keys() for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises a CycleError that names the ring


def test_every_module_has_its_place_in_the_order():
    assert {part_of(path) for path in FILES} == set(ORDER)


def test_no_file_name_stands_twice():
    analyses = Path(__file__).parents[1] / "analyses"
    both = (*FILES, *analyses.rglob("*.py"))
    names = Counter(path.name for path in both if path.name != "__init__.py")
    assert [name for name, n in names.items() if n > 1] == []


def test_only_the_command_line_prints_or_exits():
    for path in FILES:
        if part_of(path) not in ("cli",):
            calls = [
                n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)
            ]
            names = {f.id for f in calls if isinstance(f, ast.Name)}
            assert not names & {"print", "exit", "input"}, path


@pytest.mark.parametrize("module", ["interp", "interp.cli.interp_patch", "interp.config"])
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
