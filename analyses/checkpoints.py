"""An analysis of the same facts at every checkpoint of a run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analyses.options import CheckpointsConfig
from interp.cluster.executors import executor_of
from interp.files import check_page, check_writable, write_bytes
from interp.model.decoder import device_of
from interp.results.over_checkpoints import over_checkpoints
from interp.results.pieces import Sweep
from interp.results.store import join_steps
from interp.results.tasks import in_part
from interp.suite import Suite, load_suite, select_steps


def halves(attribute: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the facts to choose by, and of those to measure on: every other fact of each
    attribute, so that what is chosen is not measured where chance favoured it.
    """
    turn = pd.Series(attribute).groupby(attribute).cumcount().to_numpy() % 2
    return np.flatnonzero(turn == 0), np.flatnonzero(turn == 1)


def analyse_checkpoints(
    config: CheckpointsConfig,
    name: str,
    compute: Callable[..., dict[str, xr.Dataset]],
    report: Callable[[Suite, xr.Dataset, str], str],
    said: Callable[[xr.Dataset], list[str]],
    *,
    command: str,
    bar,
    options_of: Callable[..., dict] | None = None,
    **options: object,
) -> str:
    """The findings in words, and the path of the report that was written.

    Args:
        name: of results, their folder and the page.
        compute: called with suite, step, names, facts, device and ``options``; a module's function.
        report: the HTML page, from the suite, the results with ``step``, and the command.
        said: the findings, from the results.
        options_of: further ``options``, from suite, last step, facts and device.
        options: what results depend on besides facts and checkpoint.
    """
    suite = load_suite(config.ckpt)
    steps = select_steps(suite, config.steps)
    target = suite.path / f"{name}.html" if config.report is None else Path(config.report)
    out = suite.path / "results" / name if config.out is None else Path(config.out)
    check_writable(out), check_page(target)
    task = bar.add_task(f"{name}, checkpoint", total=len(steps))
    facts = suite.facts(config.facts, seed=config.seed)
    device = device_of(config.device, here=options_of is not None)
    if options_of:
        options |= options_of(suite, steps[-1], facts=facts, device=device)
    sweep = Sweep(
        suite=suite,
        steps=steps,
        names=[name],
        compute=partial(compute, facts=facts, device=device, **options),
        out=out,
        facts=facts,
        options=options,
        device=device,
        command=command,
    )
    how: dict[str, Any] = {
        "workers": config.workers,
        "on_step": lambda n_done: bar.update(task, completed=n_done),
    }
    if config.cluster.is_part:
        return in_part([sweep], config.cluster, **how)
    with executor_of(config.cluster, workers=config.workers, jobs=out / "jobs") as executor:
        done = over_checkpoints(sweep, executor=executor, **how)
    found = join_steps({step: done[step][name] for step in steps})
    write_bytes(target, report(suite, found, command).encode())
    return "\n".join([*said(found), f"report: {target}  (open it in a browser)"])
