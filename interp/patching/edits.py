"""What a change is: the residual stream just after it, and how it goes on in a window of layers."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.patching.grid import AT_ENTRY, CUTS, EDGES, ON_KEYS, Rows
from interp.patching.tensor_ops import softmax

if TYPE_CHECKING:
    from interp.patching.live import Sweep

_PER_POSITION = ("z", "q", "pattern")
"""Changes at one position change the head's output there and nowhere else."""


def changed_stream(
    sweep: "Sweep", entry: int, rows: Rows, row: Tensor, pos: Tensor, fact: Tensor
) -> Float[Tensor, "change d_model"]:
    """The changed residual stream entering layer ``entry`` at each changed (row, position)."""
    engine, site = sweep.engine, rows.site[row.cpu().numpy()]
    direct = np.isin(site, AT_ENTRY)
    out = torch.empty(
        len(row), engine.model.cfg.d_model, dtype=engine.model.embed.weight.dtype, device=row.device
    )
    at = torch.from_numpy(np.flatnonzero(direct)).to(row.device)
    if len(at):
        out[at] = sweep.source[entry].resid_pre[fact[at], pos[at]]
    at = torch.from_numpy(np.flatnonzero(~direct)).to(row.device)
    if len(at):
        out[at] = _stream_after(sweep, entry - 1, rows, row[at], pos[at], fact[at])
    return out


def _stream_after(
    sweep: "Sweep", layer: int, rows: Rows, row: Tensor, pos: Tensor, fact: Tensor
) -> Float[Tensor, "change d_model"]:
    """The residual stream after ``layer``, for changes made inside it. Changes of the attention go
    through the MLP together.
    """
    block, base, source = sweep.engine.blocks[layer], sweep.base[layer], sweep.source[layer]
    at_row = row.cpu().numpy()
    site, part = rows.site[at_row], torch.from_numpy(rows.part[at_row]).to(row.device)
    mid, mlp_out = base.resid_mid[fact, pos], base.mlp_out[fact, pos]
    attn_out = base.attn_out[fact, pos] if block.parallel else 0
    again = torch.zeros(len(row), dtype=torch.bool, device=row.device)
    for kind in np.unique(site):
        here = torch.from_numpy(np.flatnonzero(site == kind)).to(row.device)
        f, p = fact[here], pos[here]
        if kind == "mlp_out":
            mlp_out[here] = source.mlp_out[f, p]
        elif kind == "mlp_post":
            mlp_out[here] += _neurons_written(sweep, layer, f, p, part[here])
        elif kind == "resid_mid":
            mid[here], again[here] = source.resid_mid[f, p], True
        elif kind != "resid_post":
            if kind == "attn_out":
                change = source.attn_out[f, p] - base.attn_out[f, p]
            else:
                change = _attention_written(
                    sweep, str(kind), layer, rows, row[here], p, f, part[here]
                )
            if block.parallel:
                attn_out[here] += change
            else:
                mid[here], again[here] = mid[here] + change, True
    at = again.nonzero()[:, 0]
    if len(at):
        mlp_out[at] = block.mlp(mid[at])
    out = mid + mlp_out + attn_out
    whole = torch.from_numpy(np.flatnonzero(site == "resid_post")).to(row.device)
    out[whole] = source.resid_post[fact[whole], pos[whole]]
    return out


def _neurons_written(
    sweep: "Sweep", layer: int, fact: Tensor, pos: Tensor, group: Tensor
) -> Float[Tensor, "change d_model"]:
    """What the change of a group of neurons adds to the MLP's output."""
    size, weight = sweep.cells.n_neurons, sweep.engine.blocks[layer].down.weight
    base, source = sweep.base[layer].mlp_post, sweep.source[layer].mlp_post
    out = base.new_empty(len(fact), len(weight))
    for i in group.unique().tolist():
        at, units = (group == i).nonzero()[:, 0], slice(i * size, (i + 1) * size)
        change = source[fact[at], pos[at], units] - base[fact[at], pos[at], units]
        out[at] = change @ weight[:, units].mT
    return out


