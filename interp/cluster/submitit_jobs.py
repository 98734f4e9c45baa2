"""submitit's jobs, on SLURM or this machine, behind the interface of ``concurrent.futures``."""

import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from threading import Event, Lock, Thread

from submitit import AutoExecutor, Job
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

_POLL_SECONDS = 0.5
_TIMEOUT_MINUTES = 60


class SubmititJobs(Executor):
    """Jobs of submitit; those that are submitted together are one job array on SLURM. A job that
    runs out of time, or is preempted, is put in the queue again, at most three times.

    Args:
        folder: of logs, and of pickles while a job lasts; jobs must see it.
        parameters: of submitit's ``AutoExecutor``, such as timeout_min.
        workers: jobs that run at once where there is no SLURM; there, ``slurm_array_parallelism``.

    Raises:
        ValueError: submitit takes no such parameter.
    """

    def __init__(self, folder: Path, parameters: dict, *, workers: int) -> None:
        self._jobs = AutoExecutor(folder=folder)
        try:
            self._jobs.update_parameters(**{"timeout_min": _TIMEOUT_MINUTES} | parameters)
        except (NameError, AssertionError, ValueError) as error:
            raise ValueError(
                f"submitit refuses parameters: {' '.join(str(error).split())}"
            ) from None
        self._at_once = workers if self._jobs.cluster == "local" else None
        self._waiting: list[tuple[Future, _Call]] = []
        self._running: list[tuple[Future, Job]] = []
        self._lock, self._ended = Lock(), Event()
        self._thread = Thread(target=self._watch)
        self._thread.start()

    def submit(self, fn: Callable, /, *args: object, **kwargs: object) -> Future:
        if self._ended.is_set():
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future = Future()
        with self._lock:
            self._waiting.append((future, _Call(fn, args, kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            with self._lock:
                for future, _ in self._waiting:
                    future.cancel()
                self._waiting = []
                for _, job in self._running:
                    job.cancel()
        self._ended.set()
        if wait:
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.is_set() or self._waiting or self._running:
            time.sleep(_POLL_SECONDS)
            with self._lock:
                self._start()
                ended = [pair for pair in self._running if pair[1].done()]
                self._running = [pair for pair in self._running if pair not in ended]
            for future, job in ended:
                _settle(future, job)

    def _start(self) -> None:
        n = len(self._waiting)
        if self._at_once is not None:
            n = min(n, self._at_once - len(self._running))
        chosen, self._waiting = self._waiting[:n], self._waiting[n:]
        chosen = [pair for pair in chosen if pair[0].set_running_or_notify_cancel()]
        if chosen:
            jobs = self._jobs.submit_array([call for _, call in chosen])
            self._running += [(future, job) for (future, _), job in zip(chosen, jobs)]


def _settle(future: Future, job: Job) -> None:
    """Gives a job's outcome to its future, and removes the pickles, of which one holds the result
    again.
    """
    try:
        result, error = job.result()
    except UncompletedJobError as uncompleted:
        future.set_exception(BrokenExecutor(f"its job ended without a result: {uncompleted}"))
        return
    except Exception as unknown:  # such as a job that could not be started
        future.set_exception(unknown)
        return
    for pickle in (job.paths.result_pickle, job.paths.submitted_pickle):
        pickle.unlink(missing_ok=True)
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class _Call:
    """A call that can be started anew when its job was stopped: what it computes is not kept in
    part. An exception is returned, since submitit would keep its text only.
    """

    def __init__(self, fn: Callable, args: tuple, kwargs: dict) -> None:
        self.fn, self.args, self.kwargs = fn, args, kwargs

    def __call__(self) -> tuple[object, Exception | None]:
        try:
            return self.fn(*self.args, **self.kwargs), None
        except UncompletedJobError:  # raised in here when there is no time left
            raise
        except Exception as error:
            return None, error

    def checkpoint(self) -> DelayedSubmission:
        """What submitit puts in the queue again."""
        return DelayedSubmission(self)
