"""The localization that a report shows: the stored one, or else a quick one on few facts."""

from collections.abc import Callable
from functools import partial
from math import ceil

import xarray as xr

from analyses.report import ReportPageConfig
from analyses.report.stored_results import stored
from interp.data.facts import FactSet
from interp.localization.checkpoint_answers import checkpoint_answers
from interp.localization.formation import Localization, find
from interp.model.decoder import device_of
from interp.results.localize import plateau
from interp.results.over_checkpoints import over_checkpoints
from interp.results.pieces import Sweep
from interp.results.store import join_steps
from interp.suite import Suite, select_steps

ASKED = ("needs", "readings", "attention")
"""Questions of ``checkpoint_answers`` that mechanisms and their times follow from."""
MOST_STEPS = 12


def localization_of(
    suite: Suite,
    config: ReportPageConfig,
    *,
    command: str,
    on_step: Callable[[int], None],
) -> tuple[Localization, bool]:
    """Mechanisms and times, and whether they are those of the quick localization."""
    answers = stored(suite, suite.path / "results" / "localization", ASKED)
    quick = answers is None
    if quick:
        answers = _computed(suite, config, command, on_step)
    return find(answers, plateau(suite).plateau_end), quick


def quick_steps(suite: Suite) -> list[int]:
    """At most ``MOST_STEPS`` checkpoints, evenly spread, the last one among them."""
    return select_steps(suite, f"every:{ceil(len(suite.steps) / MOST_STEPS)}")


def _computed(
    suite: Suite, config: ReportPageConfig, command: str, on_step: Callable[[int], None]
) -> dict[str, xr.Dataset]:
    told = suite.config.attributes
    n = config.facts * len(told)
    facts = suite.facts(n, attribute=told, seed=config.seed, fewer=True)
    device, steps = device_of(config.device), quick_steps(suite)
    sweep = Sweep(
        suite=suite,
        steps=steps,
        names=list(ASKED),
        compute=partial(_of_step, facts=facts, device=device, seed=config.seed),
        out=suite.path / "results" / "localization-quick",
        facts=facts,
        options={"seed": config.seed},
        device=device,
        command=command,
    )
    done = over_checkpoints(sweep, workers=config.workers, on_step=on_step)
    return {name: join_steps({step: done[step][name] for step in steps}) for name in ASKED}


def _of_step(
    suite: Suite, step: int, questions: list[str], *, facts: FactSet, device: str, seed: int
) -> dict[str, xr.Dataset]:
    model = suite.load(step, device=device)
    return checkpoint_answers(model, facts, facts, questions=questions, seed=seed)
