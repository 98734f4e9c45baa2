"""When losses and confidence leave their plateau, relative to its end.

Two readings. *Departures* are first checkpoints from which a mean over people is, for good, beyond
a threshold (``interp.dynamics.plateau``): the same margins on both sides, so that they can be
compared. *Rises* are the onset and midpoint of a whole curve (``interp.dynamics.emergence``), from
its lowest point on: 10 and 50 % of its own rise, so that a large rise has a late onset.
Intervals are over people, of one run; seeds are compared outside.
"""

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


def departures(
    step: Int[np.ndarray, " checkpoint"],
    losses: dict[str, Float[np.ndarray, "checkpoint person"]],
    baseline: float,
) -> pd.DataFrame:
    """One row per departure and margin: ``step``, and ``lag``, how long after the end of the
    plateau (negative: before it), with 95 % percentiles of a bootstrap over people, those of each
    set drawn separately. ``resolution``: steps since the checkpoint before. NaN, also as a bound:
    not by the last checkpoint.
    """
    means = {
        name: resampled_means(loss, n_resamples=N_RESAMPLES, seed=number)
        for number, (name, loss) in enumerate(losses.items())
    }
    draws = [{name: loss.mean(1) for name, loss in losses.items()}]
    draws += [{name: x[:, i] for name, x in means.items()} for i in range(N_RESAMPLES)]
    found = [departure_steps(step, draw, baseline) for draw in draws]
    ends = np.array([draw["known loss below baseline", MARGIN] for draw in found])
    rows = []
    for name, margin in found[0]:
        at = np.array([draw[name, margin] for draw in found])
        place = np.searchsorted(step, at[0]) if np.isfinite(at[0]) else 0
        resolution = float(step[place] - step[place - 1]) if place else np.nan
        row = {"departure": name, "margin": margin, "resolution": resolution}
        rows.append(row | _interval("step", at) | _interval("lag", at - ends))
    return pd.DataFrame(rows)


def departure_steps(
    step: Int[np.ndarray, " checkpoint"],
    losses: dict[str, Float[np.ndarray, " checkpoint"]],
    baseline: float,
) -> dict[tuple[str, float], float]:
    """First checkpoint of each departure, by its name and margin; NaN where there is none. Losses
    are means over the people of each of ``SETS``.
    """
    known, lowest = losses["known"], losses["held out"].argmin()
    found = {}
    for margin in MARGINS:
        for words, level in (
            ("known loss below baseline", baseline),
            ("known loss below its level at the held-out minimum", known[lowest]),
        ):
            found[words, margin] = plateau_end(step, known, level, margin=margin)
        for name in SETS[1:]:
            loss = losses[name]
            apart = knowledge_start(step, known, loss, baseline, margin=margin)
            found[f"{name} loss above its minimum", margin] = rises_from(step, loss, margin=margin)
            found[f"{name} loss above known loss", margin] = apart
    return found


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
