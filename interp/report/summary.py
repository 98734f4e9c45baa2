"""The results of a sweep in one sentence and one table."""

import numpy as np
import xarray as xr

from interp.report.figures.labels import SHARES, cell_label, components, site_label
from interp.report.page import Block, Cell, Entry, Paragraph, Table
from interp.results.metrics import distinguishable, moved, of_metric


def summary(
    results: dict[str, xr.Dataset], other: dict[str, xr.Dataset] | None = None
) -> list[Block]:
    """The last checkpoint's logit differences, and its strongest patches at names and at the end,
    in both directions where ``other`` holds the other one.
    """
    first = next(iter(results.values()))
    step, values = int(first.step[-1]), of_metric(first, "logit_diff").isel(step=-1)
    clean, corrupted = float(values.clean.mean()), float(values.corrupted.mean())
    ways = sorted([results, *([other] if other else [])], key=_direction)
    directions = " and ".join(map(_direction, ways))
    text = (
        f"At the last checkpoint patched, step {step}, the logit difference is {clean:.2f} nats on "
        f"clean prompts and {corrupted:.2f} on corrupted ones (n = {first.sizes['fact']} facts, "
        f"{directions}). "
    )
    if not distinguishable(first).isel(step=-1):
        text += "The model does not tell them apart, so no patch can be singled out."
        return [Paragraph(text, "lead")]
    method = first.attrs.get("method", "exact")
    effect = "effect" if method == "exact" else f"effect as {method} estimates it from gradients"
    text += f"The single patches with the largest {effect}, with the share and its 95 % interval:"
    shown = components(results)
    columns = [
        (f"{place}, {SHARES[_direction(way)]}", labels, way)
        for place, labels in _places(next(iter(shown.values()))).items()
        for way in ways
    ]
    rows = [
        [site_label(site), *(_best(site, way[site], where) for _, where, way in columns)]
        for site in shown
    ]
    return [Paragraph(text, "lead"), Table(["", *(head for head, _, _ in columns)], rows)]


def _direction(way: dict[str, xr.Dataset]) -> str:
    return next(iter(way.values())).attrs["direction"]


def _places(result: xr.Dataset) -> dict[str, list[str]]:
    """Sets of positions, by name, for which the strongest patch is reported; for an edge, its
    destinations.
    """
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


def _best(site: str, result: xr.Dataset, where: list[str]) -> Cell:
    """Table cell: the strongest patch at the positions ``where``, and its share."""
    last = moved(result.isel(step=[-1])).isel(step=0)
    axis = _axis(result)
    wanted = last.isel({axis: [str(x) in where for x in last[axis].values]})
    wanted = wanted.where(wanted.estimate != 0)  # nothing reached what is read
    cells = wanted.stack(cell=wanted.estimate.dims).dropna("cell", subset=["estimate"])
    if not cells.sizes["cell"]:
        return "–"
    best = cells.isel(cell=int(np.argmax(cells.estimate.values)))
    place = dict(zip(cells.indexes["cell"].names, best.cell.item()))
    bounds = f" [{float(best.low):.2f}, {float(best.high):.2f}]" if np.isfinite(best.low) else ""
    return [Entry(cell_label(site, place), f": {float(best.estimate):.2f}{bounds}")]
