"""The executor that a configuration asks for, as ``concurrent.futures`` defines executors."""

import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from interp.config import ClusterConfig


def executor_of(
    config: ClusterConfig, *, workers: int, jobs: Path
) -> AbstractContextManager[Executor | None]:
    """What computes pieces elsewhere; None for ``local``.

    Args:
        workers: processes of this machine, where the executor uses it.
        jobs: folder of submitit's logs; jobs must see it.

    Raises:
        ValueError: the package is not installed; no scheduler answers; submitit takes no such
            parameter.
    """
    if config.executor == "dask":
        return _dask(config.scheduler, workers)
    if config.executor == "submitit":
        return _submitit(config.submitit, workers, jobs)
    return nullcontext()


@contextmanager
def _dask(scheduler: str | None, workers: int) -> Iterator[Executor]:
    try:
        from dask.distributed import Client, LocalCluster
    except ModuleNotFoundError:
        raise ValueError(_NOT_INSTALLED.format("dask")) from None
    local = None
    if scheduler is None:
        quiet = {"dashboard_address": None, "silence_logs": logging.CRITICAL}
        local = LocalCluster(n_workers=workers, threads_per_worker=1, **quiet)
    try:
        client = Client(local or scheduler)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no Dask scheduler answers at {scheduler} ({' '.join(str(error).split())}); give the "
            "address that dask scheduler prints"
        ) from None
    with client, local or nullcontext():
        executor = client.get_executor(pure=False)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False)  # cancels what is left after an error


@contextmanager
def _submitit(parameters: tuple[str, ...], workers: int, jobs: Path) -> Iterator[Executor]:
    try:
        from interp.cluster.submitit_jobs import SubmititJobs
    except ModuleNotFoundError:
        raise ValueError(_NOT_INSTALLED.format("submitit")) from None
    executor = SubmititJobs(jobs, dict(map(_parameter, parameters)), workers=workers)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _parameter(text: str) -> tuple[str, int | float | str]:
    """Name and value of a parameter of submitit."""
    name, _, value = text.partition("=")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            pass
    return name, value


_NOT_INSTALLED = "--executor {0} needs {0}, which is not installed; pip install 'interp[cluster]'"
