"""The residual stream just after a patch: a change inside a block, carried to the block's end.

What does not depend on the patch is the base run's. A change of one head or of a group of neurons
goes through the output weights of that part alone, because the output is linear in each part.
"""

from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.model.attention import softmax, weigh
from interp.model.flop_count import add_flops
from interp.model.gpu import to_device
from interp.patching.activations import ActivationCache
from interp.patching.grid import PatchGrid
from interp.patching.packed_weights import PackedModel, all_scores
from interp.patching.paste import Changes
from interp.patching.sites import SITES, Site
from interp.patching.tensor_ops import padded_index


@dataclass(frozen=True)
class Sweep:
    """The weights, the patch grid and the two runs of one batch of facts."""

    weights: PackedModel
    grid: PatchGrid
    base: ActivationCache
    """Activations of the run that is patched."""
    source: ActivationCache
    """Activations that are pasted."""
    _scores: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    def base_scores(self, layer: int) -> Float[Tensor, "fact head dest src"]:
        """Attention scores of the base run, computed once, when they are first asked for."""
        with self._lock:
            if layer not in self._scores:
                base = self.base[layer]
                self._scores[layer] = all_scores(base["rot_q"], base["rot_k"])
            return self._scores[layer]


def changed_stream(sweep: Sweep, entry: int, changes: Changes) -> Float[Tensor, "change d_model"]:
    """The patched residual stream entering layer ``entry`` at each change."""
    embedding, row = sweep.weights.embedding, changes.row
    out = embedding.new_empty(len(row), embedding.shape[1])
    site_of = changes.items.site[changes.item]
    for name in np.unique(site_of):
        at = padded_index(np.flatnonzero(site_of == name))
        site = SITES[str(name)]
        layer = entry if site.before_block else entry - 1
        out[to_device(at, row.device)] = _after(sweep, site, layer, changes[at])
    return out


def _after(sweep: Sweep, site: Site, layer: int, at: Changes) -> Float[Tensor, "change d_model"]:
    """The residual stream after the block, or before it for sites that are there."""
    base, source, name = sweep.base[layer], sweep.source[layer], site.activation
    if name == "embed":
        return sweep.weights.at_positions(source[name][at.fact, at.pos], at.pos)
    if name in ("resid_pre", "resid_post"):
        return source[name][at.fact, at.pos]
    block = sweep.weights.blocks[layer]
    mid = base["resid_pre" if block.parallel else "resid_mid"][at.fact, at.pos]
    attn_out, mlp_out = (base[x][at.fact, at.pos] for x in ("attn_out", "mlp_out"))
    if name.startswith("mlp"):
        mlp_out = _mlp_out(sweep, site, layer, at, mid)
    elif name == "resid_mid":
        mid = source[name][at.fact, at.pos]
    else:
        change = _attn_out(sweep, site, layer, at) - attn_out
        mid, attn_out = (mid, attn_out + change) if block.parallel else (mid + change, attn_out)
    if not block.parallel and not name.startswith("mlp"):
        mlp_out = block.mlp(mid)
    return mid + mlp_out + (attn_out if block.parallel else 0)


def _mlp_out(
    sweep: Sweep, site: Site, layer: int, at: Changes, mid: Float[Tensor, "change d_model"]
) -> Float[Tensor, "change d_model"]:
    """What the MLP writes, given the base run's residual stream that it reads."""
    base, source, name = sweep.base[layer], sweep.source[layer], site.activation
    if name == "mlp_out":
        return source[name][at.fact, at.pos]
    block, size = sweep.weights.blocks[layer], sweep.grid.n_neurons
    if block.norm_after:
        neurons = base[name][at.fact, at.pos]
        for i, here in at.by_part():
            units = slice(i * size, (i + 1) * size)
            neurons[here, units] = source[name][at.fact[here], at.pos[here], units]
        if name == "mlp_pre":
            neurons = block.from_pre(neurons, mid, slice(None))
        return block.down(neurons)
    out, weight = base["mlp_out"][at.fact, at.pos], block.neuron_out.weight
    for i, here in at.by_part():
        units = slice(i * size, (i + 1) * size)
        fact, pos = at.fact[here], at.pos[here]
        new, old = (x[name][fact, pos, units] for x in (source, base))
        if name == "mlp_pre":
            new, old = (block.from_pre(x, mid[here], units) for x in (new, old))
        add_flops(2 * new.numel() * len(weight))
        out[here] += (new - old) @ weight[:, units].mT
    return out


def _attn_out(sweep: Sweep, site: Site, layer: int, at: Changes) -> Float[Tensor, "change d_model"]:
    """What attention writes."""
    base, name = sweep.base[layer], site.activation
    source, block = sweep.source[layer], sweep.weights.blocks[layer]
    if name == "attn_out":
        return source[name][at.fact, at.pos]
    if name not in ("q", "k") or not block.normed_together:
        given = None if site.cut else source[name]
        return written_by_heads(sweep, layer, *_z_change(sweep, site, layer, at, given), at)
    out = base["attn_out"][at.fact, at.pos]  # the norm of one head's query or key is that of all
    for i, here in at.by_part():
        given = base[name].clone()
        given[:, :, i] = source[name][:, :, i]
        some = at[here]
        change, _ = _z_change(sweep, site, layer, some, given, every_head=True)
        heads = torch.arange(block.n_heads, device=here.device).expand(len(here), -1)
        out[here] = written_by_heads(sweep, layer, change, heads, some)
    return out


