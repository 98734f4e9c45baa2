"""The runs of a study, trained here, by a scheduler's workers, or by tasks that share them."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from analyses.options import StudyConfig
from interp.cluster import PiecesMissing, TaskEnded
from interp.cluster.executors import executor_of
from interp.config import TrainConfig
from interp.process import local_workers, visible_gpus
from interp.training.run_many import OnStep, newest_step, runs_left, train_share


@contextmanager
def executor_for(config: StudyConfig) -> Iterator[Executor | None]:
    """What trains the runs of a study."""
    jobs = Path(config.folder) / "jobs"
    gpus = visible_gpus() if config.device != "cpu" else ()
    with executor_of(config.cluster, workers=config.workers, jobs=jobs) as elsewhere:
        if elsewhere is not None:
            yield elsewhere
            return
        with local_workers(config.workers, gpus) as here:
            yield here


def train_part(
    config: StudyConfig, runs: dict[str, TrainConfig], out: Path, command: str, on_step: OnStep
) -> NoReturn:
    """Trains a task's runs, or says which there are.

    Raises:
        TaskEnded: the task's runs are trained.
        PiecesMissing: what there is was asked for.
    """
    cluster, left = config.cluster, runs_left(runs, out)
    if cluster.status:
        raise PiecesMissing(_status(runs, left, out, cluster.n_tasks))
    assert cluster.task_id is not None and cluster.n_tasks is not None, cluster
    task = cluster.task_id, cluster.n_tasks
    with executor_for(config) as executor:
        mine = train_share(runs, out, *task, executor=executor, command=command, on_step=on_step)
    raise TaskEnded(
        f"task {task[0]} of {task[1]}: its {len(mine)} of {len(runs)} runs are trained; when all "
        "tasks have ended, --status says whether the study needs more runs"
    )


def _status(
    runs: dict[str, TrainConfig], left: dict[str, TrainConfig], out: Path, n_tasks: int | None
) -> str:
    lines = [f"{len(runs) - len(left)} of {len(runs)} runs done"]
    for name, run in left.items():
        step = newest_step(out / name)
        begun = f"begun, its newest checkpoint at step {step} of {run.n_steps}"
        lines.append(f"{name}: {begun if (out / name).is_dir() else 'missing'}")
    if n_tasks:
        names = list(runs)
        tasks = sorted({names.index(name) % n_tasks for name in left})
        lines.append(f"tasks to run again, unless they run now: {','.join(map(str, tasks))}")
    return "\n".join(lines)
