"""Exact patching of a ``HookedDecoder`` that computes only what a patch can change.

Whatever the site, a patch first reaches the residual stream entering some layer m, at known
positions; all earlier layers and positions are those of the base run, which is computed once. So
work items join at their layer m, keep the base run's keys and values, recompute the positions from
the first changed one on, and in the last layer only those that are read. An item whose activation
is the same in both runs, or on which nothing read depends, is not computed: its value is the base
run's. Equal to hooks on a whole forward pass, to rounding. Nothing here changes an object that it
was given, so several sweeps can be under way at once.
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
from interp.model.model_check import check_agree
from interp.patching.activations import ActivationCache, Prompts, metrics_of
from interp.patching.changed_block import Sweep, changed_stream
from interp.patching.grid import PatchGrid, WorkItems, concatenate, items_of, prune
from interp.patching.packed_weights import PackedModel
from interp.patching.paste import differing, paste, pasted_values
from interp.patching.sites import SITES
from interp.patching.tensor_ops import put, with_rows

TOKENS_AT_ONCE = 4096
"""On a CPU more is not faster, and leaves the processor's caches."""
GPU_FACTOR = 64
"""How many times as many tokens a GPU takes at once, whose small launches cost more than memory."""
RECORDED = frozenset(
    ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "rot_q", "rot_k", "v")
)
"""Activations of a base run that recomputing needs."""
_ON_WINDOW = ("resid_pre", "k", "rot_k", "v")
"""Activations that a layer computes at all positions of its window, not only where it is read."""


@dataclass(frozen=True)
class Recompute:
    """Patches on one batch of prompts."""

    weights: PackedModel
    prompts: Prompts

    @torch.inference_mode()
    def run(self, prompts: Prompts, names: Collection[str] = ()) -> ActivationCache:
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
        return cache

    @torch.inference_mode()
    def scores_of(self, cache: ActivationCache) -> Float[np.ndarray, "metric fact"]:
        """Metrics of an unpatched run."""
        read = read_at(self.prompts)
        fact = torch.arange(len(read), device=read.device)
        resid = cache[-1]["resid_post"][fact[:, None], read]
        return _metrics(self.weights, self.prompts, resid, fact)

    def sweep(
        self,
        sites: list[str],
        grid: PatchGrid,
        base: ActivationCache,
        source: ActivationCache,
        may_differ: Bool[np.ndarray, "fact pos"],
        *,
        max_bytes: float = 1e9,
    ) -> Iterator[tuple[WorkItems, Float[np.ndarray, "metric item"]]]:
        """Metrics of every item that can differ from the base run, in portions, in arbitrary order.

        Args:
            may_differ: False where the two runs differ by rounding at most.
        """
        n_layers = self.weights.cfg.n_layers
        n_prompt, n_value = (x.cpu().numpy() for x in (self.prompts.n_prompt, self.prompts.n_value))
        n_total = n_prompt + n_value - 1
        sweep = Sweep(self.weights, grid, base, source)
        one_by_one = grid.window > 1 or grid.frozen is not None
        for together in [[site] for site in sites] if one_by_one else [sites]:
            waiting = _items_by_entry(sweep, together, may_differ)
            for entry in range(n_layers + 1):
                items = concatenate(waiting.pop(entry, []))
                items, at = prune(items, grid, entry, n_layers, n_prompt, n_total)
                n_window = n_total[items.fact] - at.argmax(1)
                for part in self._portions(n_window, n_value[items.fact], max_bytes):
                    yield items[part], _patched(sweep, self.prompts, entry, items[part], at[part])
            assert not waiting, f"changes at layers {sorted(waiting)} of {n_layers}"

    def _portions(
        self, n_window: Int[np.ndarray, " item"], n_read: Int[np.ndarray, " item"], max_bytes: float
    ) -> Iterator[Int[np.ndarray, " part"]]:
        """Items in portions of similar size that hold at most ``tokens_at_once`` tokens, or what
        fits into memory.
        """
        n_pos, n_value = self.prompts.tokens.shape[1], int(self.prompts.n_value.max())
        most = tokens_at_once(self.weights.embedding.device)
        token, row = item_size(self.weights.cfg, n_pos, n_value)
        size = self.weights.embedding.element_size()
        order, start = np.lexsort((n_window, n_read)), 0
        while start < len(order):
            widest = np.maximum.accumulate(n_window[order[start : start + most]])
            count = np.arange(1, len(widest) + 1)
            fits = widest * count <= most
            fits &= size * count * (widest * token + row) <= max_bytes
            end = start + max(1, int(fits.sum()))
            yield order[start:end]
            start = end


def tokens_at_once(device: torch.device) -> int:
    """How many tokens of work items are computed together, if memory allows."""
    return TOKENS_AT_ONCE * (GPU_FACTOR if device.type == "cuda" else 1)


