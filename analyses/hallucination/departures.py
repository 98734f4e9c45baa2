"""When losses and confidence leave their plateau, relative to its end.

Two readings. *Departures* are first checkpoints from which a mean over people is, for good, beyond
a threshold (``interp.dynamics.plateau``): the same margins on both sides, so that they can be
compared. *Rises* are the onset and midpoint of a whole curve (``interp.dynamics.emergence``), from
its lowest point on: 10 and 50 % of its own rise, so that a large rise has a late onset.
Intervals are over people, of one run; seeds are compared outside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int

from analyses.hallucination.people_sets import SETS
from interp.dynamics.emergence import MIN_CHECKPOINTS, emergence, lag_to
from interp.dynamics.plateau import MARGIN, knowledge_start, plateau_end, rises_from
from interp.statistics import resampled_means

MARGINS = (MARGIN, 0.02, 0.05)
"""Shares of the baseline, or of the lowest loss, that a loss must leave it by."""
N_RESAMPLES = 1000
RISES = (
    ("known", "loss", -1),
    ("known", "max_probability", 1),
    ("held out", "loss", 1),
    ("held out", "max_probability", 1),
    ("two parts shared", "loss", 1),
    ("two parts shared", "max_probability", 1),
    ("one part shared", "loss", 1),
    ("one part shared", "max_probability", 1),
)
"""Set, measure, and 1 for its rise, −1 for its fall."""
_Losses = dict[str, Float[np.ndarray, "checkpoint person"]]


@dataclass(frozen=True)
class _Rule:
    """A departure: what it reads off the mean losses of sets."""

    name: str
    margin: float
    step: Callable[[dict[str, np.ndarray]], float]


def departures(
    step: Int[np.ndarray, " checkpoint"], losses: _Losses, baseline: float
) -> pd.DataFrame:
    """One row per departure and margin: ``step``, and ``lag``, how long after the end of the
    plateau (``plateau_end`` with its own margin; negative: before it), with 95 % percentiles of a
    bootstrap over people, known and unknown ones drawn separately. ``resolution``: steps from the
    checkpoint before. NaN, also as a bound: not by the last checkpoint.
    """
    means = {
        name: resampled_means(loss, n_resamples=N_RESAMPLES, seed=number)
        for number, (name, loss) in enumerate(losses.items())
    }
    draws = [{name: loss.mean(1) for name, loss in losses.items()}]
    draws += [{name: x[:, i] for name, x in means.items()} for i in range(N_RESAMPLES)]
    ends = np.array([plateau_end(step, draw["known"], baseline) for draw in draws])
    rows = []
    for rule in _rules(step, baseline):
        at = np.array([rule.step(draw) for draw in draws])
        place = np.searchsorted(step, at[0]) if np.isfinite(at[0]) else 0
        rows.append({
            "departure": rule.name, "margin": rule.margin, **_interval("step", at),
            **_interval("lag", at - ends),
            "resolution": float(step[place] - step[place - 1]) if place else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _rules(step: np.ndarray, baseline: float) -> list[_Rule]:
    found = []
    for margin in MARGINS:
        rules = {
            "known loss below baseline": lambda x, m: plateau_end(
                step, x["known"], baseline, margin=m
            ),
            "known loss below its level at the held-out minimum": lambda x, m: plateau_end(
                step, x["known"], x["known"][x["held out"].argmin()], margin=m
            ),
        }
        for name in SETS[1:]:
            rules[f"{name} loss above its minimum"] = lambda x, m, name=name: rises_from(
                step, x[name], margin=m
            )
            rules[f"{name} loss above known loss"] = lambda x, m, name=name: knowledge_start(
                step, x["known"], x[name], baseline, margin=m
            )
        found += [_Rule(name, margin, partial(_with, rule, margin)) for name, rule in rules.items()]
    return found


def _with(rule: Callable, margin: float, losses: dict[str, np.ndarray]) -> float:
    return rule(losses, margin)


def _interval(name: str, draws: np.ndarray) -> dict[str, float]:
    """The value of the people as they are, and bounds; a resample without one counts as later than
    all.
    """
    late = np.where(np.isfinite(draws[1:]), draws[1:], np.inf)
    low, high = np.quantile(late, [0.025, 0.975], method="closest_observation")
    low, high = (float(x) if np.isfinite(x) else np.nan for x in (low, high))
    return {name: float(draws[0]), f"{name}_low": low, f"{name}_high": high}


def rises(
    step: Int[np.ndarray, " checkpoint"],
    people: dict[str, xr.Dataset],
    end: float,
) -> pd.DataFrame:
    """One row per curve of ``RISES``: whether it emerged, or why not; ``onset`` and ``midpoint``
    (steps), the midpoint's ``lag`` to the end of the plateau, and ``onset_lag``, with intervals
    over people.

    Only checkpoints from the lowest held-out loss on are read: before it all losses fall.
    """
    loss = people["held out"].loss.mean("person").values
    late = slice(int(loss.argmin()), None)
    rows = []
    for name, measure, sign in RISES:
        curve = sign * people[name][measure].isel(step=late).rename(person="fact")
        row = {"set": name, "measure": measure, "falls": sign < 0, "from_step": step[late][0]}
        if curve.sizes["step"] < MIN_CHECKPOINTS or not np.isfinite(end):
            rows.append(
                row | {"emerged": False, "reason": "no plateau end, or too few checkpoints"}
            )
            continue
        found, lag = emergence(curve), lag_to(curve, end)
        marks = [f"{x}{y}" for x in ("onset", "midpoint") for y in ("", "_low", "_high")]
        row |= {key: float(found[key]) for key in (*marks, "resolution_onset")}
        row |= {key: float(lag[key]) for key in ("lag", "lag_low", "lag_high")}
        row |= {f"onset_lag{y}": row[f"onset{y}"] - end for y in ("", "_low", "_high")}
        rows.append(row | {"emerged": bool(found.emerged), "reason": str(found.reason.item())})
    return pd.DataFrame(rows)