def written_by_heads(
    sweep: Sweep,
    layer: int,
    change: Float[Tensor, "change part d_head"],
    heads: Int[Tensor, "change part"],
    at: Changes,
) -> Float[Tensor, "change d_model"]:
    """What attention writes when z of some heads changes."""
    base, block = sweep.base[layer], sweep.weights.blocks[layer]
    if block.norm_after:
        z = base["z"][at.fact, at.pos]
        rows = torch.arange(len(z), device=z.device)[:, None]
        z[rows, heads] += change
        return block.out(z.flatten(1))
    weight = block.head_out.weight
    add_flops(2 * change.numel() * len(weight))
    out = base["attn_out"][at.fact, at.pos]
    if heads.shape[1] == block.n_heads:
        return out + change.flatten(1) @ weight.mT
    by_head = rearrange(weight, "m (part n d) -> part m (n d)", n=heads.shape[1], d=block.d_head)
    for part, here in at.by_part():
        out[here] += change[here].flatten(1) @ by_head[part].mT
    return out


def _z_change(
    sweep: Sweep,
    site: Site,
    layer: int,
    at: Changes,
    given: Tensor | None,
    *,
    every_head: bool = False,
) -> tuple[Float[Tensor, "change part d_head"], Int[Tensor, "change part"]]:
    """How heads' outputs z change at each changed position, and which heads these are.

    Args:
        given: what is pasted; None for cuts.
        every_head: they are all heads; else those of the changed part.
    """
    block, base = sweep.weights.blocks[layer], sweep.base[layer]
    n = {"head": 1, "key_value_head": block.n_heads // block.counts["k"]}.get(site.part)
    every = torch.arange(block.n_heads, device=at.part.device)
    heads = every.expand(len(at.part), -1)
    if n and not every_head:
        heads = at.part[:, None] * n + every[:n]
    if site.at != "token":
        return _z_change_by_source(sweep, site, layer, at, heads, given), heads
    z = given if site.activation == "z" else _z_by_destination(sweep, site, layer, given)
    fact, pos = at.fact[:, None], at.pos[:, None]
    return z[fact, pos, heads] - base["z"][fact, pos, heads], heads


def _z_by_destination(
    sweep: Sweep, site: Site, layer: int, given: Tensor
) -> Float[Tensor, "fact pos head d"]:
    """Outputs z of all heads if every destination had the ``given`` query, scores or pattern. A
    destination's z depends on no other destination's, so all can be replaced at once.
    """
    base, name = sweep.base[layer], site.activation
    if name == "pattern":
        return weigh(given, base["v"])
    if name == "attn_scores":
        return weigh(softmax(given), base["v"])
    q = sweep.weights.rotated(layer, "q", given) if name == "q" else given
    return weigh(softmax(all_scores(q, base["rot_k"])), base["v"])


def _z_change_by_source(
    sweep: Sweep,
    site: Site,
    layer: int,
    at: Changes,
    heads: Int[Tensor, "change part"],
    given: Tensor | None,
) -> Float[Tensor, "change part d_head"]:
    """How the heads' outputs z change at each changed position when keys, values or edges change at
    its sources.
    """
    base, grid, name = sweep.base[layer], sweep.grid, site.activation
    which, one, inverse = np.unique(at.item, return_index=True, return_inverse=True)
    n_pos, device = base["z"].shape[1], at.row.device
    local = to_device(inverse, device)
    first = local.new_full((len(which),), n_pos).scatter_reduce(0, local, at.pos, "amin")
    slot = at.pos - first[local]
    dest = first[:, None] + torch.arange(int(slot.max()) + 1, device=device)
    dest = dest.clamp(max=n_pos - 1)
    items = at.items[which]
    sets = (grid.sources, items.source) if site.is_edge else (grid.positions, items.group)
    chosen = to_device(sets[0][sets[1], items.fact], device)[:, None, None]
    fact, head = to_device(items.fact, device)[:, None], heads[to_device(one, device)]
    key = head // (base["z"].shape[2] // base["v"].shape[2])

    def of_items(x: Float[Tensor, "fact head pos src"]) -> Float[Tensor, "item part dest src"]:
        return x[fact[..., None], head[..., None], dest[:, None]]

    scores = of_items(sweep.base_scores(layer))
    if site.cut:
        scores = scores.masked_fill_(chosen, -torch.inf)
    elif name in ("k", "rot_k"):
        k = sweep.weights.rotated(layer, "k", given) if name == "k" else given
        scores = torch.where(chosen, of_items(all_scores(base["rot_q"], k)), scores)
    pattern = softmax(scores)
    if site.cut:
        pattern = pattern.nan_to_num_(0.0)  # a destination without any source left
    elif name == "pattern":
        pattern = torch.where(chosen, of_items(given), pattern)
    values = base["v"][fact, :, key]
    if name == "v":
        values = torch.where(chosen.mT, given[fact, :, key], values)
    add_flops(2 * pattern.numel() * values.shape[-1])
    change = pattern @ values - base["z"][fact[..., None], dest[:, None], head[..., None]]
    return change[local, :, slot]