def item_size(cfg: DecoderConfig, n_pos: int, n_value: int) -> tuple[int, int]:
    """Numbers that a work item takes while it is computed: per token, and in addition."""
    token = 2 * cfg.d_mlp + 12 * cfg.d_model + 3 * cfg.n_heads * n_pos
    return token, 6 * n_pos * cfg.d_model + 3 * n_value * cfg.d_vocab


def read_at(prompts: Prompts) -> Int[Tensor, "fact value_token"]:
    """Positions that predict each fact's value tokens; the last position repeats for shorter
    values.
    """
    slots = torch.arange(int(prompts.n_value.max()), device=prompts.n_value.device)
    slots = torch.minimum(slots, prompts.n_value[:, None] - 1)
    return prompts.n_prompt[:, None] - 1 + slots


@torch.inference_mode()
def check_same_logits(
    model: HookedDecoder, recompute: Recompute, cache: ActivationCache, n: int = 2
) -> None:
    """Raises a ValueError unless the logits of a clean run's ``cache`` equal those of the model's
    own forward pass at the positions that are read, on ``n`` evenly spaced facts. Takes one forward
    pass of those prompts.
    """
    read = read_at(recompute.prompts)
    fact = torch.linspace(0, len(read) - 1, min(n, len(read)), device=read.device).long()
    read, rows = read[fact], torch.arange(len(fact), device=read.device)[:, None]
    own = model(recompute.prompts.tokens[fact])[rows, read].flatten(0, 1)
    resid = cache[-1]["resid_post"][fact[:, None], read].flatten(0, 1)
    check_agree(recompute.weights.logits(resid), own)


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
def _items_by_entry(
    sweep: Sweep, sites: list[str], may_differ: Bool[np.ndarray, "fact pos"]
) -> dict[int, list[WorkItems]]:
    """The items whose activations differ, by the first layer whose residual stream they change."""
    tables: dict[int, list[WorkItems]] = {}
    grid, cfg = sweep.grid, sweep.weights.cfg
    for name in sites:
        site = SITES[name]
        for layer in grid.swept(name, cfg.n_layers):
            window = grid.layers(name, layer, cfg.n_layers)
            differs = np.logical_or.reduce(
                [differing(sweep.base[at], sweep.source[at], site, grid, cfg) for at in window]
            )
            differs = differs if site.cut else differs & may_differ
            if differs.any():
                items = items_of(name, layer, differs, grid)
                tables.setdefault(window.start + (not site.before_block), []).append(items)
    return tables


@torch.inference_mode()
def _patched(
    sweep: Sweep, prompts: Prompts, entry: int, items: WorkItems, at: Bool[np.ndarray, "item pos"]
) -> Float[np.ndarray, "metric item"]:
    """Metrics of items whose changed positions ``at`` enter the stream at layer ``entry``."""
    device = sweep.weights.embedding.device
    row, pos = (torch.from_numpy(x).to(device) for x in at.nonzero())
    fact = torch.from_numpy(items.fact).to(device)
    stream = changed_stream(sweep, entry, items, row, pos, fact[row])
    changed, n_layers = (row, pos, stream), sweep.weights.cfg.n_layers
    read = read_at(prompts)[fact, : int(prompts.n_value[fact].max())]
    if entry == n_layers:
        resid = sweep.base[-1]["resid_post"][fact[:, None], read]
        _put_all(resid, read, *changed)
        return _metrics(sweep.weights, prompts, resid, fact)
    n_total = prompts.n_prompt[fact] + prompts.n_value[fact] - 1
    first = torch.from_numpy(at.argmax(1)).to(device)
    n_window = int((n_total - first).max())
    window = (n_total - n_window).clamp(min=0)[:, None] + torch.arange(n_window, device=device)
    goes_on = sweep.grid.window > 1 or sweep.grid.frozen is not None
    for layer in range(entry, n_layers):
        dest = read if layer == n_layers - 1 else window
        if layer == entry and not goes_on:
            resid = _first_layer(sweep, layer, fact, changed, dest)
            continue
        if layer == entry:
            resid = sweep.base[layer]["resid_pre"][fact[:, None], window]
            _put_all(resid, window, *changed)
        tap = _Paster(sweep, items, layer, window, dest) if goes_on else silent
        resid = _later_layer(sweep, layer, fact, resid, window, dest, tap)
        if goes_on:
            tap.check_called()
    return _metrics(sweep.weights, prompts, resid, fact)


