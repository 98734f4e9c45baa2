"""Settings of a process that make many middle-sized operations quick, and workers beside it."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # of glibc's mallopt
_SIGNAL_AT_PARENTS_DEATH = 1  # of Linux's prctl


def tune_process() -> None:
    """Call before torch is imported. Keeps freed memory, since fetching it anew from the system can
    cost more than filling it, and lets waiting threads spin only briefly: those that spin for long
    slow each other many times over as soon as another job wants a core.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    libc = _libc()
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def local_workers(n: int) -> Iterator[Executor | None]:
    """Processes of this machine that share its cores, and end with this one, however it ends; for
    one None, which is this process itself.
    """
    if n == 1:
        yield None
        return
    import torch

    threads = max(1, torch.get_num_threads() // n)
    pool = ProcessPoolExecutor(n, get_context("spawn"), _start_worker, (threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(n_threads: int) -> None:
    libc = _libc()
    if hasattr(libc, "prctl"):
        libc.prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGTERM)
    tune_process()
    import torch

    torch.set_num_threads(n_threads)


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
