"""Process settings that make many middle-sized operations fast, and worker processes."""

import ctypes
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T, R = TypeVar("T"), TypeVar("R")
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


def on_all_cores(compute: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
    """``compute`` of each task, in their order, on as many threads as torch uses for one operation.

    Each thread computes its operations on one core: where they are too small to be worth dividing,
    that keeps all cores busy. Until all results are taken the calling thread uses one core, too.
    """
    import torch

    n = torch.get_num_threads()
    if n == 1 or len(tasks) < 2:
        yield from map(compute, tasks)
        return
    under_way = deque[Future[R]]()
    pool = ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,))
    torch.set_num_threads(1)
    try:
        for task in tasks:
            under_way.append(pool.submit(compute, task))
            if len(under_way) > 2 * n:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n)  # after the last thread has set its own


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
