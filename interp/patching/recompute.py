"""Exact patching of a ``HookedDecoder`` that computes only what a patch can change.

Whatever the site, a patch first reaches the residual stream entering some layer m, at known
positions; all earlier layers and positions are those of the base run, which is computed once. So
work items join at their layer m, keep the base run's keys and values, recompute the positions from
the first changed one on, and in the last layer only those whose logits are read. An item whose
activation is the same in both runs, or on which no logit that is read depends, is not computed: its
value is the base run's. Results equal those of hooks on a whole forward pass, to rounding. Nothing
here changes an object that it was given, but for scores that ``Sweep`` keeps behind a lock, so
several sweeps can be under way at once.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.model.attention import attend
from interp.model.block import Tap, after_attention, silent
from interp.model.decoder import DecoderConfig, HookedDecoder
from interp.model.flop_count import add_flops, count_flops
from interp.model.gpu import to_device, tokens_that_fill
from interp.model.model_check import check_agree
from interp.patching.activations import (
    ActivationCache,
    Prompts,
    ScoredCache,
    metrics_of,
    value_tokens,
)
from interp.patching.changed_block import Sweep, changed_stream
from interp.patching.grid import PatchGrid, WorkItems, concatenate, prune
from interp.patching.packed_weights import PackedModel
from interp.patching.paste import Changes, changes_of, differing_items, paste
from interp.patching.shared_keys import attend_shared
from interp.patching.sites import SITES
from interp.patching.tensor_ops import padded_index, put, with_rows
from interp.process import on_all_cores

TOKENS_AT_ONCE = 4096
"""On a CPU more tokens are not faster, because they no longer fit into the caches."""
RECORDED = frozenset(
    ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "rot_q", "rot_k", "v")
)
"""Activations of a base run that recomputing needs."""
_ON_WINDOW = ("resid_pre", "k", "rot_k", "v")
"""Activations that a layer computes at all positions of its window, not only where it is read."""


@dataclass(frozen=True)
class Recompute:
    """Runs and patches of a ``HookedDecoder``, given by its packed weights."""

    weights: PackedModel
    max_bytes: float
    """Of work items computed together."""
    n_threads: int = field(default_factory=torch.get_num_threads)
    """How many portions of them may be computed side by side."""

    @property
    def cfg(self) -> DecoderConfig:
        return self.weights.cfg

    @property
    def embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.weights.embedding

    @torch.inference_mode()
    def run(self, prompts: Prompts, names: Collection[str] = ()) -> ScoredCache:
        """The activation cache of a whole forward pass: ``RECORDED``, and ``names``."""
        weights = self.weights
        resid = weights.embedding[prompts.tokens]
        if prompts.noise is not None:
            resid = resid + prompts.noise
        dest = torch.arange(resid.shape[1], device=resid.device).expand(resid.shape[:2])
        turn, cache = weights.turn_at(dest[:1]), []
        for block in weights.blocks:
            tap = _Recorder(RECORDED | set(names))
            if not cache:
                tap.layer["embed"] = resid
                resid = weights.at_positions(resid, dest)
            resid = tap("resid_pre", resid)
            z = attend(*block.heads(resid, turn, tap), dest, tap)
            resid = after_attention(block, resid, z, tap)
            cache.append(tap.layer)
        fact, read = torch.arange(len(resid), device=resid.device), _read_at(prompts)
        scores = _metrics(weights, prompts, resid[fact[:, None], read], fact)
        return ScoredCache(cache, prompts, scores)

    def sweep(
        self, sites: list[str], grid: PatchGrid, base: ScoredCache, source: ActivationCache
    ) -> Iterator[tuple[WorkItems, Float[np.ndarray, "metric item"]]]:
        """Metrics of every item that can differ from the base run, in portions, in no particular
        order.
        """
        n_layers = self.weights.cfg.n_layers
        n_prompt, n_value, n_total = (
            x.cpu().numpy() for x in (base.given.n_prompt, base.given.n_value, base.given.n_total)
        )
        sweep, portions = Sweep(self.weights, grid, base, source), []
        one_by_one = grid.window > 1 or grid.frozen is not None
        for together in [[site] for site in sites] if one_by_one else [sites]:
            for entry, tables in sorted(_items_by_entry(sweep, together).items()):
                items = concatenate(tables)
                items, at = prune(items, grid, entry, n_layers, n_prompt, n_total)
                n_window = n_total[items.fact] - at.argmax(1)
                for part in self._portions(items.fact, n_window, n_value, base.given):
                    more = padded_index(part)
                    portions.append((items[part], entry, items[more], at[more]))

        def compute(portion: tuple) -> tuple[WorkItems, Float[np.ndarray, "metric item"], int]:
            asked, *given = portion
            with count_flops() as counted:
                scores = _patched(sweep, base.given, *given)
            return asked, scores[:, : len(asked)], counted.total

        on_cpu = self.weights.embedding.device.type == "cpu"
        for items, scores, flops in (on_all_cores if on_cpu else map)(compute, portions):
            add_flops(flops)
            yield items, scores

    def _portions(
        self,
        fact: Int[np.ndarray, " item"],
        n_window: Int[np.ndarray, " item"],
        n_values: Int[np.ndarray, " fact"],
        given: Prompts,
    ) -> Iterator[Int[np.ndarray, " part"]]:
        """Items in portions of similar size that hold at most ``tokens_at_once`` tokens, or what
        fits into memory; those of a fact side by side.
        """
        n_pos, n_value = given.tokens.shape[1], int(given.n_value.max())
        device = self.weights.embedding.device
        most, n_at_once = tokens_at_once(device), self.n_threads if device.type == "cpu" else 1
        token, row = item_size(self.weights.cfg, n_pos, n_value)
        size = self.weights.embedding.element_size()
        order, start = np.lexsort((fact, n_window, n_values[fact])), 0
        while start < len(order):
            widest = np.maximum.accumulate(n_window[order[start : start + most]])
            count = np.arange(1, len(widest) + 1)
            fits = widest * count <= most
            fits &= size * count * (widest * token + row) <= self.max_bytes / n_at_once
            end = start + max(1, int(fits.sum()))
            yield order[start:end]
            start = end


def tokens_at_once(device: torch.device) -> int:
    """How many tokens of work items are computed together in a portion, if memory allows."""
    return tokens_that_fill(device) if device.type == "cuda" else TOKENS_AT_ONCE


def item_size(cfg: DecoderConfig, n_pos: int, n_value: int) -> tuple[int, int]:
    """How many numbers an item takes while it is computed: for each of its tokens, and besides."""
    of_heads, of_keys, of_mlp = cfg.widths
    token = of_mlp + cfg.d_mlp + 6 * cfg.d_model + 4 * of_heads + of_keys
    token += 3 * cfg.n_heads * n_pos
    return token, 3 * n_pos * of_keys + 3 * n_value * cfg.d_vocab


@torch.inference_mode()
def check_same_logits(
    model: HookedDecoder, recompute: Recompute, run: ScoredCache, n: int = 2
) -> None:
    """Raises a ValueError unless the logits of ``run``, where they are read, are those of the
    model's own forward pass, which is computed for ``n`` evenly spaced facts.
    """
    read = _read_at(run.given)
    fact = torch.linspace(0, len(read) - 1, min(n, len(read)), device=read.device).long()
    read, rows = read[fact], torch.arange(len(fact), device=read.device)[:, None]
    own = model(run.given.tokens[fact])[rows, read].flatten(0, 1)
    resid = run[-1]["resid_post"][fact[:, None], read].flatten(0, 1)
    check_agree(recompute.weights.logits(resid), own)


def _read_at(prompts: Prompts) -> Int[Tensor, "fact value_token"]:
    """Positions that predict each fact's value tokens; the last again for shorter values."""
    slots = torch.arange(int(prompts.n_value.max()), device=prompts.n_value.device)
    slots = torch.minimum(slots, prompts.n_value[:, None] - 1)
    return prompts.n_prompt[:, None] - 1 + slots


