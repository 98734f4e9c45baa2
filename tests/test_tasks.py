"""Sweeps shared among tasks: the same files as of one process, whoever is killed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import start

from interp.cluster import PiecesMissing
from interp.config import ClusterConfig
from interp.files import machine, temporary_of
from interp.results.pieces import marker_name
from interp.results.store import read_folder
from interp.results.sweep import patch_suite, patching_sweep
from interp.results.tasks import in_part, status
from interp.suite import load_suite

ROOT = Path(__file__).parents[1]
SITES = ["attn_out", "z"]
TASK = """
import os, sys, time
import torch
from interp import load_suite
from interp.config import ClusterConfig
from interp.results import sweep
from interp.results.sweep import patching_sweep
from interp.results.tasks import in_part

torch.set_num_threads(1)
run, out, task, n_tasks = sys.argv[1:5]
suite = load_suite(run)
asked = patching_sweep(suite, suite.facts(12, seed=3), sites=["attn_out", "z"], out=out)
config = ClusterConfig(task_id=int(task), n_tasks=int(n_tasks))
print(in_part([asked], config, workers=1, on_step=lambda n_done: None))
"""
STOPPED = TASK.replace("torch.set_num", """from functools import wraps
@wraps(sweep._patch_one)
def never_ends(suite, step, sites, **options):
    time.sleep(600)
sweep._patch_one = never_ends
torch.set_num""", 1)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """As in the tasks, since numbers differ with the number of threads by rounding."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def asked(suite, tmp_path):
    """A sweep into ``out``, not begun."""
    return patching_sweep(suite, suite.facts(12, seed=3), sites=SITES, out=tmp_path / "out")


def contents(folder: Path) -> dict[str, bytes]:
    """Of results and manifest; no temporary file may be there."""
    assert not list(folder.glob(".*.tmp"))
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def plain(suite, out, **options):
    patch_suite(suite, suite.facts(12, seed=3), sites=SITES, out=out, **options)
    return contents(out)


def task(asked, task_id, n_tasks):
    config = ClusterConfig(task_id=task_id, n_tasks=n_tasks)
    return in_part([asked], config, workers=1, on_step=lambda n_done: None)


