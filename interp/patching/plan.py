"""What a sweep will take, said before it runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp.facts import FactSet
from interp.model import DecoderConfig
from interp.patching.cells import AT_ENTRY, EDGES, reached, rows_of
from interp.patching.patch import Intervention, cells_of, check_sites, n_parts


@dataclass(frozen=True)
class Plan:
    """Of one site at one checkpoint; ``str`` says it in a line."""

    site: str
    shape: dict[str, int]
    """Number of layers, heads, ... of the cells."""
    n_facts: int
    n_live: int
    """(cell, fact) pairs that can differ from the base run: the ones to compute, at most."""
    flops: float
    """Of the matrix products, at most; what pads a batch to its longest row comes on top."""
    flops_of_forwards: float
    """Of a whole forward pass a (cell, fact)."""

    @property
    def n_cells(self) -> int:
        return int(np.prod(list(self.shape.values())))

    def __str__(self) -> str:
        cells = " × ".join(f"{n} {name}s" for name, n in self.shape.items())
        share = self.flops / self.flops_of_forwards
        return (
            f"{self.site}: {cells} = {self.n_cells:,} cells on {self.n_facts} facts; "
            f"{self.n_live:,} of {self.n_cells * self.n_facts:,} (cell, fact) pairs to compute, "
            f"{self.flops / 1e9:,.1f} GFLOP, {share:.0%} of a forward pass for each cell and fact"
        )


def plan(cfg: DecoderConfig, facts: FactSet, *, sites: Sequence[str] = (), **options) -> list[Plan]:
    """A ``Plan`` a site, from shapes and tokens alone: neither loads nor runs a model.

    Args:
        options: the fields of ``Intervention``.
    """
    how = Intervention(**options)
    cells, labels, may_differ = cells_of(facts, how)
    n_value = (facts.answers >= 0).sum(1).numpy() if how.whole_value else np.ones(len(facts), int)
    n_prompt = facts.lengths.numpy()
    n_total = n_prompt + n_value - 1
    weights = 2 * (4 * cfg.d_model**2 + 2 * cfg.d_model * cfg.d_mlp)
    plans = []
    for site in check_sites(sites, parallel=cfg.parallel):
        parts = n_parts(site, cfg, how)
        n_layers = 1 if site == "embed" else cfg.n_layers
        n_live, flops = 0, 0.0
        differs = np.broadcast_to(may_differ, (parts, 1, *may_differ.shape))
        if site in EDGES:
            seen = np.logical_or.accumulate(cells.sources, 2)
            seen &= may_differ | (site == "knockout")
            differs = np.broadcast_to(seen, (parts, *seen.shape))
        for layer in range(n_layers):
            rows = rows_of(site, layer, differs, cells)
            entry = cells.layers(layer, cfg.n_layers).start + (site not in AT_ENTRY)
            at = reached(rows, cells) & (np.arange(may_differ.shape[1]) < n_total[rows.fact, None])
            if entry == cfg.n_layers:
                at &= np.arange(at.shape[1]) >= n_prompt[rows.fact, None] - 1
            live = at.any(1)
            tokens = (n_total[rows.fact] - at.argmax(1))[live]
            read = n_value[rows.fact][live]
            attention = 4 * cfg.d_model * may_differ.shape[1]
            n_live += int(live.sum())
            flops += float(
                (tokens * max(0, cfg.n_layers - 1 - entry) * (weights + attention)).sum()
            )
            if entry < cfg.n_layers:
                flops += float((tokens * 4 * cfg.d_model**2 + read * (weights + attention)).sum())
            flops += float((read * 2 * cfg.d_model * cfg.d_vocab).sum())
            flops += float(at.sum() * weights) if site not in AT_ENTRY else 0.0
        shape = {"layer": n_layers}
        if parts > 1:
            shape["group" if site == "mlp_post" else "head"] = parts
        shape |= (
            {"destination": len(labels), "source": len(labels)}
            if site in EDGES
            else {how.by if how.by == "role" else "position": len(labels)}
        )
        whole = float((n_total * (cfg.n_layers * weights + 2 * cfg.d_model * cfg.d_vocab)).sum())
        n_cells = int(np.prod(list(shape.values())))
        flops *= how.noise_draws if how.replacement == "noise" else 1
        plans.append(Plan(site, shape, len(facts), n_live, flops, n_cells * whole))
    return plans
