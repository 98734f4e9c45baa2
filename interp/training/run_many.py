"""Many training runs, each in its own folder; finished ones are skipped, interrupted ones resumed.

What is trained is a dict of configurations by name; where, an executor decides. Runs are
independent, so any executor whose workers see the same folders will do: processes of this machine,
or a cluster's.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, wait
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from interp.config import TrainConfig
from interp.fields import argument
from interp.files import only_process
from interp.model.checkpoint_folder import step_folders
from interp.process import in_words
from interp.training.loop import train
from interp.training.metrics_table import read_metrics
from interp.training.run_folder import read_config

MACHINE = ("precision", "device", "compile", "keep")
"""Fields that may differ where a finished run is taken for the one asked for."""
_POLL_SECONDS = 2.0
OnStep = Callable[[str, int, int], None]
"""Called with a run's name, the steps it has taken, and all its steps."""


def train_all(
    runs: dict[str, TrainConfig],
    out: str | Path,
    *,
    executor: Executor | None = None,
    command: str = "",
    on_step: OnStep = lambda name, step, n_steps: None,
) -> dict[str, Path]:
    """The folder of each run, ``out``/name, all trained to their end.

    Args:
        executor: trains them, as any with ``submit`` that returns ``concurrent.futures.Future``s;
            by default they are trained here, one by one.
        command: recorded in run.json.
        on_step: called for every run at once, then after each of its steps where they are trained
            here, else as its checkpoints appear.

    Raises:
        ValueError: a name is not that of a folder; a folder holds a run of another configuration;
            another process trains in ``out``; or runs failed, and then only after all others have
            ended.
    """
    _check(runs, out, executor)
    left = runs_left(runs, out)
    for name, config in runs.items():
        on_step(name, newest_step(Path(out) / name), config.n_steps)
    with only_process(Path(out), "training runs in") if left else nullcontext():
        _train_left(left, out, executor, command, on_step)
    return {name: Path(out) / name for name in runs}


def train_share(
    runs: dict[str, TrainConfig],
    out: str | Path,
    task_id: int,
    n_tasks: int,
    *,
    executor: Executor | None = None,
    command: str = "",
    on_step: OnStep = lambda name, step, n_steps: None,
) -> list[str]:
    """Trains every ``n_tasks``-th of ``runs``, beginning with ``task_id``, beside other tasks that
    train the others: the names of these runs.

    Raises:
        ValueError: as ``train_all``, but for other processes that train in ``out``.
    """
    mine = {name: runs[name] for name in list(runs)[task_id::n_tasks]}
    _check(mine, out, executor)
    _train_left(runs_left(mine, out), out, executor, command, on_step)
    return list(mine)


def runs_left(runs: dict[str, TrainConfig], out: str | Path) -> dict[str, TrainConfig]:
    """Those of ``runs`` that are not done.

    Raises:
        ValueError: as ``is_done``.
    """
    return {n: config for n, config in runs.items() if not is_done(Path(out) / n, config)}


def _train_left(
    runs: dict[str, TrainConfig],
    out: str | Path,
    executor: Executor | None,
    command: str,
    on_step: OnStep,
) -> None:
    folders = {name: Path(out) / name for name in runs}
    failed: dict[str, BaseException] = {}
    for name, error in _trained(runs, folders, executor, command, on_step):
        if error is None:
            on_step(name, runs[name].n_steps, runs[name].n_steps)
        else:
            failed[name] = error
    if failed:
        name, error = next(iter(failed.items()))
        raise ValueError(
            f"{len(failed)} of {len(runs)} runs failed; {name}: {in_words(error)}; run the same "
            "again to try these, what is done stays done"
        ) from error


def _check(runs: dict[str, TrainConfig], out: str | Path, executor: Executor | None) -> None:
    argument("runs", runs, dict), argument("out", out, str, is_path=True)
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise ValueError(f"executor is {executor!r}; give a concurrent.futures.Executor")
    for name, config in runs.items():
        if not isinstance(name, str) or not re.fullmatch(r"[^./\\\0][^/\\\0]*", name):
            raise ValueError(
                f"{name!r} can't be the name of a run; it becomes a folder, so give one without "
                "slashes or a dot in front"
            )
        if not isinstance(config, TrainConfig):
            raise ValueError(
                f"run {name!r} is a {type(config).__name__}; give a TrainConfig, such as "
                "interp.preset returns"
            )


def is_done(folder: Path, config: TrainConfig) -> bool:
    """Whether ``folder`` holds this run, finished, with the checkpoints that it should keep.

    Raises:
        ValueError: it holds one of another configuration; one that has ended without them; or one
            that was begun to keep only its last where all are wanted: those it has passed are gone.
    """
    if not (folder / "run.json").is_file():
        return False
    ours, theirs = asdict(config), asdict(read_config(folder))
    if changed := [name for name in ours if ours[name] != theirs[name] and name not in MACHINE]:
        raise ValueError(
            f"{folder} holds a run with {changed[0]} {theirs[changed[0]]}, not "
            f"{ours[changed[0]]}; give another --out, or delete it"
        )
    metrics = folder / "metrics.parquet"
    if not metrics.is_file() or not (read_metrics(metrics).step >= config.n_steps).any():
        if config.keep == "all" and theirs["keep"] == "last":
            raise ValueError(
                f"{folder} was begun with keep last, so its earlier checkpoints are gone; delete "
                "the folder to train it again, or give keep last"
            )
        return False
    steps = config.checkpoint_steps if config.keep == "all" else [config.n_steps]
    there = step_folders(folder)
    lacking = [step for step in steps if step not in there]
    if lacking == [config.n_steps] and (folder / "resume" / "state.safetensors").is_file():
        return False  # resuming writes it again
    if lacking:
        raise ValueError(
            f"{folder} has ended but lacks the checkpoint at step {lacking[0]}; delete the folder "
            "to train it again"
        )
    return True


def _trained(
    runs: dict[str, TrainConfig],
    folders: dict[str, Path],
    executor: Executor | None,
    command: str,
    on_step: OnStep,
) -> Iterator[tuple[str, BaseException | None]]:
    """The name of each run as it ends, with its error or None."""
    if executor is None:
        for name, config in runs.items():
            report = partial(_report_step, on_step, name, config.n_steps)
            try:
                _train(config, folders[name], command, report)
            except Exception as error:  # whatever it is, the other runs are to go on
                yield name, error
            else:
                yield name, None
        return
    pending = {
        executor.submit(_train, config, folders[name], command): name
        for name, config in runs.items()
    }
    while pending:
        ended, _ = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in ended:
            yield pending.pop(future), future.exception()
        for name in pending.values():
            on_step(name, newest_step(folders[name]), runs[name].n_steps)


def _report_step(on_step: OnStep, name: str, n_steps: int, step: int, loss: torch.Tensor) -> None:
    on_step(name, step, n_steps)


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint in a run folder; 0 if there is none."""
    return max(step_folders(folder), default=0) if folder.is_dir() else 0


def _train(
    config: TrainConfig,
    folder: Path,
    command: str,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
) -> None:
    begun = (folder / "run.json").is_file()
    config = read_config(folder) if begun else config
    train(config, folder, resume=begun, command=command, on_step=on_step)