@dataclass(frozen=True)
class _Recorder:
    """A tap that records activations."""

    names: Collection[str]
    layer: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if name in self.names:
            self.layer[name] = x
        return x


@torch.inference_mode()
def _items_by_entry(sweep: Sweep, sites: list[str]) -> dict[int, list[WorkItems]]:
    """The items whose activations differ, by the first layer whose residual stream they change."""
    tables: dict[int, list[WorkItems]] = {}
    grid, cfg = sweep.grid, sweep.weights.cfg
    for site in sites:
        for layer in grid.swept(site, cfg.n_layers):
            items = differing_items(site, layer, sweep.base, sweep.source, grid, cfg)
            if len(items):
                first = grid.layers(site, layer, cfg.n_layers).start
                tables.setdefault(first + (not SITES[site].before_block), []).append(items)
    return tables


@torch.inference_mode()
def _patched(
    sweep: Sweep, prompts: Prompts, entry: int, items: WorkItems, at: Bool[np.ndarray, "item pos"]
) -> Float[np.ndarray, "metric item"]:
    """Metrics of items whose changes, ``at``, join at layer ``entry``."""
    device, grid, n_layers = prompts.tokens.device, sweep.grid, sweep.weights.cfg.n_layers
    fact = to_device(items.fact, device)
    changes = changes_of(items, at, device)
    stream = changed_stream(sweep, entry, changes)
    read = _read_at(prompts)[fact, : int(prompts.n_value[fact].max())]
    if entry == n_layers:
        resid = sweep.base[-1]["resid_post"][fact[:, None], read]
        _put_all(resid, read, changes, stream)
        return _metrics(sweep.weights, prompts, resid, fact)
    n_total, first = prompts.n_total[fact], to_device(at.argmax(1), device)
    n_window = int((n_total - first).max())
    window = (n_total - n_window).clamp(min=0)[:, None] + torch.arange(n_window, device=device)
    goes_on, tap = grid.window > 1 or grid.frozen is not None, silent
    if goes_on or n_window == 1:  # all of the window is new
        resid = sweep.base[entry]["resid_pre"][fact[:, None], window]
        _put_all(resid, window, changes, stream)
    if goes_on:
        changes = changes_of(items, grid.positions[items.group, items.fact], device)
    for layer in range(entry, n_layers):
        dest = read if layer == n_layers - 1 else window
        if goes_on:
            tap = _Paster(sweep, changes, layer, window, dest)
        elif layer == entry and n_window > 1:
            resid = _first_layer(sweep, layer, fact, changes, stream, dest)
            continue
        resid = _later_layer(sweep, layer, fact, resid, window, dest, tap)
        if goes_on:
            tap.check_called()
    return _metrics(sweep.weights, prompts, resid, fact)


