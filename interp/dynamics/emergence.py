"""When a quantity emerged over training checkpoints, for any labelled curve.

y(step) is the mean over facts, f its isotonic fit (never falling; every checkpoint weighs the
same), noise² = Σ(y − f)² ÷ (checkpoints − blocks of f). A level is the mean of f where it lies
within one noise of its first or last value; rise = final − initial level; onset, midpoint and
completion are where f, linear between checkpoints, has made 10, 50 and 90 % of it. It emerged if
(a) the rise is above ``NOISES`` noises, and above 0 with its whole interval;
(b) under ``P_ORDER`` of the permutations of the checkpoints reach the isotonic fit's R²;
(c) completion − onset is at most ``WIDEST`` of the span of steps.
Intervals: bootstrap over facts, with the noise added that they don't explain. They are of one
run: not evidence for other seeds. Noise is taken as independent between checkpoints, and (b) is for
one curve at a time: a slow wander can pass, as 8 of 100 random walks do.
"""

from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from warnings import catch_warnings, simplefilter

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy.random import default_rng
from scipy.optimize import isotonic_regression

from interp.dynamics.curve_table import read_curve_table
from interp.fields import LARGEST_SEED, argument
from interp.statistics import holm, percentiles, resampled_means

MARKS = {"onset": 0.1, "midpoint": 0.5, "completion": 0.9}
NOISES = 5  # below it a tenth of the rise is lost in noise, and drifts come out as steps
P_ORDER, N_PERMUTATIONS = 0.01, 999
WIDEST = 0.5  # no drift linear in step or its root (0.8), no exponential with τ > 0.24 spans
# A jump between flat levels has p = 1 ÷ C(n, n/2) at best: 0.014 at 8, 0.008 at 9. With a
# checkpoint on the rise 8 are enough (0.004); 5 to 7 only for curves that have hardly a level.
MIN_CHECKPOINTS = 8
_Curves = Float[np.ndarray, "resample step"]

NOT_ABOVE = "rise over facts not significant"
IN_NOISE = "rise within the noise between checkpoints"
ANY_ORDER = "monotone trend not significant"
DRIFT = "gradual drift rather than a step"
TOO_FEW = f"defined at fewer than {MIN_CHECKPOINTS} checkpoints"


@dataclass(frozen=True)
class Order:
    """The emerged curves by midpoint; the share of resamples with this order; the p values of
    neighbours.
    """

    labels: tuple
    share: float
    p_values: tuple[float, ...]
    significant: bool


