"""The maps of patching on the page of a run: shares moved by every patch, over training."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from einops import rearrange

from interp.report.figures.labels import SHARES, site_label
from interp.results.metrics import distinguishable, moved

_MAP = ("step", "layer", "head", "fact")
_METRICS = ("logit_diff", "first_logprob")


def patching_of(
    results: Mapping[str, xr.Dataset], other: Mapping[str, xr.Dataset] | None = None
) -> dict | None:
    """Shares moved by each patch with their intervals, for all facts and for those of each
    attribute; None if no site has a map of layers (or heads) by positions.

    Args:
        results: with ``step``, by site; ``other``: the same in the other direction.
    """
    by = next(iter(results.values())).attrs["by"]
    shown = {
        site: _slim(result)
        for site, result in results.items()
        if {"step", "layer", by, "fact"} <= set(result.patched.dims) <= {*_MAP, by}
    }
    if not shown:
        return None
    first = next(iter(shown.values()))
    attributes = ["all", *dict.fromkeys(first.attribute.values.astype(str))]
    back = None if other is None else {site: _slim(other[site]) for site in shown}
    ways = {x[next(iter(shown))].attrs["direction"]: x for x in (shown, back) if x}
    metrics = [x for x in _METRICS if all(_has(result, x) for result in shown.values())]
    of = first.attribute.values.astype(str)
    asked = [x for x in attributes[1:] if _has(first.isel(fact=np.flatnonzero(of == x)))]
    attributes = ["all", *asked]
    return {
        "steps": first.step.values,
        "attributes": attributes if len(attributes) > 2 else attributes[:1],
        "shares": SHARES,
        "words": {site: site_label(site) for site in shown},
        "sites": {site: _axes(result, by) for site, result in shown.items()},
        "values": {
            direction: {
                metric: {
                    name: _maps({site: way[site] for site in shown}, metric, name, by)
                    for name in attributes
                }
                for metric in metrics
            }
            for direction, way in ways.items()
        },
    }


def _slim(result: xr.Dataset) -> xr.Dataset:
    """What maps need of a result: xarray takes its time over every variable and coordinate."""
    ends = ("patched", "clean", "corrupted")
    names = map(str, result.data_vars)
    kept = [x for x in names if x.partition("_")[0] in ends and "value" not in x]
    spare = [x for x in result.coords if x not in result.dims and x != "attribute"]
    return result[kept].drop_vars(spare)


def _has(result: xr.Dataset, metric: str = "logit_diff") -> bool:
    """Whether clean and corrupted runs were scored in ``metric``."""
    suffix = "" if metric == "logit_diff" else f"_{metric}"
    ends = [f"{end}{suffix}" for end in ("clean", "corrupted")]
    return all(end in result and bool(result[end].notnull().any()) for end in ends)


def _axes(result: xr.Dataset, by: str) -> dict:
    layers = [str(x) for x in result.layer.values]
    n_heads = result.sizes.get("head", 0)
    heads = [f"L{layer}H{head}" for layer in layers for head in range(n_heads)]
    return {
        "rows": heads or [f"layer {layer}" for layer in layers],
        "columns": [str(x) for x in result[by].values],
    }


def _maps(results: Mapping[str, xr.Dataset], metric: str, attribute: str, by: str) -> dict:
    """By site ``mean``, ``low`` and ``high`` [step][row][column], null where the two runs can't be
    told apart, ``apart`` [step], whether they can, and ``n`` [row][column]; and ``n`` of all facts.
    """
    first = next(iter(results.values()))
    wanted = (first.attribute.values.astype(str) == attribute) | (attribute == "all")
    maps: dict = {"n": int(wanted.sum())}
    for site, result in results.items():
        chosen = result.isel(fact=np.flatnonzero(wanted))
        apart = distinguishable(chosen, metric)
        shares = moved(chosen, metric).where(apart)
        names = {"mean": "estimate", "low": "low", "high": "high"}
        maps[site] = {name: _rows(shares[x], by) for name, x in names.items()}
        there = chosen.patched.isel(step=[-1]).notnull().sum("fact")
        maps[site] |= {"n": _rows(there, by)[0], "apart": apart.values}
    return maps


def _rows(values: xr.DataArray, by: str) -> np.ndarray:
    """(step, row, ``by``), a row for each layer, or for each head of each."""
    if "head" not in values.dims:
        return values.transpose("step", "layer", by).values
    by_head = values.transpose("step", "layer", "head", by).values
    return rearrange(by_head, "step layer head column -> step (layer head) column")