def _attention_written(
    sweep: "Sweep",
    kind: str,
    layer: int,
    rows: Rows,
    row: Tensor,
    pos: Tensor,
    fact: Tensor,
    head: Tensor,
) -> Float[Tensor, "change d_model"]:
    """What a change inside the attention adds to its output."""
    base, engine = sweep.base[layer], sweep.engine
    if kind in _PER_POSITION:
        change = _z_of_source(sweep, kind, layer)[fact, pos, head] - base.z[fact, pos, head]
    else:
        which, local = row.unique(return_inverse=True)
        first = which.new_full((len(which),), base.z.shape[1]).scatter_reduce(0, local, pos, "amin")
        dest = first[:, None] + torch.arange(int((pos - first[local]).max()) + 1, device=row.device)
        dest = dest.clamp(max=base.z.shape[1] - 1)
        change = _z_of_rows(sweep, kind, layer, rows[which.cpu().numpy()], dest)
        change = change[local, pos - first[local]]
    if kind == "knockout":
        return change.flatten(1) @ engine.blocks[layer].out.weight.mT
    by_head = rearrange(
        engine.blocks[layer].out.weight, "o (head d) -> head d o", head=engine.n_heads
    )
    out = change.new_empty(len(change), by_head.shape[2])
    for h in head.unique().tolist():
        at = (head == h).nonzero()[:, 0]
        out[at] = change[at] @ by_head[h]
    return out


def _z_of_source(sweep: "Sweep", kind: str, layer: int) -> Float[Tensor, "fact pos head d_head"]:
    """Every head's output, were its z, query or pattern that of the source run."""
    engine, base, source = sweep.engine, sweep.base[layer], sweep.source[layer]
    if kind == "z":
        return source.z
    if kind == "pattern":
        return engine.weigh(engine.pattern(source), base.v)
    return engine.weigh(softmax(engine.all_scores(source.q, base.k)), base.v)


def _z_of_rows(
    sweep: "Sweep", kind: str, layer: int, rows: Rows, dest: Int[Tensor, "row dest"]
) -> Float[Tensor, "row dest *head d_head"]:
    """Change of one head's output at ``dest``, or of every head's for a knockout."""
    engine, cells = sweep.engine, sweep.cells
    base, source = sweep.base[layer], sweep.source[layer]
    fact, head = (torch.from_numpy(x).to(dest.device) for x in (rows.fact, rows.part))
    at = (
        cells.sources[rows.source, rows.fact]
        if kind in EDGES
        else cells.positions[rows.group, rows.fact]
    )
    chosen = torch.from_numpy(at).to(dest.device)[:, None]
    scores = engine.all_scores(base.q, base.k)

    def of_rows(x: Float[Tensor, "fact head pos src"]) -> Float[Tensor, "row dest src"]:
        return x[fact[:, None], head[:, None], dest]

    if kind == "head_knockout":
        pattern = softmax(of_rows(scores).masked_fill_(chosen, -torch.inf)).nan_to_num_(0.0)
        return pattern @ base.v[fact, :, head] - base.z[fact[:, None], dest, head[:, None]]
    if kind == "knockout":
        cut = scores[fact[:, None], :, dest].masked_fill_(chosen[:, None], -torch.inf)
        pattern = softmax(cut).nan_to_num_(0.0).movedim(2, 1)
        return engine.weigh(pattern, base.v[fact]) - base.z[fact[:, None], dest]

    if kind == "v":
        change = (source.v - base.v)[fact, :, head] * chosen.mT
        return softmax(of_rows(scores)) @ change
    if kind == "edge":
        change = engine.pattern(source) - softmax(scores)
        return (of_rows(change) * chosen) @ base.v[fact, :, head]
    swapped = torch.where(chosen, of_rows(engine.all_scores(base.q, source.k)), of_rows(scores))
    return softmax(swapped) @ base.v[fact, :, head] - base.z[fact[:, None], dest, head[:, None]]


