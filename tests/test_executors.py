"""Sweeps on submitit's jobs and Dask's workers: the files of one process."""

import os
import signal
import sys
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import dask
import psutil
import pytest
import torch

from interp.cluster import executors
from interp.cluster.executors import executor_of
from interp.cluster.submitit_jobs import SubmititJobs
from interp.config import ClusterConfig
from interp.results.sweep import patch_suite

SITES = ["attn_out", "z"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Everywhere, since numbers differ with the number of threads by rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tests = Path(__file__).parent  # whose functions jobs call
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tests.parent, tests))))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(suite, tmp_path_factory):
    """The files that one process writes."""
    return written(suite, tmp_path_factory.mktemp("alone") / "out", None)


def written(suite, out, executor):
    patch_suite(suite, suite.facts(12, seed=3), sites=SITES, out=out, executor=executor)
    assert not list(out.glob(".*.tmp"))
    return {path.name: path.read_bytes() for path in out.glob("*.*") if path.name != ".lock"}


def failing(number):
    raise ValueError(f"no {number}")


def test_jobs_of_submitit_leave_the_files_of_one_process(suite, alone, tmp_path):
    config, jobs = ClusterConfig(executor="submitit"), tmp_path / "jobs"
    with executor_of(config, workers=2, jobs=jobs) as executor:
        assert written(suite, tmp_path / "out", executor) == alone
        with pytest.raises(ValueError, match="no 3"):  # a failure keeps its type
            executor.submit(failing, 3).result()
    assert len(list(jobs.glob("*_log.out"))) == 5 and not list(jobs.glob("*.pkl"))


def test_workers_of_dask_leave_the_files_of_one_process(suite, alone, tmp_path):
    with executor_of(ClusterConfig(executor="dask"), workers=2, jobs=tmp_path) as executor:
        assert written(suite, tmp_path / "out", executor) == alone
        address = executor._client.scheduler.address
        given = ClusterConfig(executor="dask", scheduler=address)
        with executor_of(given, workers=1, jobs=tmp_path) as other:
            assert written(suite, tmp_path / "other", other) == alone
            assert len(other._client.scheduler_info()["workers"]) == 2
    assert not list(tmp_path.glob("jobs*"))


def sleeper(folder):
    """Sleeps when it is first called in ``folder``; says how often it was."""
    calls = len(list(Path(folder).glob("call-*")))
    Path(folder, f"call-{calls}").touch()
    if calls == 0:
        time.sleep(600)
    return calls + 1


def test_a_job_that_is_preempted_is_started_again(tmp_path):
    jobs = SubmititJobs(tmp_path / "jobs", {}, workers=1)
    try:
        future = jobs.submit(sleeper, tmp_path)
        while not (tmp_path / "call-0").exists():
            assert not future.done()
            time.sleep(0.05)
        ((_, job),) = jobs._running
        (worker,) = psutil.Process(job._process.pid).children()
        worker.send_signal(signal.SIGUSR2)  # as SLURM does before a job's time is over
        assert future.result(timeout=120) == 2
    finally:
        jobs.shutdown(cancel_futures=True)


def test_a_job_that_is_killed_fails_its_own_future_only(tmp_path):
    jobs = SubmititJobs(tmp_path / "jobs", {}, workers=2)
    try:
        killed, other = jobs.submit(sleeper, tmp_path), jobs.submit(failing, 4)
        while not (tmp_path / "call-0").exists():
            assert not killed.done()
            time.sleep(0.05)
        assert isinstance(other.exception(timeout=60), ValueError)
        ((_, job),) = jobs._running
        job._results_timeout_s = 1  # else it waits longer, for slow file systems
        (worker,) = psutil.Process(job._process.pid).children()
        worker.kill()
        assert isinstance(killed.exception(timeout=60), BrokenExecutor)
    finally:
        jobs.shutdown(cancel_futures=True)


@pytest.mark.parametrize(
    ("name", "module"), [("dask", "dask.distributed"), ("submitit", "submitit")]
)
def test_a_package_that_is_missing_is_named_with_what_to_install(
    tmp_path, monkeypatch, name, module
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "interp.cluster.submitit_jobs", raising=False)
    said = (
        rf"--executor {name} needs {name}, which is not installed; pip install 'interp\[cluster\]'"
    )
    with (
        pytest.raises(ValueError, match=said),
        executor_of(ClusterConfig(executor=name), workers=1, jobs=tmp_path),
    ):
        pass


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    config = ClusterConfig(executor="dask", scheduler="tcp://127.0.0.1:9")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ValueError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 \("),
        executor_of(config, workers=1, jobs=tmp_path),
    ):
        pass


def test_unknown_parameters_of_submitit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"submitit refuses parameters: .*colour"):
        SubmititJobs(tmp_path, {"slurm_colour": 1}, workers=1)
    with pytest.raises(ValueError, match=r"submitit refuses parameters: .*timeout_min"):
        SubmititJobs(tmp_path, {"timeout_min": "long"}, workers=1)


def test_parameters_are_read_as_numbers_where_they_are():
    texts = ("timeout_min=60", "mem_gb=1.5", "slurm_partition=gpu", "slurm_comment=a=b")
    assert dict(map(executors._parameter, texts)) == {
        "timeout_min": 60, "mem_gb": 1.5, "slurm_partition": "gpu", "slurm_comment": "a=b",
    }  # fmt: skip
