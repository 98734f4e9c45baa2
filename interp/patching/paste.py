"""How a patch is pasted into an activation, and where it changes anything; shared by hooks and
recomputed layers.
"""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.patching.grid import PatchGrid, Shape
from interp.patching.sites import Site


def differing(
    base: dict[str, Tensor], source: dict[str, Tensor], site: Site, grid: PatchGrid, cfg: Shape
) -> Bool[np.ndarray, "part source fact pos"]:
    """Where two layers of activation caches differ at a site; for edges, at their destination."""
    if site.cut:
        seen = grid.reaching()
        return np.broadcast_to(seen, (site.n_parts(cfg, grid.n_neurons), *seen.shape))
    if base is source:
        n_facts, n_pos = grid.positions.shape[1:]
        return np.zeros((1, 1, n_facts, n_pos), bool)
    differs = base[site.activation] != source[site.activation]
    if site.is_edge:
        of = torch.from_numpy(grid.sources).to(differs.device)[:, :, None, None]
        by_source = [(differs & sources).any(-1) for sources in of]
        differs = rearrange(torch.stack(by_source), "source fact head pos -> head source fact pos")
        return differs.cpu().numpy()
    if site.part == "neuron":
        differs = differs.unflatten(-1, (-1, grid.n_neurons))
    differs = differs.any(-1)
    if site.is_table:
        differs = rearrange(differs, "fact head pos -> head fact pos")
    elif site.part:
        differs = rearrange(differs, "fact pos part -> part fact pos")
    else:
        differs = differs[None]
    return differs[:, None].cpu().numpy()


def pasted_values(
    layer: dict[str, Tensor],
    site: Site,
    fact: Int[Tensor, " change"],
    pos: Int[Tensor, " change"],
    part: Int[Tensor, " change"],
    n_neurons: int,
) -> Float[Tensor, "change *rest"]:
    """The activations that a layer of an activation cache has at each change."""
    x = layer[site.activation]
    if site.is_table:
        return x[fact, part, pos]
    if site.part == "neuron":
        return x[fact[:, None], pos[:, None], _units(part, n_neurons)]
    return x[fact, pos, part] if site.part else x[fact, pos]


def paste(
    x: Tensor,
    site: Site,
    row: Int[Tensor, " change"],
    slot: Int[Tensor, " change"],
    part: Int[Tensor, " change"],
    n_neurons: int,
    new: Float[Tensor, "change *rest"] | None,
    sources: Tensor | None,
) -> None:
    """Writes the patch into ``x`` in place.

    Args:
        x: (row, slot, ...), or (row, head, slot, src) of attention scores and patterns.
        slot: the place of each change among the positions that ``x`` has.
        new: ``pasted_values``; None for cuts.
        sources: (change, src) of edges, else None.
    """
    if site.cut:
        heads, cut = (part, sources) if site.part else (slice(None), sources[:, None])
        x[row, heads, slot] = x[row, heads, slot].masked_fill(cut, -torch.inf)
    elif site.is_table:
        x[row, part, slot] = torch.where(sources, new, x[row, part, slot]) if site.is_edge else new
    elif site.part == "neuron":
        x[row[:, None], slot[:, None], _units(part, n_neurons)] = new
    elif site.part:
        x[row, slot, part] = new
    else:
        x[row, slot] = new


def _units(group: Int[Tensor, " change"], size: int) -> Int[Tensor, "change unit"]:
    return group[:, None] * size + torch.arange(size, device=group.device)