class Edit:
    """Goes on with a change in the later layers of its window, and holds what is frozen. All rows
    have one site.
    """

    def __init__(self, sweep: "Sweep", rows: Rows) -> None:
        self.sweep, self.rows, self.site = sweep, rows, str(rows.site[0])
        device = sweep.engine.device
        at = sweep.cells.positions[rows.group, rows.fact]
        self.row, self.pos = (torch.from_numpy(x).to(device) for x in at.nonzero())
        self.fact, self.part = (
            torch.from_numpy(x).to(device)[self.row] for x in (rows.fact, rows.part)
        )
        if self.site in EDGES:
            sources = sweep.cells.sources[rows.source, rows.fact]
            self.sources = torch.from_numpy(sources).to(device)[self.row]
        self.n_applied = 0
        """Changes made in the layer at hand."""

    def check_applied(
        self, index: int, window: Int[Tensor, "row pos"], dest: Int[Tensor, "row dest"]
    ) -> None:
        """Raises a RuntimeError unless all changes at positions that were computed in layer
        ``index`` have been made.
        """
        n_due, there = 0, window if self.site in ("resid_pre", *ON_KEYS) else dest
        if self.site != "embed":
            n_due = len(self._where(index, there)[2])
        if self.n_applied != n_due:
            raise RuntimeError(
                f"site {self.site!r}, layer {index}: {self.n_applied} of {n_due} changes applied"
            )
        self.n_applied = 0

    def __call__(
        self,
        x: Float[Tensor, "row dest *rest"],
        site: str,
        index: int,
        dest: Int[Tensor, "row dest"],
    ) -> Float[Tensor, "row dest *rest"]:
        """``x`` of layer ``index`` at ``dest``, as the rows that are changed there have it."""
        if site == self.sweep.cells.frozen:
            return self._hold(x, site, index, dest)
        if site != self.site:
            return x
        row, slot, at = self._where(index, dest)
        self.n_applied += len(at)
        fact, pos, part, source = (
            self.fact[at],
            self.pos[at],
            self.part[at],
            self.sweep.source[index],
        )
        if site == "mlp_post":
            size = self.sweep.cells.n_neurons
            unit = part[:, None] * size + torch.arange(size, device=x.device)
            new = source.mlp_post[fact[:, None], pos[:, None], unit]
            x[row[:, None], slot[:, None], unit] = new
        elif x.ndim == 4:
            x[row, slot, part] = getattr(source, site)[fact, pos, part]
        else:
            x[row, slot] = getattr(source, site)[fact, pos]
        return x

    def _hold(
        self,
        x: Float[Tensor, "row dest d_model"],
        site: str,
        index: int,
        dest: Int[Tensor, "row dest"],
    ) -> Float[Tensor, "row dest d_model"]:
        """``x`` with the base run's values at all changed positions."""
        is_here = dest[self.row] == self.pos[:, None]
        at = is_here.any(1).nonzero()[:, 0]
        slot = is_here[at].int().argmax(1)
        held = getattr(self.sweep.base[index], site)
        x[self.row[at], slot] = held[self.fact[at], self.pos[at]]
        return x

    def scores(
        self, scores: Float[Tensor, "row head dest src"], index: int, dest: Int[Tensor, "row dest"]
    ) -> Float[Tensor, "row head dest src"]:
        if self.site in CUTS:
            row, slot, at = self._where(index, dest)
            self.n_applied += len(at)
            sources, part = self.sources[at], self.part[at]
            if self.site == "knockout":
                sources, part = sources[:, None], slice(None)
            scores[row, part, slot] = scores[row, part, slot].masked_fill(sources, -torch.inf)
        return scores

    def pattern(
        self, pattern: Float[Tensor, "row head dest src"], index: int, dest: Int[Tensor, "row dest"]
    ) -> Float[Tensor, "row head dest src"]:
        if self.site in CUTS:
            return pattern.nan_to_num(0.0)
        if self.site in ("pattern", "edge"):
            row, slot, at = self._where(index, dest)
            self.n_applied += len(at)
            part = self.part[at]
            pasted = self.sweep.engine.pattern(self.sweep.source[index])
            new = pasted[self.fact[at], part, self.pos[at]]
            if self.site == "edge":
                new = torch.where(self.sources[at], new, pattern[row, part, slot])
            pattern[row, part, slot] = new
        return pattern

    def _where(self, index: int, dest: Int[Tensor, "row dest"]) -> tuple[Tensor, Tensor, Tensor]:
        """Row and place in ``dest`` of each change that is made in layer ``index``, and which of
        the changes these are.
        """
        cells, n_layers = self.sweep.cells, self.sweep.engine.n_layers
        on = [index in cells.layers(layer, n_layers) for layer in self.rows.layer.tolist()]
        is_here = dest[self.row] == self.pos[:, None]
        is_here &= torch.tensor(on, device=dest.device)[self.row, None]
        at = is_here.any(1).nonzero()[:, 0]
        return self.row[at], is_here[at].int().argmax(1), at