def waited_for(found, *, seconds=60):
    end = time.monotonic() + seconds
    while not (there := found()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return there


def test_tasks_at_the_same_time_and_a_collecting_run_leave_the_files_of_one_process(
    run, suite, tmp_path
):
    tasks = [start(TASK, run, tmp_path / "out", i, 3) for i in (2, 0, 1, 1)]  # one of them twice
    for child in tasks:
        child.join()
        assert child.exitcode == 0
    assert len(list((tmp_path / "out").glob("step-*.nc"))) == 8
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert plain(suite, tmp_path / "out") == plain(suite, tmp_path / "alone")


def test_pieces_are_dealt_in_turn_whatever_is_done(asked):
    assert "its 2 pieces of 4 done" in task(asked, 0, 3)
    assert status([asked]).done == [0, 30]
    assert "its 1 piece of 4 done" in task(asked, 1, 3)
    assert status([asked]).missing == [20]
    assert "its 0 pieces of 4 done" in task(asked, 4, 5)  # more tasks than pieces


def test_a_task_computes_only_what_is_missing(asked, monkeypatch):
    task(asked, 0, 1)
    times = {path: path.stat().st_mtime_ns for path in asked.out.iterdir()}
    next(asked.out.glob("step-000010.z.*.nc")).unlink()
    task(asked, 0, 1)
    after = {path: path.stat().st_mtime_ns for path in asked.out.iterdir()}
    assert [path.name[:14] for path in times if times[path] != after[path]] == ["step-000010.z."]


def test_the_status_says_what_is_missing_and_which_tasks_to_run_again(asked):
    task(asked, 1, 3)
    with pytest.raises(PiecesMissing) as missing:
        in_part([asked], ClusterConfig(status=True, n_tasks=3), workers=1, on_step=print)
    assert str(missing.value).splitlines() == [
        "1 of 4 pieces done, one a checkpoint",
        "missing: 0, 20, 30",
        "tasks to run again: 0,2",
    ]
    task(asked, 0, 1)
    done = in_part([asked], ClusterConfig(status=True), workers=1, on_step=print)
    assert done == "4 of 4 pieces done, one a checkpoint"


def test_a_result_of_another_question_or_a_damaged_one_is_missing(asked, suite, tmp_path):
    task(asked, 0, 1)
    facts = suite.facts(12, seed=3)
    other = patching_sweep(suite, facts, sites=SITES, out=asked.out, direction="noising")
    assert status([other]).missing == [0, 10, 20, 30]
    path = next(asked.out.glob("step-000010.z.*.nc"))
    path.write_bytes(path.read_bytes()[:-50])
    assert status([asked]).missing == [10]
    assert status([asked, other]).missing == [0, 10, 20, 30]


def test_the_status_reads_no_weights(copy, tmp_path):
    asked = patching_sweep(copy, copy.facts(12, seed=3), sites=SITES, out=tmp_path / "out")
    task(asked, 0, 2)
    for path in copy.path.glob("step-*/model.safetensors"):
        path.write_bytes(b"")
    assert status([asked]).done == [0, 20]


@pytest.fixture
def copy(run, tmp_path):
    return load_suite(shutil.copytree(run, tmp_path / "run"))


def test_a_killed_task_loses_its_piece_only(run, suite, asked, tmp_path):
    task(asked, 0, 2)
    stopped = start(STOPPED, run, tmp_path / "out", 1, 2)
    (marker,) = waited_for(lambda: list(asked.out.glob(".*.computing.*.tmp")))
    found = status([asked])
    assert found.computing.keys() == {10} and found.missing == [30]
    (said,) = found.computing[10]
    assert f"on {machine()}, process {stopped.pid}, since 20" in said
    stopped.kill()
    stopped.join()
    assert marker.exists() and stopped.exitcode == -signal.SIGKILL
    found = status([asked])  # its process has ended, which can be known on this machine
    assert found.missing == [10, 30] and not found.computing and found.done == [0, 20]
    assert plain(suite, tmp_path / "out") == plain(suite, tmp_path / "alone")


def test_a_piece_of_another_machine_counts_as_being_computed(asked):
    task(asked, 0, 2)
    name = marker_name(30, asked.question)
    (asked.out / f".{name}.node7.12.tmp").touch()
    found = status([asked])
    assert found.missing == [10] and found.computing[30][0].startswith("on node7, process 12,")
    mine = temporary_of(asked.out / name).name
    assert mine == f".{name}.{machine()}.{os.getpid()}.tmp"


def test_a_killed_worker_loses_its_piece_only(run, suite, tmp_path):
    """The other piece under way is finished, and so is what waits."""
    code = (
        "import os, sys; from interp import load_suite, patch_suite\n"
        "if __name__ == '__main__':\n"
        "    suite = load_suite(sys.argv[1]); facts = suite.facts(12, seed=3)\n"
        "    patch_suite(suite, facts, sites=['attn_out', 'z'], out=sys.argv[2], workers=2)"
    )
    script = tmp_path / "sweep.py"
    script.write_text(code)
    killer = (
        "import os, sys; from pathlib import Path\n"
        "from functools import wraps\n"
        "from interp.results import sweep\n"
        "original = sweep._patch_one\n"
        "@wraps(original)\n"
        "def killed_at_ten(suite, step, sites, **options):\n"
        "    os.kill(os.getpid(), 9) if step == 10 else None\n"
        "    return original(suite, step, sites, **options)\n"
        "if len(sys.argv) > 3: sweep._patch_one = killed_at_ten\n"
    )
    script.write_text(killer + code)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    typed = [sys.executable, script, run, tmp_path / "out"]
    failed = subprocess.run([*typed, "kill"], env=env, capture_output=True, text=True)
    said = failed.stderr.splitlines()[-1]
    assert "1 of 4 checkpoints failed, first at step 10: BrokenExecutor: its process was" in said
    assert "what is done is kept, run the same again" in said
    out = tmp_path / "out"
    assert sorted({path.name[:11] for path in out.glob("step-*.nc")}) == [
        "step-000000", "step-000020", "step-000030",
    ]  # fmt: skip
    assert plain(suite, out) == plain(suite, tmp_path / "alone")


def test_a_worker_with_other_code_refuses(asked, monkeypatch):
    from interp.results import pieces

    piece = asked.piece(0, asked.requests(0), {})
    monkeypatch.setattr(pieces, "source_digest", lambda *_: "other")
    with pytest.raises(ValueError, match=f"a worker on {machine()} runs interp with source other"):
        piece()
    assert not asked.out.exists() or not list(asked.out.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_id": 1}, "task_id is 1; give n_tasks, too"),
        ({"n_tasks": 4}, "n_tasks is 4; give task_id, or status"),
        ({"task_id": 4, "n_tasks": 4}, "task_id is 4 of 4 tasks; they count from 0 to 3"),
        ({"task_id": 0, "n_tasks": 4, "status": True}, "status is of all tasks"),
        ({"task_id": 0, "n_tasks": 4, "executor": "dask"}, "a task or status computes here"),
        ({"scheduler": "tcp://a:1"}, "scheduler does nothing with the executor local; give dask"),
        ({"submitit": ("a=1",)}, "submitit does nothing with the executor local; give submitit"),
        ({"submitit": ("a",), "executor": "submitit"}, "submitit has 'a'; write NAME=VALUE"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**options)


def files_of_guide() -> dict[str, str]:
    page = (ROOT / "docs" / "guides" / "clusters.md").read_text()
    return dict(re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```', page, re.S | re.M))


SBATCH = """#!{python}
# Runs a script as SLURM would, at once: each task of its array, but those in the file "failing".
import os, re, subprocess, sys
from pathlib import Path

*options, script = sys.argv[1:]
failed = Path("failed")  # whether a task of the last array did
if "--dependency=afterok:17" in options and failed.exists():
    sys.exit()
array = re.search(r"--array=(\\S+)", " ".join(options) + Path(script).read_text())
first, _, last = array[1].partition("-") if array else ("", "", "")
ids = [str(i) for i in range(int(first), int(last or first) + 1)] if array else [""]
failing = Path("failing").read_text().split() if Path("failing").exists() else []
tasks = []
for i in ids:
    env = os.environ | {{"SLURM_ARRAY_TASK_ID": i, "SLURM_ARRAY_TASK_COUNT": str(len(ids))}}
    log = open(f"slurm-17_{{i}}.out", "w")
    if i not in failing:
        tasks.append(subprocess.Popen(["bash", script], env=env, stdout=log, stderr=log))
codes = [task.wait() for task in tasks]
if array:
    failed.unlink(missing_ok=True)
if any(codes) or len(tasks) < len(ids):
    failed.touch()
if "--parsable" in options:
    print(17)
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A checkout with the guide's files, three checkpoints of the demo run, and an sbatch."""
    folder = tmp_path / "checkout"
    demo = ROOT / "checkpoints" / "demo"
    keep = ("step-000000", "step-000600", "step-006500")
    unused = [path.name for path in demo.glob("step-*") if path.name not in keep]
    leave = shutil.ignore_patterns(*unused, "results", "resume", "*.html", ".lock")
    shutil.copytree(demo, folder / "checkpoints" / "demo", ignore=leave)
    for name, content in files_of_guide().items():
        (folder / name).write_text(content)
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(SBATCH.format(python=sys.executable))
    sbatch.chmod(0o755)
    paths = [str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(paths))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(folder)
    return folder


def bash(script):
    return subprocess.run(["bash", script], capture_output=True, text=True)


def test_the_guides_slurm_scripts_leave_the_files_of_one_process(cluster):
    (cluster / "failing").write_text("2")
    assert bash("submit.sh").returncode == 0
    assert not (cluster / "sweep.html").exists()  # the collecting job waits in vain
    listed = bash("status.sh")
    assert listed.returncode == 1 and listed.stderr == ""
    assert listed.stdout == files_of_guide()["what status.sh prints"]
    (cluster / "failing").unlink()
    again = bash("again.sh")
    assert again.returncode == 0, again.stderr
    assert (cluster / "sweep.html").is_file()
    shared = contents(cluster / "results" / "sweep")
    shutil.rmtree(cluster / "results")
    assert bash("sweep.sh").returncode == 0
    assert contents(cluster / "results" / "sweep") == shared and len(shared) == 4
    assert read_folder(cluster / "results" / "sweep")["z"].step.values.tolist() == [0, 600, 6500]
