"""Process settings that make many middle-sized operations fast, and worker processes."""

import ctypes
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # of glibc's mallopt
_SIGNAL_AT_PARENTS_DEATH = 1  # of Linux's prctl


def tune_process() -> None:
    """Keeps freed memory in the process: getting memory from the system can cost more than filling
    it. (That waiting threads spin only briefly is set when ``interp`` is imported.)
    """
    libc = _libc()
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def local_workers(n: int) -> Iterator[Executor | None]:
    """A pool of ``n`` processes that share this machine's cores, use this process's torch settings,
    and end with it, however it ends; None for ``n`` = 1, which means this process itself.
    """
    if n == 1:
        yield None
        return
    import torch

    threads = max(1, torch.get_num_threads() // n)
    settings = (threads, torch.get_float32_matmul_precision(), torch.get_default_dtype())
    pool = ProcessPoolExecutor(n, get_context("spawn"), _start_worker, settings)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(n_threads: int, matmul_precision: str, default_dtype: "torch.dtype") -> None:
    libc = _libc()
    if hasattr(libc, "prctl"):
        libc.prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGTERM)
    tune_process()
    import torch

    torch.set_num_threads(n_threads)
    torch.set_float32_matmul_precision(matmul_precision)
    torch.set_default_dtype(default_dtype)


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
