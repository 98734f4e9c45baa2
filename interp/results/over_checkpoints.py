"""Every checkpoint of a sweep, one by one or by several workers; stored results are kept."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import xarray as xr

from interp.config import MOST_WORKERS
from interp.fields import argument
from interp.files import check_writable, only_process
from interp.jupyter import OnStep
from interp.model.decoder import device_of
from interp.process import in_words, local_workers, visible_gpus
from interp.results.manifest import record_requests
from interp.results.pieces import Piece, Sweep
from interp.results.repeated_weights import repeated_weights
from interp.results.request import Request
from interp.results.store import read_result
from interp.suite import Suite

Requests = dict[int, dict[str, Request]]
"""By step and name."""


def over_checkpoints(
    sweep: Sweep,
    *,
    workers: int = 1,
    executor: Executor | None = None,
    on_step: OnStep = lambda n_done: None,
) -> dict[int, dict[str, xr.Dataset]]:
    """The results of a sweep by step and name. Those that are stored are reused, others are written
    as soon as they are finished.

    Args:
        executor: computes the checkpoints, as any with ``submit`` that returns
            ``concurrent.futures.Future``s and whose workers see the same folders; by default
            ``workers`` processes of this machine.

    Raises:
        ValueError: another process works in the folder of the results; or checkpoints failed, and
            then, if there are several workers, only after all others have ended.
        KeyboardInterrupt: it was stopped; the message says what is kept and how to go on.
    """
    workers = argument("workers", workers, int, least=1, most=MOST_WORKERS)
    if sweep.out is not None:
        check_writable(sweep.out)
    tensors = checked_tensors(sweep.suite, sweep.steps)
    lock = only_process(sweep.out, "writing results to") if sweep.out else nullcontext()
    with lock, _stoppable(sweep.out, len(sweep.steps), on_step) as on_step:
        requests = {step: sweep.requests(step, tensors[step]) for step in sweep.steps}
        if sweep.out is not None:
            asked = [request for of in requests.values() for request in of.values()]
            record_requests(sweep.out, asked, partial(_is_replaced, sweep.suite))
        done, pieces = stored_and_missing(sweep, requests, tensors)
        n_stored = len(requests) - len(pieces)
        if sweep.out is not None:
            on_step(n_stored)
        found = computed(sweep, pieces, workers=workers, executor=executor)
        for n_done, (step, results) in enumerate(found, n_stored + 1):
            done[step] |= results
            on_step(n_done)
        return done


def checked_tensors(suite: Suite, steps: Sequence[int]) -> dict[int, dict[str, str]]:
    """``Suite.tensor_digests`` by step; warns of weights that steps share but should not.

    Raises:
        ValueError: a checkpoint is damaged, or a weight is not finite.
    """
    tensors = {step: suite.tensor_digests(step) for step in steps}
    for repeat in repeated_weights(tensors):
        warnings.warn(f"{suite.path}: {repeat}", stacklevel=3)
    return tensors


def stored_and_missing(
    sweep: Sweep, requests: Requests, tensors: Mapping[int, dict[str, str]] | None = None
) -> tuple[dict[int, dict[str, xr.Dataset]], list[Piece]]:
    """Stored results by step and name, and a piece for each step that lacks some.

    Args:
        tensors: digests of the tensors by step; by default computed where some are missing.
    """
    done: dict[int, dict[str, xr.Dataset]] = {}
    pieces = []
    for step, of_step in requests.items():
        found = {} if sweep.out is None else _stored(sweep.out, of_step)
        missing = {name: request for name, request in of_step.items() if name not in found}
        done[step] = found
        if missing or sweep.out is None:
            digests = tensors[step] if tensors else sweep.suite.tensor_digests(step)
            pieces.append(sweep.piece(step, missing, digests))
    return done, pieces


def _stored(out: Path, requests: dict[str, Request]) -> dict[str, xr.Dataset]:
    results = {name: read_result(out, request) for name, request in requests.items()}
    return {name: result for name, result in results.items() if result is not None}


def computed(
    sweep: Sweep, pieces: list[Piece], *, workers: int, executor: Executor | None = None
) -> Iterator[tuple[int, dict[str, xr.Dataset]]]:
    """Step and results of each piece, as it is finished.

    Raises:
        ValueError: see ``over_checkpoints``.
    """
    if executor is not None:
        yield from _by_executor(sweep, pieces, executor)
        return
    if pieces:
        device_of(sweep.device)  # that it is on this machine
    gpus = visible_gpus() if sweep.device == "cuda" else ()
    with local_workers(max(1, min(workers, len(pieces))), gpus) as pool:
        if pool is None:
            yield from ((piece.step, piece()) for piece in pieces)
        else:
            yield from _by_executor(sweep, pieces, pool)


def _by_executor(
    sweep: Sweep, pieces: list[Piece], executor: Executor
) -> Iterator[tuple[int, dict[str, xr.Dataset]]]:
    futures = {executor.submit(piece): piece.step for piece in pieces}
    failed: dict[int, Exception] = {}
    for future in as_completed(futures):
        error = future.exception()
        if error is None:
            yield futures[future], future.result()
        elif isinstance(error, Exception):
            failed[futures[future]] = error
        else:  # it was stopped
            raise error
    if failed:
        step, first = min(failed.items())
        kept = "; what is done is kept, run the same again" if sweep.out else ""
        raise ValueError(
            f"{len(failed)} of {len(pieces)} checkpoints failed, first at step {step}: "
            f"{in_words(first)}{kept}"
        ) from first


@contextmanager
def _stoppable(folder: Path | None, n_steps: int, on_step: OnStep) -> Iterator[OnStep]:
    """``on_step``, counted, so that an interrupt can end with one line that says what is kept."""
    n_finished = 0

    def counted(n_done: int) -> None:
        nonlocal n_finished
        n_finished = n_done
        on_step(n_done)

    try:
        yield counted
    except KeyboardInterrupt:
        done = f"stopped with {n_finished} of {n_steps} checkpoints done"
        kept = (
            "they are not kept; give out=FOLDER to keep those that are finished"
            if folder is None
            else f"they are in {folder}; run the same again to go on"
        )
        raise KeyboardInterrupt(f"{done}, {kept}") from None


def _is_replaced(suite: Suite, step: int, checkpoint: str) -> bool:
    return step in suite.folders and suite.sha256(step) != checkpoint
