"""Threads and workers: how many cores they take, and that workers don't outlive who started
them.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor

import pytest
import torch

from interp.process import local_workers, on_all_cores, visible_gpus

PARENT = """
import os, time
from interp.process import local_workers

if __name__ == "__main__":
    with local_workers(2) as executor:
        print(executor.submit(os.getpid).result(), flush=True)
        executor.submit(time.sleep, 60)
        time.sleep(60)
"""


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def of_thread(task):
    """A task's number, its thread, and the threads that an operation takes there; the first takes
    longest.
    """
    time.sleep(0.2 / (1 + task))
    return task, threading.get_ident(), torch.get_num_threads()


def test_tasks_are_computed_side_by_side_and_come_in_their_order(two_threads):
    tasks, threads, n_threads = zip(*on_all_cores(of_thread, range(20)))
    assert tasks == tuple(range(20))
    assert len(set(threads)) == 2 and threading.get_ident() not in threads
    assert set(n_threads) == {1} and torch.get_num_threads() == 2


def test_threads_are_as_before_after_an_error_and_when_results_are_left(two_threads):
    with pytest.raises(ZeroDivisionError):
        list(on_all_cores(lambda task: 1 // task, range(5, -5, -1)))
    assert torch.get_num_threads() == 2
    left = on_all_cores(of_thread, range(20))
    assert next(left)[0] == 0 and torch.get_num_threads() == 1
    left.close()
    assert torch.get_num_threads() == 2


def test_one_task_has_all_threads_to_itself(two_threads):
    assert list(on_all_cores(of_thread, [0])) == [(0, threading.get_ident(), 2)]


def test_one_worker_is_this_process_and_more_share_its_threads(monkeypatch):
    with local_workers(1) as executor:
        assert executor is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    with local_workers(2) as executor:
        monkeypatch.undo()
        assert executor.submit(torch.get_num_threads).result() == 3


def test_workers_compute_under_the_settings_of_the_process_that_started_them():
    torch.set_float32_matmul_precision("high")
    try:
        with local_workers(2) as executor:
            assert executor.submit(torch.get_float32_matmul_precision).result() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(tmp_path, how):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.send_signal(how)
    parent.wait()
    end = time.monotonic() + 20
    while is_running(worker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not is_running(worker)


def gpu_and_process(_=None):
    time.sleep(0.3)  # so that no worker takes all
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()


def test_each_worker_sees_one_gpu_and_workers_beyond_their_number_share():
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    with local_workers(3, ["2", "MIG-a"]) as executor:
        seen = dict(pair[::-1] for pair in executor.map(gpu_and_process, range(9)))
    assert sorted(seen.values()) == ["2", "2", "MIG-a"]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


def test_the_gpus_of_this_process_are_those_that_its_environment_names(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-ab")
    assert visible_gpus() == ["3", "GPU-ab"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_gpus() == ["0", "1"]


def killed(task):
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return task


def test_a_killed_worker_fails_its_own_task_only():
    with local_workers(2) as executor:
        futures = [executor.submit(killed, task) for task in range(6)]
        errors = [future.exception() for future in futures]
    assert [futures[i].result() for i in (0, 2, 3, 4, 5)] == [0, 2, 3, 4, 5]
    assert isinstance(errors[1], BrokenExecutor) and "its process was killed" in str(errors[1])


def test_what_waits_is_cancelled_when_the_pool_is_left_after_an_error():
    futures = []
    with pytest.raises(KeyError), local_workers(2) as executor:
        futures += [executor.submit(time.sleep, 0.5) for _ in range(20)]
        raise KeyError
    assert futures[-1].cancelled() and all(future.done() for future in futures)


def is_running(process: int) -> bool:
    """And not merely waiting to be collected."""
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
