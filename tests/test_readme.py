"""Every command and snippet in README and docs runs, and prints what the page says.

A text block right below a Python or shell block is what that block prints. A block with a title is
a file of that name.
"""

import ast
import json
import linecache
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from test_studies import N_TABLES

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "analyses" / "results" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))),
]
SHORTER = {
    "interp-train --preset tiny --out runs/tiny": "--n-steps 20 --dense-until 10",
    "interp-analyse localization --ckpt checkpoints/demo": "--facts 4 --people 40 --workers 1",
    "interp-analyse attention-attribution --ckpt checkpoints/demo": "--facts 12 --workers 1",
    "interp-analyse circuits --ckpt checkpoints/demo": "--steps 600,6500 --facts 12 --workers 1",
    "interp-analyse associative-memory": "--preset smoke --seeds 1",
    "interp-train --preset tiny --people-csv countries.csv --templates templates.csv "
    "--out runs/countries": "--n-steps 20 --dense-until 10",
    "interp-analyse localization --ckpt runs/countries": "--steps 0,20 --workers 1",
}
ELSEWHERE = {f"interp-analyse {name}" for name in N_TABLES}
"""Commands that ``test_studies`` runs, at their smallest size."""

RUN_ALL = """
import io, json, shlex, sys
from contextlib import redirect_stdout
sys.path.remove("")  # its folder analyses would hide ours
import analyses
from analyses.interp_analyse import analyse
from interp.cli import (
    interp_audit, interp_convert, interp_patch, interp_report, interp_train, shell
)

shell.tune_process()
shell.tune_process = lambda: None  # done, and can't be done twice
mains = {"interp-train": interp_train.main, "interp-patch": interp_patch.main,
         "interp-report": interp_report.main, "interp-analyse": analyse,
         "interp-audit": interp_audit.main, "interp-convert": interp_convert.main}
analyses.__path__.append("analyses")  # those that a page writes
for command in json.load(sys.stdin):
    print(command, file=sys.stderr)
    sys.argv = shlex.split(command)
    with redirect_stdout(io.StringIO()) as printed:
        mains[sys.argv[0]]()
    print(json.dumps(printed.getvalue()))
"""


class Block(NamedTuple):
    """A block of code on a page."""

    page: str
    code: str
    printed: str | None
    """What stands in the text block right below; None if there is none."""


def blocks(kind: str) -> list[Block]:
    pattern = rf"^```{kind}\n(.*?)^```\n(?:\n*```text\n(.*?)^```\n)?"
    return [
        Block(page.name, found[1], found[2])
        for page in PAGES
        for found in re.finditer(pattern, page.read_text(), re.S | re.M)
    ]


def files() -> Iterator[tuple[str, str]]:
    """Names and contents of the files that pages show."""
    for page in PAGES:
        yield from re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```', page.read_text(), re.S | re.M)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkout with the demo run's first and last checkpoint and the one the docs ask for, the
    files that pages show, and a run with pickled weights.
    """
    folder = tmp_path_factory.mktemp("checkout")
    demo = ROOT / "checkpoints" / "demo"
    steps = sorted(path.name for path in demo.glob("step-*"))
    unused = [step for step in steps[1:-1] if step != "step-000600"]
    leave = shutil.ignore_patterns(*unused, "results", "resume", "*.html", ".lock")
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "accuracy.csv", folder / "docs")
    shutil.copytree(demo, folder / "checkpoints" / "demo", ignore=leave)
    pickled = shutil.copytree(demo / "step-000600", folder / "pickled-run" / "checkpoint-600")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for name, content in files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    subprocess.run([sys.executable, "make_models.py"], cwd=folder, check=True, capture_output=True)
    return folder


def shorter(command):
    """The command with fewer facts, people, steps or checkpoints."""
    if command.startswith("interp-patch"):
        return re.sub(r" --facts \d+", "", command) + " --facts 6"
    if "--schedule" in command:
        return f"{command} --dense-until 0 --checkpoint-every 40"
    return f"{command} {SHORTER.get(command, '')}"


def test_every_command_runs_in_the_order_of_the_page(folder):
    """One process runs them all, without the type checker, as users have it. A command whose output
    the page shows is run as it stands, others are made shorter.
    """
    shown = {}
    for block in blocks("bash"):
        commands = [line for line in block.code.splitlines() if line.startswith("interp-")]
        assert block.printed is None or len(commands) == 1, f"{block.page}: whose output is it?"
        for command in commands:
            if command not in ELSEWHERE:
                shown[command] = shown.get(command) or block.printed
    assert len(shown) >= 5
    typed = [command if printed else shorter(command) for command, printed in shown.items()]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps(typed),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for (command, wanted), line in zip(shown.items(), done.stdout.splitlines(), strict=True):
        assert wanted is None or json.loads(line) == wanted, command


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.page)
def test_every_snippet_runs_and_gives_the_values_beside_it(folder, monkeypatch, capsys, block):
    """Also that it prints what the page shows below it, and nothing if nothing is shown."""
    if "nnsight" in block.code:
        pytest.importorskip("nnsight", reason="nnsight is not installed: pip install '.[bench]'")
    monkeypatch.chdir(folder)
    # A cost estimate counts the memory of a batch for each core that this would use.
    monkeypatch.setattr("interp.patching.cost.torch.get_num_threads", lambda: 1)
    capsys.readouterr()
    names, lines = {}, block.code.splitlines()
    linecache.cache[block.page] = (len(block.code), None, [f"{x}\n" for x in lines], block.page)
    for part in ast.parse(block.code).body:
        line = lines[part.end_lineno - 1]
        if isinstance(part, ast.Expr) and (value := stated(line)) is not None:
            assert eval(compile(ast.Expression(part.value), block.page, "eval"), names) == value
        else:
            exec(compile(ast.Module([part], []), block.page, "exec"), names)
    assert capsys.readouterr().out == (block.printed or "")
    if "accuracy.csv" in block.code:  # the page says that docs/accuracy.csv is what it writes
        assert Path("accuracy.csv").read_bytes() == (ROOT / "docs/accuracy.csv").read_bytes()


def stated(line):
    """The value in the comment that ends a line; None for a comment in words."""
    try:
        return ast.literal_eval(line.partition("  # ")[2])
    except (SyntaxError, ValueError):
        return None


def test_values_are_stated_beside_snippets():
    lines = [line for block in blocks("python") for line in block.code.splitlines()]
    assert len([line for line in lines if stated(line) is not None]) >= 2
    assert stated("x  # (1, 'a')") == (1, "a") and stated("x  # a plotly figure") is None


def test_make_targets_on_the_page_exist():
    for target in ("demo", "test", "docs"):
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
