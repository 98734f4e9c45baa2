"""How a patch is pasted into an activation, and where it changes anything; shared by hooks and
recomputed layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.model.gpu import to_device
from interp.patching.activations import ActivationCache
from interp.patching.grid import PatchGrid, Shape, WorkItems, items_of
from interp.patching.sites import SITES, Site
from interp.patching.tensor_ops import padded_index


@dataclass(frozen=True)
class Changes:
    """Positions that work items change, one after the other."""

    items: WorkItems
    row: Int[Tensor, " change"]
    """Which item each change belongs to."""
    fact: Int[Tensor, " change"]
    pos: Int[Tensor, " change"]
    part: Int[Tensor, " change"]
    item: Int[np.ndarray, " change"]
    """``row`` on the CPU, so that what depends on the items need not wait for a GPU."""

    def __getitem__(self, index: np.ndarray | Tensor) -> "Changes":
        here = index if isinstance(index, np.ndarray) else index.cpu().numpy()
        there = index if isinstance(index, Tensor) else to_device(index, self.row.device)
        columns = (x[there] for x in (self.row, self.fact, self.pos, self.part))
        return Changes(self.items, *columns, self.item[here])

    def by_part(self) -> Iterator[tuple[int, Int[Tensor, " n"]]]:
        """Each part, and which changes are of it."""
        part = self.items.part[self.item]
        for i in np.unique(part).tolist():
            yield i, to_device(np.flatnonzero(part == i), self.row.device)

    def sources(self, grid: PatchGrid) -> Bool[Tensor, "change src"]:
        """Sources of the edges that are changed."""
        of_items = grid.sources[self.items.source, self.items.fact]
        return to_device(of_items, self.row.device)[self.row]


def changes_of(items: WorkItems, at: Bool[np.ndarray, "item pos"], device: torch.device) -> Changes:
    """The changes of ``items`` at the positions ``at``, some of them maybe twice."""
    row, pos = (padded_index(x) for x in at.nonzero())
    columns = (row, items.fact[row], pos, items.part[row])
    return Changes(items, *(to_device(x, device) for x in columns), row)


def differing_items(
    site: str,
    layer: int,
    base: ActivationCache,
    source: ActivationCache,
    grid: PatchGrid,
    cfg: Shape,
) -> WorkItems:
    """The items of one site and layer whose activations differ in any layer of the window."""
    window = grid.layers(site, layer, cfg.n_layers)
    differs = np.logical_or.reduce(
        [_differing(base[at], source[at], SITES[site], grid, cfg) for at in window]
    )
    return items_of(site, layer, differs, grid)


def _differing(
    base: dict[str, Tensor], source: dict[str, Tensor], site: Site, grid: PatchGrid, cfg: Shape
) -> Bool[np.ndarray, "part source fact pos"]:
    """Where two layers of activation caches differ at a site; for edges, at their destination."""
    if site.cut:
        seen = grid.reaching()
        return np.broadcast_to(seen, (site.n_parts(cfg, grid.n_neurons), *seen.shape))
    if base is source:
        return np.zeros((1, 1, *grid.may_differ.shape), bool)
    differs = base[site.activation] != source[site.activation]
    if site.is_edge:
        of = torch.from_numpy(grid.sources).to(differs.device)[:, :, None, None]
        differs = torch.stack([(differs & sources).any(-1) for sources in of])
        differs = rearrange(differs, "source fact head pos -> head source fact pos")
    else:
        if site.part == "neuron":
            differs = differs.unflatten(-1, (-1, grid.n_neurons))
        axes = "fact pos -> 1 1 fact pos"
        if site.part:
            axes = "fact pos part -> part 1 fact pos"
        if site.is_table:
            axes = "fact part pos -> part 1 fact pos"
        differs = rearrange(differs.any(-1), axes)
    return differs.cpu().numpy() & grid.may_differ


def paste(
    x: Float[Tensor, "row *rest"],
    site: Site,
    at: Changes,
    slot: Int[Tensor, " change"],
    grid: PatchGrid,
    source: dict[str, Tensor],
) -> None:
    """Makes changes in ``x``, in place.

    Args:
        x: (row, slot, ...), or (row, head, slot, src) of attention scores and patterns.
        slot: the place of each change among the positions that ``x`` has.
        source: the layer of an activation cache whose values are pasted; cuts need none.
    """
    to = _index(site, at.row, slot, at.part, grid.n_neurons)
    if site.cut:
        sources = at.sources(grid)
        x[to] = x[to].masked_fill(sources if site.part else sources[:, None], -torch.inf)
        return
    new = source[site.activation][_index(site, at.fact, at.pos, at.part, grid.n_neurons)]
    x[to] = torch.where(at.sources(grid), new, x[to]) if site.is_edge else new


def _index(
    site: Site,
    row: Int[Tensor, " change"],
    pos: Int[Tensor, " change"],
    part: Int[Tensor, " change"],
    n_neurons: int,
) -> tuple:
    """Where each change is in an activation."""
    if site.is_table:
        return row, part if site.part else slice(None), pos
    if site.part == "neuron":
        units = part[:, None] * n_neurons + torch.arange(n_neurons, device=part.device)
        return row[:, None], pos[:, None], units
    return (row, pos, part) if site.part else (row, pos)
