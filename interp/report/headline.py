"""What a sweep found, in one sentence and one table."""

from html import escape

import numpy as np
import xarray as xr

from interp.report.figures.labels import SHARES, cell_label, site_label
from interp.results.metrics import distinguishable, moved, of_metric


def headline(results: dict[str, xr.Dataset], other: dict[str, xr.Dataset] | None = None) -> str:
    """HTML: what the last checkpoint answers, and its strongest cells at names and at the end, in
    both directions where ``other`` holds the other one.
    """
    first = next(iter(results.values()))
    step, values = int(first.step[-1]), of_metric(first, "logit_diff").isel(step=-1)
    clean, corrupted = float(values.clean.mean()), float(values.corrupted.mean())
    ways = [results, *([other] if other else [])]
    directions = " and ".join(sorted(_direction(way) for way in ways))
    text = (
        f"<p class='lead'>At the last checkpoint patched, step {step}, the logit difference is "
        f"{clean:.2f} nats on clean prompts and {corrupted:.2f} on corrupted ones "
        f"(n = {first.sizes['fact']} facts, {escape(directions)}). "
    )
    if not distinguishable(first).isel(step=-1):
        return text + "It does not tell them apart, so no cell can be named.</p>"
    components = {site: result for site, result in results.items() if not site.startswith("resid")}
    shown = components or results
    columns = [
        (f"{place}, {SHARES[_direction(way)]}", labels, way)
        for place, labels in _places(next(iter(shown.values()))).items()
        for way in sorted(ways, key=_direction)
    ]
    rows = "".join(
        f"<tr><th>{escape(site_label(site))}</th>"
        f"{''.join(_best(site, way[site], where) for _, where, way in columns)}</tr>"
        for site in shown
    )
    heads = "".join(f"<th>{name}</th>" for name, _, _ in columns)
    return (
        f"{text}The single cells that move it most, with the share and its 95 % interval:</p>"
        f"<table><tr><th></th>{heads}</tr>{rows}</table>"
    )


def _direction(way: dict[str, xr.Dataset]) -> str:
    return next(iter(way.values())).attrs["direction"]


def _places(result: xr.Dataset) -> dict[str, list[str]]:
    """Where to look for the strongest cell; of an edge, at its destination."""
    labels = [str(x) for x in result[_axis(result)].values]
    if result.attrs["by"] == "pos":
        return {"at any position": labels}
    if any("+" in label or label == "all" for label in labels):
        return {"at any group": labels}
    if "final" not in labels or not any(x.startswith("name") for x in labels):
        return {"at any role": labels}
    return {"at name tokens": [x for x in labels if x.startswith("name")], "at final": ["final"]}


def _axis(result: xr.Dataset) -> str:
    return "dest" if "dest" in result.dims else result.attrs["by"]


def _best(site: str, result: xr.Dataset, where: list[str]) -> str:
    """Table cell that names the strongest patch among the positions ``where``."""
    last = moved(result.isel(step=[-1])).isel(step=0)
    axis = _axis(result)
    wanted = last.isel({axis: [str(x) in where for x in last[axis].values]})
    wanted = wanted.where(wanted.estimate != 0)  # nothing reached what is read
    cells = wanted.stack(cell=wanted.estimate.dims).dropna("cell", subset=["estimate"])
    if not cells.sizes["cell"]:
        return "<td>–</td>"
    best = cells.isel(cell=int(np.argmax(cells.estimate.values)))
    place = dict(zip(cells.indexes["cell"].names, best.cell.item()))
    bounds = f"[{float(best.low):.2f}, {float(best.high):.2f}]" if np.isfinite(best.low) else ""
    label = escape(cell_label(site, place))
    return f"<td><b>{label}</b>: {float(best.estimate):.2f} {bounds}</td>"