def _first_layer(
    sweep: Sweep,
    layer: int,
    fact: Int[Tensor, " item"],
    changes: Changes,
    stream: Float[Tensor, "change d_model"],
    dest: Int[Tensor, "item dest"],
) -> Float[Tensor, "item dest d_model"]:
    """The layer at which items enter: queries, keys and values are new at the changed positions
    only.
    """
    block, base = sweep.weights.blocks[layer], sweep.base[layer]
    row, pos = changes.row, changes.pos
    q, k, v = block.heads(stream, sweep.weights.turn_at(pos))
    keys, values = (
        with_rows(base[name], fact, row, pos, new) for name, new in (("rot_k", k), ("v", v))
    )
    queries, resid = (base[name][fact[:, None], dest] for name in ("rot_q", "resid_pre"))
    put(queries, dest, row, pos, q)
    _put_all(resid, dest, changes, stream)
    z = attend(queries, keys, values, dest, silent)
    return after_attention(block, resid, z, silent)


def _later_layer(
    sweep: Sweep,
    layer: int,
    fact: Int[Tensor, " item"],
    resid: Float[Tensor, "item pos d_model"],
    window: Int[Tensor, "item pos"],
    dest: Int[Tensor, "item dest"],
    tap: Tap,
) -> Float[Tensor, "item dest d_model"]:
    """A layer all of whose inputs in the window are new, computed at ``dest``."""
    weights, block, base = sweep.weights, sweep.weights.blocks[layer], sweep.base[layer]
    resid = tap("resid_pre", resid)
    if dest is window:
        q, k, v = block.heads(resid, weights.turn_at(window), tap)
    else:
        k, v = block.heads(resid, weights.turn_at(window), tap, kinds="kv")
        at = (dest - window[:, :1])[..., None].expand(-1, -1, resid.shape[2])
        resid = resid.gather(1, at)
        (q,) = block.heads(resid, weights.turn_at(dest), tap, kinds="q")
    if tap is silent and dest.shape[1] == 1:
        of_base = base["rot_k"], base["v"], fact
        z = attend_shared(q[:, 0], k, v, *of_base, window, dest[:, 0])
        return after_attention(block, resid, z[:, None], tap)
    rows = torch.arange(len(fact), device=fact.device)[:, None].expand_as(window)
    keys, values = (
        with_rows(base[name], fact, rows, window, new) for name, new in (("rot_k", k), ("v", v))
    )
    return after_attention(block, resid, attend(q, keys, values, dest, tap), tap)


