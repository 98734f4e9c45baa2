"""Patching over training: the same facts and sites at every checkpoint; stored results are kept."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from interp.config import Precision
from interp.data.facts import FactSet, check_vocabulary
from interp.fields import argument
from interp.jupyter import OnStep, progress_bar
from interp.model.decoder import DecoderConfig, device_of
from interp.patching.act_patch import patch_sites
from interp.patching.intervention import Intervention, check_sites, intervention, prepared
from interp.results.over_checkpoints import over_checkpoints
from interp.results.pieces import Sweep
from interp.results.store import join_steps
from interp.suite import Suite

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def patch_suite(
    suite: Suite,
    facts: FactSet,
    *,
    sites: Sequence[str] = (),
    steps: Sequence[int] | None = None,
    out: str | Path | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    workers: int = 1,
    executor: Executor | None = None,
    max_memory: float = 2.0,
    made_from: dict | None = None,
    command: str = "",
    on_step: OnStep | None = None,
    **options,
) -> xr.DataTree:
    """One node per site, each a ``patch`` result with a leading ``step``.

    Args:
        sites: the default sites of the model, if none are given.
        steps: all steps of the suite, if none are given.
        out: folder of result files. Those that are there already are reused, new ones are written
            as soon as they are finished. Without it nothing is written.
        workers: how many checkpoints are patched in parallel, each in a process of its own.
        executor: patches them in place of workers here, such as ``Client(...).get_executor()`` of
            Dask; its processes must see the same folders.
        max_memory: gigabytes (10⁹ bytes) that a worker's activations may take.
        made_from: where ``facts`` come from; recorded, and a change of it recomputes.
        command: recorded in the result files.
        on_step: called with the number of checkpoints done; by default a progress bar is drawn in
            a notebook or a terminal.
        options: the fields of ``interp.patching.Intervention``.

    Raises:
        ValueError: unknown site, step or worker number; a damaged checkpoint, or one of another
            shape; facts of another vocabulary; another process works in ``out``.
        KeyboardInterrupt: it was stopped; the message says what is kept and how to go on.
    """
    asked: dict[str, Any] = {"sites": sites, "steps": steps, "out": out, "made_from": made_from}
    how: dict[str, Any] = {"device": device, "precision": precision, "max_memory": max_memory}
    sweep = patching_sweep(suite, facts, command=command, **asked, **how, **options)
    label = f"patching {', '.join(sweep.names)}"
    with progress_bar(len(sweep.steps), label, on_step) as on_step:
        done = over_checkpoints(sweep, workers=workers, executor=executor, on_step=on_step)
    return xr.DataTree.from_dict({
        site: join_steps({step: done[step][site] for step in sweep.steps}) for site in sweep.names
    })  # fmt: skip


def patching_sweep(
    suite: Suite,
    facts: FactSet,
    *,
    sites: Sequence[str] = (),
    steps: Sequence[int] | None = None,
    out: str | Path | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    max_memory: float = 2.0,
    made_from: dict | None = None,
    command: str = "",
    **options,
) -> Sweep:
    """What ``patch_suite`` computes, with the same arguments; reads no weights.

    Raises:
        ValueError: as ``patch_suite``.
    """
    how = intervention(options)
    argument("suite", suite, Suite), argument("facts", facts, FactSet)
    argument("precision", precision, Precision)
    device = device_of(device, here=False)
    given = argument("steps", steps, tuple[int, ...] | None)
    steps = suite.steps if given is None else sorted(set(given))
    sites = check_sweep(suite, facts, steps, sites, how)
    where: dict[str, Any] = {"facts": facts, "device": device, "precision": precision}
    return Sweep(
        suite=suite,
        steps=steps,
        names=sites,
        compute=partial(_patch_one, max_memory=max_memory, **where, **asdict(how)),
        out=None if out is None else Path(argument("out", out, str, is_path=True)),
        options=asdict(how),
        made_from=argument("made_from", made_from, dict | None) or {},
        command=command,
        **where,
    )


def check_sweep(
    suite: Suite, facts: FactSet, steps: Sequence[int], sites: Sequence[str], how: Intervention
) -> list[str]:
    """The sites of a sweep over ``steps`` of a suite; reads no weights.

    Raises:
        ValueError: a site can't be patched in this way at these steps on ``facts``.
    """
    shape = check_steps(suite, steps, facts)
    sites = check_sites(sites, parallel=shape.parallel, direction=how.direction)
    prepared(shape, sites, facts, how)
    return sites


def check_steps(suite: Suite, steps: Sequence[int], facts: FactSet) -> DecoderConfig:
    """The shape that the models at ``steps`` have in common; reads no weights.

    Raises:
        ValueError: there are no steps; a checkpoint is damaged, or of another shape; ``facts`` are
            of another vocabulary.
    """
    if not steps:
        known = ", ".join(map(str, suite.steps[:5])) + (", ..." if len(suite.steps) > 5 else "")
        raise ValueError(f"steps is empty; choose some of {known}")
    shape = suite.check(steps)
    check_vocabulary(facts, suite.vocabulary, str(suite.path))
    return shape


def _patch_one(
    suite: Suite, step: int, sites: list[str], *, device: str, precision: Precision, **options
) -> dict[str, xr.Dataset]:
    model = suite.load(step, device=device).to(_DTYPES[precision])
    return patch_sites(model, sites=sites, **options)