def emergence(
    curve: xr.DataArray, *, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> xr.Dataset:
    """When ``curve`` (step, or step and fact) rose, for each cell of its other dims; negate a curve
    to find its fall. Steps at which no fact has a value are left out.

    Returns:
        ``onset``, ``midpoint``, ``completion`` (steps) and ``rise``, with ``_low`` and ``_high``:
        percentiles over resampled facts, which depend on ``seed`` and that curve alone; NaN for
        fewer than two facts.
        ``resolution_…``: steps between the checkpoints around the mark, of which nothing is known.
        ``emerged``; ``reason``: "" or the rule that failed first, and then no steps are given. A
        curve that rises to its end has its final level there.

    Raises:
        ValueError: fewer than ``MIN_CHECKPOINTS`` steps, no increasing ones, infinite values.
    """
    found = _found(curve, confidence, n_resamples, seed)
    values = {"emerged": found.reason == "", "reason": found.reason}
    for mark in MARKS:
        there = found.sel(mark=mark, drop=True)
        values |= _interval(mark, there.at, confidence)
        values[f"resolution_{mark}"] = (there.after - there.before).assign_attrs(units="steps")
    values |= _interval("rise", found.rise, confidence, curve.attrs.get("units", ""))
    return xr.Dataset(values, attrs={"confidence": confidence})


def lag_to(
    curve: xr.DataArray,
    reference: int | float,
    *,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """``lag`` = midpoint − ``reference`` (steps, positive = after it; taken as exact), with bounds;
    ``resolved``: whether the two lie in different checkpoint intervals. NaN where nothing emerged.
    """
    if not np.isfinite(reference):
        raise ValueError(f"the reference is step {reference}; give a finite one")
    found = _found(curve, confidence, n_resamples, seed).sel(mark="midpoint", drop=True)
    lag = _interval("lag", found.at - reference, confidence)
    resolved = (found.after < reference) | (found.before >= reference)
    return xr.Dataset(lag | {"resolved": resolved}, attrs={"confidence": confidence})


def lags(
    curve: xr.DataArray,
    *,
    between: str,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """How much later one curve emerged than another, for all ordered pairs of labels along
    ``between``; ``curve`` is (between, step) or, for intervals, (between, step, fact).

    Returns:
        (earlier, later) ``lag`` = midpoint(later) − midpoint(earlier), steps, with bounds;
        ``probability``: share of resamples with a lag above 0; ``p_value`` of lag = 0, two-sided,
        Holm-adjusted over the pairs that emerged, at least 2 · pairs ÷ (n_resamples + 1);
        ``resolved``: whether the midpoints lie in different checkpoint intervals. NaN: not emerged.
    """
    return _lags(_found(curve, confidence, n_resamples, seed, between), between, confidence)


def order(
    curve: xr.DataArray,
    *,
    between: str,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Order:
    """The most frequent order of midpoints over the resamples (its share is NaN without facts);
    significant if every neighbouring pair is resolved with p < 1 − confidence, as of ``lags``.

    Raises:
        ValueError: too few resamples for that many pairs ever to be significant.
    """
    found = _found(curve, confidence, n_resamples, seed, between)
    emerged = np.flatnonzero(found.reason == "")
    pairs = len(emerged) * (len(emerged) - 1) // 2
    needed = int(2 * pairs / (1 - confidence))
    if n_resamples < needed:
        raise ValueError(f"{pairs} pairs can't be significant with {n_resamples=}; give {needed}")
    midpoints = found.at.sel(mark="midpoint").values[emerged]
    draws = midpoints[:, 1:][:, ~np.isnan(midpoints[:, 1:]).any(0)]
    share, by_time = float("nan"), np.argsort(midpoints[:, 0], kind="stable")
    if draws.size:
        orders, counts = np.unique(np.argsort(draws, 0, kind="stable"), axis=1, return_counts=True)
        share, by_time = float(counts.max() / counts.sum()), orders[:, counts.argmax()]
    chosen = emerged[by_time]
    both, place = _lags(found, between, confidence), (chosen[:-1], chosen[1:])
    p, resolved = both.p_value.values[place], both.resolved.values[place]
    significant = pairs > 0 and bool((resolved & (p < 1 - confidence)).all())
    labels = tuple(found[between].values[chosen].tolist())
    return Order(labels, share, tuple(p.tolist()), significant)


def read_curves(path: Path) -> xr.DataArray:
    """Values (curve, step, fact) of a CSV with the columns step, value (empty = undefined) and, if
    wanted, curve (a label) and fact (the sample); without a column there is no such dim.

    Raises:
        FileNotFoundError, ValueError: no such file, not such a CSV.
    """
    table = read_curve_table(path)
    dims = [column for column in ("curve", "step", "fact") if column in table]
    values = table.set_index(dims).value.to_xarray().sortby("step")
    return values.sel(curve=table.curve.unique()) if "curve" in dims else values


def _found(
    curve: xr.DataArray, confidence: float, n_resamples: int, seed: int, between: str | None = None
) -> xr.Dataset:
    """Marks and rise of each curve by resample (0: the facts as they are), and ``reason``."""
    _check(curve, confidence, n_resamples, between)
    argument("seed", seed, int, least=0, most=LARGEST_SEED)
    curve = curve if "fact" in curve.dims else curve.expand_dims("fact")
    facts = curve.transpose(..., "fact").astype(float)
    mean = facts.mean("fact")
    draws = n_resamples if curve.sizes["fact"] > 1 else 1  # NaN: one fact says nothing of others
    resampled = resampled_means(facts.values, n_resamples=draws, seed=seed)
    joined = np.concatenate([mean.values[..., None], resampled], -1)
    means = xr.DataArray(joined, mean.coords, (*mean.dims, "resample"))
    streams = xr.DataArray(0) if between is None else _streams(curve[between])
    with catch_warnings():
        simplefilter("ignore", RuntimeWarning)  # NaN: no fact of a resample at a step, or no rise
        parts = xr.apply_ufunc(
            partial(_cell, curve.step.values.astype(float), confidence=confidence, seed=seed),
            means,
            streams,
            input_core_dims=[["resample", "step"], []],
            output_core_dims=[["mark", "resample"], ["mark"], ["mark"], ["resample"], []],
            output_dtypes=[float, float, float, float, object],
            vectorize=True,
        )
    found = xr.Dataset(dict(zip(("at", "before", "after", "rise", "reason"), parts)))
    return found.assign(reason=found.reason.astype(str)).assign_coords(mark=list(MARKS))


def _streams(labels: xr.DataArray) -> xr.DataArray:
    """A seed for each label, which depends on that label alone: curves that are compared need
    independent noise, and the same noise whichever other curves there are.
    """
    digests = [sha256(str(label).encode()).digest()[:7] for label in labels.values.tolist()]
    numbers = [int.from_bytes(digest) for digest in digests]
    return xr.DataArray(numbers, {labels.name: labels}, (labels.name,))


def _check(curve: xr.DataArray, confidence: float, n_resamples: int, between: str | None) -> None:
    if not isinstance(curve, xr.DataArray) or curve.dtype.kind not in "iufb":
        raise ValueError(f"the curve is {str(curve)[:60]!r}; give a DataArray of numbers")
    argument("n_resamples", n_resamples, int), argument("confidence", confidence, float)
    got, needs = sorted({*map(str, curve.dims)} - {"fact"}), sorted({"step", between or "step"})
    if "step" not in got or (between and got != needs):
        raise ValueError(f"the curve has the dims {got} beside fact; give it {needs}")
    step = curve.step.values
    if step.dtype.kind not in "iuf" or not np.isfinite(step).all():
        raise ValueError(f"the steps are {step[:3]}…; give finite numbers")
    if len(step) < MIN_CHECKPOINTS:
        raise ValueError(f"the curve has {len(step)} steps; give at least {MIN_CHECKPOINTS}")
    for i in np.flatnonzero(np.diff(step) <= 0):
        raise ValueError(f"step {step[i + 1]} comes after step {step[i]}; sort them, each once")
    if np.isinf(curve).any():
        raise ValueError("the curve has infinite values; make NaN what is undefined")
    if not 0 < confidence < 1 or n_resamples < 1:
        raise ValueError(f"{confidence=} and {n_resamples=} give no interval; take 0.95 and 1000")


def _cell(
    step: np.ndarray, means: _Curves, stream: np.integer, *, confidence: float, seed: int
) -> tuple:
    step, means = step[~np.isnan(means[0])], means[:, ~np.isnan(means[0])]
    places = np.full((3, len(MARKS), len(means)), np.nan)
    rise, reason = np.full(len(means), np.nan), TOO_FEW
    if len(step) >= MIN_CHECKPOINTS:
        # What varies between checkpoints in all facts alike, drawing facts again does not vary.
        rng = default_rng([seed, 13, int(stream)])
        own, noise = np.nanmean(np.diff(means[1:] - means[0]) ** 2) / 2, _fit(step, means[:1])[2]
        means[1:] += np.sqrt(np.maximum(0, noise**2 - own)) * rng.normal(size=means[1:].shape)
        defined = ~np.isnan(means)
        for steps in {row.tobytes(): row for row in defined}.values():
            rows = (defined == steps).all(1)
            if steps.sum() > 1:
                places[..., rows], rise[rows], _ = _fit(step[steps], means[np.ix_(rows, steps)])
        low, _ = percentiles(rise[1:], confidence)  # NaN without facts
        reason = NOT_ABOVE if low <= 0 else _why_not(step, means[0], seed)
    at, before, after = np.full_like(places, np.nan) if reason else places
    return at, before[:, 0], after[:, 0], rise, reason


def _fit(step: np.ndarray, curves: _Curves) -> tuple[np.ndarray, ...]:
    """Places (at, before, after; mark, resample) in steps, rise and noise (resample)."""
    fit = np.stack([isotonic_regression(curve).x for curve in curves])
    first, last = fit[:, :1], fit[:, -1:]
    # As many degrees of freedom as blocks (Meyer and Woodroofe 2000, doi 10.1214/aos/1015956708).
    blocks = 1 + (np.diff(fit) > 1e-9 * (last - first)).sum(1)
    noise = np.sqrt(((curves - fit) ** 2).sum(1) / np.maximum(1, fit.shape[1] - blocks))
    # The ends of f are extremes of running means, half a noise too far out; what lies within one
    # noise of them is one plateau, whose mean is less so. Without noise, the ends are the levels.
    initial = np.mean(fit, 1, where=fit <= first + noise[:, None])
    rise = np.mean(fit, 1, where=fit >= last - noise[:, None]) - initial
    levels = initial + np.outer([*MARKS.values()], rise)
    after = np.maximum(1, (fit >= (levels - 1e-9 * rise)[..., None]).argmax(-1))
    row = np.arange(len(fit))
    share = (levels - fit[row, after - 1]) / (fit[row, after] - fit[row, after - 1])
    at = step[after - 1] + share * (step[after] - step[after - 1])
    places = np.stack([at, step[after - 1], step[after]])
    return np.where(rise > 0, places, np.nan), rise, noise


def _why_not(step: np.ndarray, curve: Float[np.ndarray, " step"], seed: int) -> str:
    (at, _, _), rise, noise = _fit(step, curve[None])
    if not rise > NOISES * noise:
        return IN_NOISE
    if not _is_ordered(curve, seed):
        return ANY_ORDER
    return DRIFT if at[-1] - at[0] > WIDEST * (step[-1] - step[0]) else ""


def _is_ordered(curve: Float[np.ndarray, " step"], seed: int) -> bool:
    """Whether under ``P_ORDER`` of the permutations, the curve's own order among them, are fitted
    as well; stops at the permutation that decides it.
    """
    rng, least, as_good = default_rng(seed), _remainder(curve) + 1e-9 * curve.var(), 1
    for _ in range(N_PERMUTATIONS):
        if as_good / (1 + N_PERMUTATIONS) >= P_ORDER:
            break
        as_good += bool(_remainder(rng.permuted(curve)) <= least)
    return as_good / (1 + N_PERMUTATIONS) < P_ORDER


def _remainder(curve: Float[np.ndarray, " step"]) -> float:
    """What the isotonic fit leaves: the total sum of squares is the same in every order, so that a
    higher R² is a smaller remainder.
    """
    return ((curve - isotonic_regression(curve).x) ** 2).sum()


def _interval(name: str, draws: xr.DataArray, confidence: float, units: str = "steps") -> dict:
    bounds = percentiles(draws.values[..., 1:], confidence)
    sample = draws[..., 0].assign_attrs(units=units)
    low, high = (sample.copy(data=bound) for bound in bounds)
    return {name: sample, f"{name}_low": low, f"{name}_high": high}


def _lags(found: xr.Dataset, between: str, confidence: float) -> xr.Dataset:
    found = found.sel(mark="midpoint", drop=True).assign_coords({between: found[between]})
    earlier, later = (found.rename({between: name}) for name in ("earlier", "later"))
    lag = (later.at - earlier.at).transpose("earlier", "later", "resample")
    draws = lag[..., 1:]
    n_draws = draws.notnull().sum("resample").where(lambda count: count > 0)
    fewer = np.minimum((draws <= 0).sum("resample"), (draws >= 0).sum("resample"))
    p = np.minimum(1, 2 * (1 + fewer) / (1 + n_draws))
    pairs, adjusted = np.triu_indices(len(p), 1), np.full(p.shape, np.nan)
    adjusted[pairs] = adjusted.T[pairs] = holm(p.values[pairs])
    values = {
        "probability": (draws > 0).sum("resample") / n_draws,
        "p_value": p.copy(data=adjusted),
        "resolved": (earlier.after <= later.before) | (later.after <= earlier.before),
    }
    values = _interval("lag", lag, confidence) | values
    return xr.Dataset(values, attrs={"confidence": confidence}).transpose("earlier", "later")
