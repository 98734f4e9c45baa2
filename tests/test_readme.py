"""Every command and snippet in README and docs runs."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_studies import N_TABLES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORTER = {
    "interp-train --preset tiny --out runs/tiny": "--n-steps 20 --dense-until 10",
    "interp-analyse localization --ckpt checkpoints/demo": "--facts 4 --people 40 --workers 1",
    "interp-analyse attention-attribution --ckpt checkpoints/demo": "--facts 12 --workers 1",
    "interp-analyse circuits --ckpt checkpoints/demo": "--steps 600,6500 --facts 12 --workers 1",
    "interp-analyse associative-memory": "--preset smoke --seeds 1",
}
ELSEWHERE = {f"interp-analyse {name}" for name in N_TABLES}
"""Commands that ``test_studies`` runs, at their smallest size."""

RUN_ALL = """
import shlex, sys
from analyses.interp_analyse import analyse
from interp.cli import interp_patch, interp_report, interp_train, shell

shell.tune_process()
shell.tune_process = lambda: None  # done, and can't be done twice
mains = {"interp-train": interp_train.main, "interp-patch": interp_patch.main,
         "interp-report": interp_report.main, "interp-analyse": analyse}
for command in sys.stdin.read().splitlines():
    print(command, file=sys.stderr)
    sys.argv = shlex.split(command)
    mains[sys.argv[0]]()
"""


def blocks(kind):
    return [b for p in PAGES for b in re.findall(rf"```{kind}\n(.*?)```", p.read_text(), re.S)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkout with the demo run's first and last checkpoint and the one the docs ask for."""
    folder = tmp_path_factory.mktemp("checkout")
    demo = ROOT / "checkpoints" / "demo"
    steps = sorted(path.name for path in demo.glob("step-*"))
    unused = [step for step in steps[1:-1] if step != "step-000600"]
    leave = shutil.ignore_patterns(*unused, "results", "resume", "*.html", ".lock")
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "accuracy.csv", folder / "docs")
    shutil.copytree(demo, folder / "checkpoints" / "demo", ignore=leave)
    return folder


def shorter(command):
    """The command with fewer facts, people, steps or checkpoints."""
    if command.startswith("interp-patch"):
        return re.sub(r" --facts \d+", "", command) + " --facts 6"
    if "--schedule" in command:
        return f"{command} --dense-until 0 --checkpoint-every 40"
    return f"{command} {SHORTER.get(command, '')}"


def test_every_command_runs_in_the_order_of_the_page(folder):
    """One process runs them all, without the type checker, as users have it."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    commands = dict.fromkeys(line for line in lines if line.startswith("interp-"))
    commands = [command for command in commands if command not in ELSEWHERE]
    assert len(commands) >= 5
    typed = "\n".join(shorter(command) for command in commands)
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=typed, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("code", blocks("python"))
def test_every_snippet_runs_and_gives_the_values_beside_it(folder, monkeypatch, code):
    monkeypatch.chdir(folder)
    names = {}
    for part in ast.parse(code).body:
        line = code.splitlines()[part.end_lineno - 1]
        if isinstance(part, ast.Expr) and (value := stated(line)) is not None:
            assert eval(compile(ast.Expression(part.value), "README.md", "eval"), names) == value
        else:
            exec(compile(ast.Module([part], []), "README.md", "exec"), names)
    if "accuracy.csv" in code:  # the page says that docs/accuracy.csv is what it writes
        assert Path("accuracy.csv").read_bytes() == (ROOT / "docs/accuracy.csv").read_bytes()


def stated(line):
    """The value in the comment that ends a line; None for a comment in words."""
    try:
        return ast.literal_eval(line.partition("  # ")[2])
    except (SyntaxError, ValueError):
        return None


def test_values_are_stated_beside_snippets():
    lines = [line for block in blocks("python") for line in block.splitlines()]
    assert len([line for line in lines if stated(line) is not None]) >= 2
    assert stated("x  # (1, 'a')") == (1, "a") and stated("x  # a plotly figure") is None


def test_make_targets_on_the_page_exist():
    for target in ("demo", "test"):
        said = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert said.returncode == 0
    assert "interp-patch --ckpt checkpoints/demo" in (ROOT / "Makefile").read_text()


def test_the_page_on_architecture_names_every_folder():
    page = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "interp").rglob("__init__.py"):
        room = path.parent.relative_to(ROOT).parts[:2]
        assert len(room) < 2 or f"`{'/'.join(room)}/`" in page, path


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
