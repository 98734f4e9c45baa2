"""Workers: how many cores they take, and that they don't outlive who started them."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from interp.process import local_workers

PARENT = """
import os, time
from interp.process import local_workers

if __name__ == "__main__":
    with local_workers(2) as executor:
        print(executor.submit(os.getpid).result(), flush=True)
        executor.submit(time.sleep, 60)
        time.sleep(60)
"""


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


def is_running(process: int) -> bool:
    """And not merely waiting to be collected."""
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
