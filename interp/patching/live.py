"""Which rows of work there are: those whose change can reach what is read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool

from interp.patching.activations import Run
from interp.patching.grid import AT_ENTRY, CUTS, Cells, Rows, concatenate, reached, rows_of

if TYPE_CHECKING:
    from interp.patching.engine import Engine


@dataclass(frozen=True)
class Sweep:
    """The runs and cells of one sweep. The engine keeps none of them, so that several sweeps can be
    under way on it at once.
    """

    engine: "Engine"
    cells: Cells
    base: Run
    """The run that is changed."""
    source: Run
    """The run that activations are pasted from."""
    may_differ: Bool[np.ndarray, "fact pos"]
    """False where the two runs differ by rounding at most."""


@torch.inference_mode()
def rows_by_entry(sweep: Sweep, sites: list[str]) -> dict[int, list[Rows]]:
    """The rows whose activations differ, by the first layer whose residual stream the change
    enters.
    """
    tables: dict[int, list[Rows]] = {}
    cells, n_layers = sweep.cells, sweep.engine.n_layers
    for site in sites:
        for layer in cells.swept(site, n_layers):
            window = cells.layers(layer, n_layers) if site != "embed" else range(1)
            differs = np.logical_or.reduce([_differs(sweep, site, at) for at in window])
            if differs.any():
                rows = rows_of(site, layer, differs, cells)
                tables.setdefault(window.start + (site not in AT_ENTRY), []).append(rows)
    return tables


def live(sweep: Sweep, tables: list[Rows], entry: int) -> tuple[Rows, Bool[np.ndarray, "row pos"]]:
    """Those that anything read depends on, and the positions of the residual stream entering
    layer ``entry`` that they change.
    """
    rows, engine = concatenate(tables), sweep.engine
    at = reached(rows, sweep.cells) if len(rows) else np.zeros((0, 1), bool)
    pos = np.arange(at.shape[1])
    at &= pos < engine.n_total[rows.fact, None]
    if entry == engine.n_layers:
        at &= pos >= engine.n_prompt[rows.fact, None] - 1
    keep = np.flatnonzero(at.any(1))
    return rows[keep], at[keep]


def _differs(sweep: Sweep, site: str, layer: int) -> Bool[np.ndarray, "part source fact pos"]:
    """Where the two runs' activations differ at all; of an edge, at its destination."""
    runs = sweep.base[layer], sweep.source[layer]
    engine, cells = sweep.engine, sweep.cells
    if site in CUTS:
        seen = cells.reaching()
        n_parts = engine.n_heads if site == "head_knockout" else 1
        return np.broadcast_to(seen, (n_parts, *seen.shape))
    if runs[0] is runs[1]:
        return np.zeros((1, 1, *sweep.may_differ.shape), bool)
    if site in ("pattern", "edge"):
        base, source = (engine.pattern(run) for run in runs)
        differs = rearrange(base != source, "fact head dest src -> head fact dest src")
        if site == "edge":
            of = torch.from_numpy(cells.sources).to(engine.device)[:, :, None]
            differs = torch.stack([(differs & sources).any(-1) for sources in of], 1)
        else:
            differs = differs.any(-1)[:, None]
    elif site == "mlp_post":
        groups = (runs[0].mlp_post != runs[1].mlp_post).split(cells.n_neurons, -1)
        differs = torch.stack([group.any(-1) for group in groups])[:, None]
    else:
        base, source = (getattr(run, "resid_pre" if site == "embed" else site) for run in runs)
        differs = (base != source).any(-1)
        differs = differs[None] if differs.ndim == 2 else rearrange(differs, "f p h -> h f p")
        differs = differs[:, None]
    return differs.cpu().numpy() & sweep.may_differ
