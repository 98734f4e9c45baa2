"""A sweep shared among stateless tasks: each computes its pieces, and a last
run without a task collects them.

Tasks take no lock and write no manifest: their result files are all that they leave. The run that
collects them writes ``manifest.json``. So nothing that a task writes is written by another, but for
the results of a piece that two tasks compute, which are the same.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from glob import escape
from pathlib import Path

from interp.cluster import PiecesMissing
from interp.config import ClusterConfig
from interp.files import check_writable, is_abandoned
from interp.jupyter import OnStep
from interp.results.over_checkpoints import computed, stored_and_missing
from interp.results.pieces import Sweep, marker_name
from interp.results.request import canonical, question_of
from interp.results.store import open_result


def in_part(
    sweeps: Sequence[Sweep], config: ClusterConfig, *, workers: int, on_step: OnStep
) -> str:
    """Computes a task's pieces, or looks for what there is; says what was found.

    Args:
        sweeps: of the same steps; a step's piece is its results in all of them.

    Raises:
        PiecesMissing: what there is was asked for, and something is not done.
    """
    if config.status:
        found = status(sweeps)
        if found.missing or found.computing:
            raise PiecesMissing(found.said(config.n_tasks))
        return found.said(config.n_tasks)
    assert config.task_id is not None and config.n_tasks is not None, config
    n_done = 0
    for sweep in sweeps:
        mine = _of_task(sweep, config.task_id, config.n_tasks)
        compute_all(mine, workers=workers, on_step=partial(_counted_from, n_done, on_step))
        n_done += len(mine.steps)
    return (
        f"task {config.task_id} of {config.n_tasks}: its {_pieces(len(mine.steps))} of "
        f"{len(sweeps[0].steps)} done; results: {sweeps[0].out}"
    )


def _counted_from(n_before: int, on_step: OnStep, n_done: int) -> None:
    on_step(n_before + n_done)


def _of_task(sweep: Sweep, task_id: int, n_tasks: int) -> Sweep:
    """The sweep at every ``n_tasks``-th of its steps, whatever is done already."""
    return replace(sweep, steps=sweep.steps[task_id::n_tasks])


def compute_all(sweep: Sweep, *, workers: int = 1, on_step: OnStep = lambda n_done: None) -> None:
    """Computes what is not stored, beside other processes that may do the same."""
    assert sweep.out is not None, sweep
    check_writable(sweep.out)
    requests = {step: sweep.requests(step) for step in sweep.steps}
    _, pieces = stored_and_missing(sweep, requests)
    n_stored = len(requests) - len(pieces)
    on_step(n_stored)
    for n_done, _ in enumerate(computed(sweep, pieces, workers=workers), n_stored + 1):
        on_step(n_done)


@dataclass(frozen=True)
class Status:
    """Which steps of a sweep are done."""

    steps: list[int]
    done: list[int]
    computing: dict[int, list[str]]
    """Not done: where and since when each is computed, as far as can be known."""
    missing: list[int]

    def said(self, n_tasks: int | None = None) -> str:
        """The status in lines; with the ids of tasks that have missing pieces."""
        lines = [f"{len(self.done)} of {_pieces(len(self.steps))} done, one a checkpoint"]
        for step, places in self.computing.items():
            lines += [f"being computed: step {step}, {place}" for place in places]
        if self.missing:
            lines.append(f"missing: {', '.join(map(str, self.missing))}")
        if self.missing and n_tasks:
            tasks = {self.steps.index(step) % n_tasks for step in self.missing}
            lines.append(f"tasks to run again: {','.join(map(str, sorted(tasks)))}")
        return "\n".join(lines)


def status(sweeps: Sequence[Sweep]) -> Status:
    """Which steps are done in all ``sweeps``. No weights are read; that a checkpoint was replaced
    since its results were written is noticed by the run that collects them.
    """
    steps = list(sweeps[0].steps)
    done = [step for step in steps if all(_is_stored(sweep, step) for sweep in sweeps)]
    left = [step for step in steps if step not in done]
    computing = {step: [x for sweep in sweeps for x in _at_work(sweep, step)] for step in left}
    computing = {step: of for step, of in computing.items() if of}
    return Status(steps, done, computing, [step for step in left if step not in computing])


def _is_stored(sweep: Sweep, step: int) -> bool:
    return all(_has_result(sweep, step, name) for name in sweep.names)


def _has_result(sweep: Sweep, step: int, name: str) -> bool:
    """Whether there is a result of this question, of whatever checkpoint at ``step``."""
    assert sweep.out is not None, sweep
    wanted = json.loads(canonical(sweep.question))
    for path in sweep.out.glob(f"step-{step:06d}.{escape(name)}.*.nc"):
        try:
            recorded = json.loads(open_result(path).attrs.get("request", "{}"))
        except ValueError:  # damaged: it will be computed again
            continue
        if question_of(recorded) == wanted and (recorded["step"], recorded["site"]) == (step, name):
            return True
    return False


def _at_work(sweep: Sweep, step: int) -> list[str]:
    """Where a step is being computed. A process of this machine that has ended isn't counted;
    whether one of another machine still runs can't be known here.
    """
    assert sweep.out is not None, sweep
    found = []
    for marker in sorted(sweep.out.glob(f".{marker_name(step, sweep.question)}.*.tmp")):
        *_, where, process, _ = marker.name.split(".")
        if not is_abandoned(marker) and (since := _written(marker)):
            found.append(f"on {where}, process {process}, since {since}")
    return found


def _written(path: Path) -> str:
    """When a file was written; empty if it is gone."""
    try:
        when = datetime.fromtimestamp(path.stat().st_mtime)
    except FileNotFoundError:
        return ""
    return when.strftime("%Y-%m-%d %H:%M:%S")


def _pieces(n: int) -> str:
    return "1 piece" if n == 1 else f"{n} pieces"
