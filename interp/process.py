"""Process settings that make many middle-sized operations fast, and worker processes."""

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from queue import Empty, SimpleQueue
from threading import Thread
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
def local_workers(n: int, gpus: Sequence[str] = ()) -> Iterator[Executor | None]:
    """A pool of ``n`` processes that share this machine's cores, use this process's torch settings,
    and end with it, however it ends; None for ``n`` = 1, which means this process itself.

    A process that is killed fails its own task, with a ``BrokenExecutor``; another takes its place.

    Args:
        gpus: dealt out to the processes, each of which sees one of them only; as in
            CUDA_VISIBLE_DEVICES.
    """
    if n == 1:
        yield None
        return
    import torch

    threads = max(1, torch.get_num_threads() // n)
    settings = (threads, torch.get_float32_matmul_precision(), torch.get_default_dtype())
    pool = _Pool(n, settings, gpus)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu.strip() for gpu in listed.split(",") if gpu.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


class _Pool(Executor):
    """Processes of this machine, each started by a thread of its own, which hands it one task after
    another. (A ``ProcessPoolExecutor`` of several processes fails all tasks when one is killed.)
    """

    def __init__(self, n: int, settings: tuple, gpus: Sequence[str]) -> None:
        self._waiting: SimpleQueue = SimpleQueue()
        of_each = [gpus[i % len(gpus)] if gpus else None for i in range(n)]
        self._threads = [Thread(target=self._serve, args=((*settings, gpu),)) for gpu in of_each]
        self._ended = False
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., R], /, *args: object, **kwargs: object) -> Future[R]:
        if self._ended:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[R] = Future()
        self._waiting.put((future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            with suppress(Empty):
                while True:
                    if work := self._waiting.get_nowait():
                        work[0].cancel()
        if not self._ended:
            self._ended = True
            for _ in self._threads:
                self._waiting.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _serve(self, settings: tuple) -> None:
        process = None
        while work := self._waiting.get():
            future, fn, args, kwargs = work
            if not future.set_running_or_notify_cancel():
                continue
            process = process or _one_process(settings)
            try:
                result = process.submit(fn, *args, **kwargs).result()
            except BrokenExecutor:
                process.shutdown()
                process = None
                future.set_exception(BrokenExecutor(_KILLED))
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
        if process:
            process.shutdown()


_KILLED = (
    "its process was killed; if memory ran out, give fewer --workers or a smaller --max-memory"
)


def _one_process(settings: tuple) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), _start_worker, settings)


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


def _start_worker(
    n_threads: int, matmul_precision: str, default_dtype: "torch.dtype", gpu: str | None
) -> None:
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when CUDA is first used
    libc = _libc()
    if hasattr(libc, "prctl"):
        libc.prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGTERM)
    tune_process()
    import torch

    torch.set_num_threads(n_threads)
    torch.set_float32_matmul_precision(matmul_precision)
    torch.set_default_dtype(default_dtype)


def in_words(error: BaseException) -> str:
    """An error in one line: a user error as it is, any other with its type."""
    said = isinstance(error, (ValueError, FileNotFoundError))
    return " ".join((str(error) if said else f"{type(error).__name__}: {error}").split())


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