def _first_layer(
    sweep: Sweep,
    layer: int,
    fact: Int[Tensor, " item"],
    changed: tuple[Tensor, Tensor, Tensor],
    dest: Int[Tensor, "item dest"],
) -> Float[Tensor, "item dest d_model"]:
    """The layer at which items enter: queries, keys and values are new at the changed positions
    only.
    """
    block, base = sweep.weights.blocks[layer], sweep.base[layer]
    row, pos, stream = changed
    q, k, v = block.heads(stream, sweep.weights.turn_at(pos))
    keys, values = (
        with_rows(base[name], fact, row, pos, new) for name, new in (("rot_k", k), ("v", v))
    )
    queries, resid = (base[name][fact[:, None], dest] for name in ("rot_q", "resid_pre"))
    put(queries, dest, row, pos, q)
    _put_all(resid, dest, row, pos, stream)
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
    """A layer whose inputs are all new in the window; its output is computed at ``dest``."""
    weights, block, base = sweep.weights, sweep.weights.blocks[layer], sweep.base[layer]
    resid = tap("resid_pre", resid)
    if dest is window:
        q, k, v = block.heads(resid, weights.turn_at(window), tap)
    else:
        k, v = block.heads(resid, weights.turn_at(window), tap, kinds="kv")
        at = (dest - window[:, :1])[..., None].expand(-1, -1, resid.shape[2])
        resid = resid.gather(1, at)
        (q,) = block.heads(resid, weights.turn_at(dest), tap, kinds="q")
    rows = torch.arange(len(fact), device=fact.device)[:, None].expand_as(window)
    keys, values = (
        with_rows(base[name], fact, rows, window, new) for name, new in (("rot_k", k), ("v", v))
    )
    return after_attention(block, resid, attend(q, keys, values, dest, tap), tap)


class _Paster:
    """A tap for one layer that applies the patches of items that continue there, and holds frozen
    activations. All items have one site.
    """

    def __init__(
        self,
        sweep: Sweep,
        items: WorkItems,
        layer: int,
        window: Int[Tensor, "item pos"],
        dest: Int[Tensor, "item dest"],
    ) -> None:
        self.sweep, self.layer, self.at = sweep, layer, {True: window, False: dest}
        self.site = SITES[str(items.site[0])]
        grid, n_layers, device = sweep.grid, sweep.weights.cfg.n_layers, window.device
        positions = grid.positions[items.group, items.fact]
        self.row, self.pos = (torch.from_numpy(x).to(device) for x in positions.nonzero())
        self.fact, self.part = (
            torch.from_numpy(x).to(device)[self.row] for x in (items.fact, items.part)
        )
        on = [
            self.site.has_layers and layer in grid.layers(self.site.name, at, n_layers)
            for at in items.layer.tolist()
        ]
        self.on = torch.tensor(on, device=device)[self.row]
        self.sources = None
        if self.site.is_edge:
            sources = grid.sources[items.source, items.fact]
            self.sources = torch.from_numpy(sources).to(device)[self.row]
        self.names = {self.site.activation, "pattern", grid.frozen}
        self.n_pasted = 0

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if name == self.sweep.grid.frozen:
            row, slot, at = self._places(name, torch.ones_like(self.on))
            x[row, slot] = self.sweep.base[self.layer][name][self.fact[at], self.pos[at]]
        elif name == self.site.activation and self.on.any():
            self._paste(name, x)
        elif name == "pattern" and self.site.cut:
            return x.nan_to_num(0.0)  # a destination without any source left
        return x

    def _paste(self, name: str, x: Tensor) -> None:
        row, slot, at = self._places(name, self.on)
        fact, pos, part = self.fact[at], self.pos[at], self.part[at]
        new, n_neurons = None, self.sweep.grid.n_neurons
        if not self.site.cut:
            layer = self.sweep.source[self.layer]
            new = pasted_values(layer, self.site, fact, pos, part, n_neurons)
        sources = None if self.sources is None else self.sources[at]
        paste(x, self.site, row, slot, part, n_neurons, new, sources)
        self.n_pasted += len(at)

    def _places(self, name: str, on: Bool[Tensor, " change"]) -> tuple[Tensor, Tensor, Tensor]:
        """Row and slot in the activation of each change that is made, and the indices of these
        changes.
        """
        is_here = self.at[name in _ON_WINDOW][self.row] == self.pos[:, None]
        at = (is_here.any(1) & on).nonzero()[:, 0]
        return self.row[at], is_here[at].int().argmax(1), at

    def check_called(self) -> None:
        """Raises a RuntimeError unless all changes of this layer have been made."""
        n_due = len(self._places(self.site.activation, self.on)[2])
        if self.n_pasted != n_due:
            raise RuntimeError(
                f"site {self.site.name!r}, layer {self.layer}: {self.n_pasted} of {n_due} changes "
                "applied"
            )


def _put_all(
    resid: Float[Tensor, "item dest d_model"],
    dest: Int[Tensor, "item dest"],
    row: Int[Tensor, " change"],
    pos: Int[Tensor, " change"],
    stream: Float[Tensor, "change d_model"],
) -> None:
    """Raises a RuntimeError unless every change at a position that ``dest`` holds was made."""
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
    slots = torch.arange(resid.shape[1], device=fact.device)
    row, slot = torch.nonzero(slots < prompts.n_value[fact][:, None], as_tuple=True)
    return metrics_of(weights.logits(resid[row, slot]), row, slot, fact, prompts)