class _Paster:
    """A tap of one layer that pastes there, for items of one site, and holds what is frozen."""

    def __init__(
        self,
        sweep: Sweep,
        changes: Changes,
        layer: int,
        window: Int[Tensor, "item pos"],
        dest: Int[Tensor, "item dest"],
    ) -> None:
        self.sweep, self.layer, self.changes = sweep, layer, changes
        self.computed_at = {True: window, False: dest}
        self.site, n_layers = SITES[str(changes.items.site[0])], sweep.weights.cfg.n_layers
        layers, which = np.unique(changes.items.layer, return_inverse=True)
        on = [
            self.site.has_layers and layer in sweep.grid.layers(self.site.name, at, n_layers)
            for at in layers.tolist()
        ]
        self.due = changes[np.flatnonzero(np.array(on)[which][changes.item])]
        self.names = {self.site.activation}
        self.n_pasted = 0

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if name == self.sweep.grid.frozen:
            at, slot = self._computed(name, self.changes)
            x[at.row, slot] = self.sweep.base[self.layer][name][at.fact, at.pos]
        elif name == self.site.activation:
            at, slot = self._computed(name, self.due)
            if len(slot):
                paste(x, self.site, at, slot, self.sweep.grid, self.sweep.source[self.layer])
            self.n_pasted += len(slot)
        elif name == "pattern" and self.site.cut:
            return x.nan_to_num(0.0)  # a destination without any source left
        return x

    def _computed(self, name: str, changes: Changes) -> tuple[Changes, Int[Tensor, " change"]]:
        """The changes at positions at which this layer computes an activation, and where these are
        in it.
        """
        is_here = self.computed_at[name in _ON_WINDOW][changes.row] == changes.pos[:, None]
        at = is_here.any(1)
        return changes[at], is_here[at].int().argmax(1)

    def check_called(self) -> None:
        """Raises a RuntimeError unless all changes of this layer have been made."""
        n_due = len(self._computed(self.site.activation, self.due)[1])
        if self.n_pasted != n_due:
            raise RuntimeError(
                f"site {self.site.name!r}, layer {self.layer}: {self.n_pasted} of {n_due} changes "
                "applied"
            )


def _put_all(
    resid: Float[Tensor, "item dest d_model"],
    dest: Int[Tensor, "item dest"],
    changes: Changes,
    stream: Float[Tensor, "change d_model"],
) -> None:
    """Writes the patched residual stream into ``resid``; raises a RuntimeError unless every change
    at a position that ``dest`` holds was made.
    """
    row, pos = changes.row, changes.pos
    n_done, n_due = put(resid, dest, row, pos, stream), (dest[row] == pos[:, None]).any(1).sum()
    if n_done != n_due:
        raise RuntimeError(f"{n_done} of {int(n_due)} changes were applied")


def _metrics(
    weights: PackedModel,
    prompts: Prompts,
    resid: Float[Tensor, "item read d_model"],
    fact: Int[Tensor, " item"],
) -> Float[np.ndarray, "metric item"]:
    """Metrics from the last residual stream at the positions that predict the value."""
    row, slot = value_tokens(prompts, fact)
    return metrics_of(weights.logits(resid[row, slot]), row, slot, fact, prompts)
