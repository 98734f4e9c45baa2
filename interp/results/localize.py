"""Localization of a run: which components recall facts at each checkpoint, and since when."""

import warnings
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from interp.config import ATTRIBUTES
from interp.data.facts import FactSet
from interp.dynamics.plateau import Phases, phases
from interp.fields import LARGEST_SEED, argument
from interp.jupyter import OnStep, progress_bar
from interp.localization.checkpoint_answers import asked_of, checkpoint_answers
from interp.localization.formation import Localization, find
from interp.model.decoder import device_of
from interp.results.over_checkpoints import over_checkpoints
from interp.results.pieces import Sweep, facts_digest
from interp.results.store import join_steps
from interp.results.sweep import check_steps
from interp.suite import Suite
from interp.training.metrics_table import AVERAGE

N_FACTS, N_PEOPLE = 128, 640
"""Of each attribute: facts that are asked, and people that probes are fitted on, by default."""


def localize(
    suite: Suite,
    facts: FactSet | None = None,
    *,
    people: FactSet | None = None,
    steps: Sequence[int] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 1,
    executor: Executor | None = None,
    max_memory: float = 2.0,
    command: str = "",
    on_step: OnStep | None = None,
) -> Localization:
    """Which heads and MLPs implement each mechanism of factual recall at every checkpoint, and when
    each mechanism formed. In a notebook the result is shown as a table.

    Args:
        facts: by default ``N_FACTS`` of each attribute, or as many as the run has.
        people: facts that linear probes are fitted on; by default ``N_PEOPLE`` of each attribute.
            Where ``facts`` are about nobody of the run's population, or the suite has none, there
            are no probes by default.
        steps: all steps of the suite, if none are given.
        out: folder of result files, by default results/localization in the run folder. Those that
            are there already are reused, new ones are written as soon as they are finished.
        seed: of the facts that are sampled, and of shuffled controls.
        workers: how many checkpoints are evaluated in parallel, each in a process of its own.
        executor: evaluates them in place of workers here, such as ``Client(...).get_executor()``
            of Dask; its processes must see the same folders.
        max_memory: gigabytes (10⁹ bytes) that a worker's activations may take.
        command: recorded in the result files.
        on_step: called with the number of checkpoints done; by default a progress bar is drawn in
            a notebook or a terminal.

    Raises:
        ValueError: unknown step; a damaged checkpoint, or one of another shape; facts of another
            vocabulary; a model with parallel blocks; another process works in ``out``.
        KeyboardInterrupt: it was stopped; the message says what is kept and how to go on.
    """
    asked: dict[str, Any] = {"steps": steps, "out": out, "seed": seed, "device": device}
    sweep = localization_sweep(
        suite, facts, people=people, max_memory=max_memory, command=command, **asked
    )
    with progress_bar(len(sweep.steps), "localizing", on_step) as on_step:
        done = over_checkpoints(sweep, workers=workers, executor=executor, on_step=on_step)
    answers = {
        name: join_steps({step: of[name] for step, of in done.items()}) for name in sweep.names
    }
    return find(answers, plateau(suite).plateau_end)


def localization_sweep(
    suite: Suite,
    facts: FactSet | None = None,
    *,
    people: FactSet | None = None,
    steps: Sequence[int] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    max_memory: float = 2.0,
    command: str = "",
) -> Sweep:
    """What ``localize`` asks of every checkpoint, with the same arguments; reads no weights.

    Raises:
        ValueError: as ``localize``.
    """
    argument("suite", suite, Suite)
    given = argument("steps", steps, tuple[int, ...] | None)
    steps = suite.steps if given is None else sorted(set(given))
    seed = argument("seed", seed, int, least=0, most=LARGEST_SEED)
    facts = _sampled(suite, N_FACTS, seed) if facts is None else argument("facts", facts, FactSet)
    if people is None and are_of_people(suite, facts):
        people = _sampled(suite, N_PEOPLE, seed)
    check_steps(suite, steps, facts)
    argument("people", people, FactSet | None)
    if people is not None:
        check_steps(suite, steps, people)
    device = device_of(device, here=False)
    how: dict[str, Any] = {"seed": seed, "max_memory": max_memory, "device": device}
    return Sweep(
        suite=suite,
        steps=steps,
        names=asked_of(people),
        compute=partial(_of_step, facts=facts, people=people, **how),
        out=Path(results_of(suite, out)),
        facts=facts,
        options={"people": digest_of(people), "seed": seed},
        device=device,
        command=command,
    )


def results_of(suite: Suite, out: str | Path | None) -> str | Path:
    """The folder of a localization's results."""
    return suite.results_folder("localization") if out is None else out


def are_of_people(suite: Suite, facts: FactSet) -> bool:
    """Whether the facts are about people of the suite's population, so that more can be drawn."""
    return suite.is_run and bool((facts.texts.person >= 0).all())


def digest_of(people: FactSet | None) -> str:
    """Empty where there are none."""
    return "" if people is None else facts_digest(people)


def localizable(facts: FactSet) -> FactSet:
    """The facts that have a control: another fact of their attribute with no first token of a value
    in common; warns of the others.

    Raises:
        ValueError: fewer than two have one.
    """
    if facts.corrupted_answers is None:
        raise ValueError("the facts have no corrupted answers, which localization needs; give some")
    pairs = torch.stack((facts.answers[:, 0], facts.corrupted_answers[:, 0]), 1).numpy()
    attribute = facts.texts.attribute.to_numpy(object)
    differ = ~(pairs[:, None, :, None] == pairs[None, :, None, :]).any((2, 3))
    differ &= attribute[:, None] == attribute[None]
    kept = differ.any(1)  # one that is left out is nobody's control
    left = list(dict.fromkeys(attribute[~kept]))
    if kept.sum() < 2:
        raise ValueError(
            f"none of the {len(facts)} facts has another of its relation with other values, as a "
            "control; ask for more facts, or for fewer relations"
        )
    if left:
        warnings.warn(
            f"{(~kept).sum()} of {len(facts)} facts are left out, on {', '.join(map(repr, left))}: "
            "no other fact of the relation has other values, as a control",
            stacklevel=1,
        )
    return facts[np.flatnonzero(kept).tolist()]


def has_metrics(suite: Suite) -> bool:
    """Whether the suite recorded its loss over training."""
    return suite.is_run and (suite.path / "metrics.parquet").is_file()


def plateau(suite: Suite) -> Phases:
    """Phases of the loss on people trained on; NaN where the run has no metrics."""
    if not has_metrics(suite):
        return Phases(np.nan, np.nan)
    metrics = suite.metrics.sort_values("step", kind="stable")
    metrics = metrics[(metrics.split == "train") & (metrics.attribute == AVERAGE)]
    steps, loss = metrics.step.to_numpy(), metrics.loss.to_numpy()
    return phases(steps, loss, suite.no_knowledge_baseline)


def _sampled(suite: Suite, n_each: int, seed: int) -> FactSet:
    told = suite.config.attributes if suite.config else ATTRIBUTES  # without one facts() refuses
    return suite.facts(n_each * len(told), attribute=told, seed=seed, fewer=True)


def _of_step(
    suite: Suite,
    step: int,
    questions: list[str],
    *,
    facts: FactSet,
    people: FactSet | None,
    device: str,
    **options,
) -> dict[str, xr.Dataset]:
    model = suite.load(step, device=device)
    return checkpoint_answers(model, facts, people, questions=questions, **options)
