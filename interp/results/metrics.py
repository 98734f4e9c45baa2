"""Effects, shares recovered and their confidence intervals, computed from the stored values of
each fact.
"""

import xarray as xr

from interp.config import CONTROL, METRICS, OWN_METRIC
from interp.fields import LARGEST_SEED, argument
from interp.statistics import runs_differ, share_interval


def of_metric(result: xr.Dataset | xr.DataTree, metric: str) -> xr.Dataset:
    """``patched``, ``clean`` and ``corrupted`` in one metric.

    Raises:
        ValueError: there is no such metric, or ``result`` is not the result of one site.
    """
    if not isinstance(result, (xr.Dataset, xr.DataTree)) or "patched" not in result:
        raise ValueError("this is not the result of one site; give one, such as tree['z']")
    names = (*METRICS, CONTROL, OWN_METRIC)
    suffixes = {name: "" if name == METRICS[0] else f"_{name}" for name in names}
    known = [name for name, suffix in suffixes.items() if f"clean{suffix}" in result]
    if metric not in known:
        raise ValueError(f"no metric {metric!r}; there are {', '.join(known)}")
    suffix = suffixes[metric]
    if result["clean" + suffix].isnull().all():
        raise ValueError(
            f"these facts have no corrupted answers, so no {metric}; use metric='first_logprob'"
        )
    columns = {name + suffix: name for name in ("patched", "clean", "corrupted")}
    values = result.to_dataset() if isinstance(result, xr.DataTree) else result
    return values[list(columns)].rename(columns)


def _with_gap(result: xr.Dataset | xr.DataTree, metric: str) -> xr.Dataset:
    """``of_metric``; raises a ValueError for facts without corrupted prompts."""
    if of_metric(result, "first_logprob").corrupted.isnull().all():
        raise ValueError(
            "these facts have no corrupted prompts, so there is no clean − corrupted gap to take a "
            "share of; use interp.effect(result, metric='first_logprob')"
        )
    return of_metric(result, metric)


def effect(result: xr.Dataset | xr.DataTree, metric: str = "logit_diff") -> xr.DataArray:
    """Patched − base per fact, in nats: positive towards the clean answer, so mostly positive when
    denoising and mostly negative when noising. ``own_metric`` has the unit and sign of the function
    that was given.
    """
    values = of_metric(result, metric)
    base = values.corrupted if result.attrs["direction"] == "denoising" else values.clean
    return (
        (values.patched - base)
        .rename("effect")
        .assign_attrs(
            units=values.patched.attrs.get("units", "nats"), long_name=f"effect on {metric}"
        )
    )


def recovered(result: xr.Dataset | xr.DataTree, metric: str = "logit_diff") -> xr.DataArray:
    """Mean (patched − corrupted) ÷ mean (clean − corrupted) over the facts that have the cell; 0 is
    as corrupted, 1 as clean, and values are not clipped.
    """
    return _recovered(_with_gap(result, metric), metric)


def _recovered(values: xr.Dataset, metric: str) -> xr.DataArray:
    gap = (values.clean - values.corrupted).where(values.patched.notnull())
    share = (values.patched - values.corrupted).mean("fact") / gap.mean("fact")
    return share.rename("recovered").assign_attrs(
        units="share of clean − corrupted", long_name=f"{metric} recovered"
    )


def interval(
    result: xr.Dataset | xr.DataTree,
    metric: str = "logit_diff",
    *,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """``recovered`` as ``estimate``, with its percentile bootstrap confidence interval over facts,
    ``low`` and ``high``, which are NaN for a single fact.

    Every cell and step uses the same resampled facts, so that they can be compared.
    """
    confidence = argument("confidence", confidence, float, above=0, below=1)
    n_resamples = argument("n_resamples", n_resamples, int, least=1)
    seed = argument("seed", seed, int, least=0, most=LARGEST_SEED)
    values = _with_gap(result, metric)
    gained = (values.patched - values.corrupted).transpose(..., "fact")
    gap = values.clean - values.corrupted
    gap = gap.expand_dims([x for x in gained.dims if x not in gap.dims]).transpose(*gained.dims)
    low, high = share_interval(
        gained.values, gap.values, confidence=confidence, n_resamples=n_resamples, seed=seed
    )
    dims = gained.dims[:-1]
    return xr.Dataset(
        {"estimate": _recovered(values, metric), "low": (dims, low), "high": (dims, high)},
        attrs=result.attrs,
    )


def distinguishable(result: xr.Dataset, metric: str = "logit_diff") -> xr.DataArray:
    """Whether the clean and the corrupted run can be told apart (``statistics.runs_differ``), so
    that there is a difference of which a share can be recovered.
    """
    values = _with_gap(result, metric)
    return xr.apply_ufunc(runs_differ, values.clean - values.corrupted, input_core_dims=[["fact"]])


def moved(result: xr.Dataset, metric: str = "logit_diff") -> xr.Dataset:
    """How far patching moved the run, with the bounds of ``interval``: 0 is as unpatched, 1 is as
    the run patched from. It is the share recovered when denoising, the share lost when noising.
    """
    shares = interval(result, metric)
    if result.attrs["direction"] == "denoising":
        return shares
    lost = {"estimate": 1 - shares.estimate, "low": 1 - shares.high, "high": 1 - shares.low}
    return xr.Dataset(lost, attrs=shares.attrs)
