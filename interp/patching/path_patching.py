"""Path patching (Wang et al. 2022, https://arxiv.org/abs/2211.00593; Goldowsky-Dill et al. 2023,
https://arxiv.org/abs/2304.05969): a change reaches a later component along chosen edges only.

A path is written as its stops, ``z-q`` or ``embed-v-logits``: a component is changed; the next stop
reads the base run's residual stream plus what that change wrote into it, LayerNorm included, all
else frozen; and so on. What the last stop then computes is pasted into the base run, which goes on
from there with nothing frozen; ``logits`` as the last stop ends the path. A stop may name one layer
and head: ``L0H2.z-L2H1.q``. An effect along a path is not evidence that nothing else carries the
change.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from interp.model.attention import softmax, split_output_weight, weigh
from interp.model.decoder import DecoderConfig
from interp.patching.activations import ActivationCache
from interp.patching.changed_block import Sweep
from interp.patching.grid import PatchGrid, Shape
from interp.patching.packed_weights import all_scores
from interp.patching.sites import SITES, names_of

LOGITS = "logits"
"""The stop that ends a path."""
_COMPUTED = {"q": "rot_q", "k": "rot_k"}
"""Sites at which a change of these stops is pasted: after the rotation."""


@dataclass(frozen=True)
class Stop:
    """A site on a path, at every layer and head unless one is named."""

    site: str
    layer: int | None = None
    head: int | None = None

    @property
    def has_layers(self) -> bool:
        return self.site != LOGITS and SITES[self.site].has_layers

    @property
    def part(self) -> str:
        """Which part of it is changed at a time: ``Site.part``."""
        return "" if self.site == LOGITS else SITES[self.site].part

    @property
    def has_heads(self) -> bool:
        return self.part in ("head", "key_value_head")

    @property
    def in_attention(self) -> bool:
        """Whether the MLP of its own layer reads what it writes, if blocks are sequential."""
        return self.site == "attn_out" or self.has_heads

    @property
    def patched(self) -> str:
        """The site at which the base run is patched if this stop is the last."""
        return "resid_post" if self.site == LOGITS else _COMPUTED.get(self.site, self.site)

    def layers(self, cfg: Shape) -> list[int]:
        """Layers it may be in; only 0 for sites without layers."""
        if not self.has_layers:
            return [0]
        return list(range(cfg.n_layers)) if self.layer is None else [self.layer]

    def parts(self, cfg: Shape, n_neurons: int) -> list[int]:
        """Heads or groups of neurons it may be; only 0 for sites without parts."""
        if self.head is not None:
            return [self.head]
        return list(range(SITES[self.site].n_parts(cfg, n_neurons) if self.part else 1))


@dataclass(frozen=True)
class Delta:
    """What the stops so far wrote into the residual stream, along one way."""

    place: tuple[int, ...]
    """Layer and part of each of these stops."""
    written: Float[Tensor, "fact pos d_model"]
    attention_from: int
    """First layer whose attention reads it."""
    mlp_from: int
    """First layer whose MLP reads it."""
    grid: PatchGrid
    """Where the next stop changes."""
    group: int | None
    """Which set of positions it comes from; None: ``grid`` has all of them."""


def is_path(site: str) -> bool:
    return "-" in site


def parse_path(path: str) -> list[Stop]:
    """The stops of a path such as ``L0H2.z-q-logits``.

    Raises:
        ValueError: a stop is unknown, or can't be where it is.
    """
    stops = []
    for i, text in enumerate(words := path.split("-")):
        match = re.fullmatch(r"(?:L(\d+)(?:H(\d+))?\.)?(\w+)", text)
        known = [*names_of(reads=True), LOGITS] if i else names_of(writes=True)
        if not match or match[3] not in known:
            raise ValueError(
                f"no stop {text!r} in path {path!r}; it can {'go on to' if i else 'start with'} "
                f"{', '.join(known)}, or a single one such as {'L1H3.q' if i else 'L1H3.z'}"
            )
        layer, head = (None if x is None else int(x) for x in match.group(1, 2))
        stop = Stop(match[3], layer, head)
        if (head is not None and not stop.has_heads) or (layer is not None and not stop.has_layers):
            raise ValueError(f"{stop.site!r} has no {text.split('.')[0]}; take it out of {path!r}")
        if stop.site == LOGITS and i < len(words) - 1:
            raise ValueError(f"path {path!r} goes on after the logits; end it there")
        stops.append(stop)
    return stops


def arrivals(sweep: Sweep, stops: list[Stop]) -> Iterator[tuple[Delta, ActivationCache, list[int]]]:
    """Every way up to the last stop, once, with the activations that the last stop is changed to,
    and the layers it can be in. At the logits the last residual stream is changed.
    """
    for delta in _deltas(sweep, stops[:-1]):
        if layers := _layers(sweep, stops[-1], delta):
            received = {at: _received(sweep, stops[-1], delta, at) for at in layers}
            yield delta, [received.get(at, layer) for at, layer in enumerate(sweep.base)], layers


def first_readers(stop: Stop, layer: int, *, parallel: bool) -> tuple[int, int]:
    """The first layer whose attention reads what ``stop`` writes, and the first whose MLP does."""
    if stop.site == "embed":
        return 0, 0
    return layer + 1, layer if stop.in_attention and not parallel else layer + 1


def count_ways(
    before: list[Stop], last: Stop, layer: int, cfg: DecoderConfig, n_neurons: int
) -> int:
    """The number of routes along the stops ``before`` that lead to ``last`` at ``layer``."""
    ways = {(0, 0): 1}
    """How many, by the first layer whose attention and the first whose MLP read the change."""
    for i, stop in enumerate(before):
        onward: dict[tuple[int, int], int] = {}
        for starts, n in ways.items():
            for at in stop.layers(cfg):
                if i and at < starts[stop.site == "mlp_out"]:
                    continue
                after = first_readers(stop, at, parallel=cfg.parallel)
                n_parts = len(stop.parts(cfg, n_neurons))
                onward[after] = onward.get(after, 0) + n * n_parts
        ways = onward
    if last.site == LOGITS:
        return sum(ways.values())
    return sum(n for starts, n in ways.items() if layer >= starts[last.site == "mlp_out"])


def _deltas(sweep: Sweep, stops: list[Stop]) -> Iterator[Delta]:
    if len(stops) == 1:
        yield from _starts(sweep, stops[0])
        return
    for delta in _deltas(sweep, stops[:-1]):
        for layer in _layers(sweep, stops[-1], delta):
            yield from _onward(sweep, stops[-1], delta, layer)


def _starts(sweep: Sweep, stop: Stop) -> Iterator[Delta]:
    weights, base, source, grid = sweep.weights, sweep.base, sweep.source, sweep.grid
    if stop.site == "embed":
        yield Delta((0, 0), source[0]["embed"] - base[0]["embed"], 0, 0, grid, None)
        return
    for layer in stop.layers(weights.cfg):
        block = weights.blocks[layer]
        change = source[layer][stop.site] - base[layer][stop.site]
        readers = first_readers(stop, layer, parallel=block.parallel)
        for part in stop.parts(weights.cfg, grid.n_neurons):
            written = change
            if stop.has_heads:
                written = _written_by_heads(sweep, layer, [part], change[:, :, [part]])
            if stop.part == "neuron":
                units = slice(part * grid.n_neurons, (part + 1) * grid.n_neurons)
                written = _written_by_neurons(sweep, layer, units, change[..., units])
            yield Delta((layer, part), written, *readers, grid, None)


def _onward(sweep: Sweep, stop: Stop, delta: Delta, layer: int) -> Iterator[Delta]:
    """What an intermediate stop writes: one delta per head, and per set of positions where keys or
    values carry the change to other positions.
    """
    received, own = _received(sweep, stop, delta, layer), sweep.base[layer]
    if stop.site == "mlp_out":
        place = (*delta.place, layer, 0)
        written = received["mlp_out"] - own["mlp_out"]
        yield replace(
            delta, place=place, written=written, attention_from=layer + 1, mlp_from=layer + 1
        )
        return
    mlp_from = layer + 1 if sweep.weights.blocks[layer].parallel else layer
    for group, grid, keys, values, reached in _keys_of_groups(stop, delta, own, received):
        z = weigh(softmax(all_scores(received["rot_q"], keys)), values)
        z = (z - own["z"]) * reached[..., None, None]
        n = sweep.weights.cfg.n_grouped if stop.part == "key_value_head" else 1
        for part in stop.parts(sweep.weights.cfg, 1):
            heads = list(range(part * n, (part + 1) * n))
            written = _written_by_heads(sweep, layer, heads, z[:, :, heads])
            place = (*delta.place, layer, part)
            yield Delta(place, written, layer + 1, mlp_from, grid, group)


def _keys_of_groups(
    stop: Stop, delta: Delta, own: dict[str, Tensor], received: dict[str, Tensor]
) -> Iterator[tuple[int | None, PatchGrid, Tensor, Tensor, Bool[Tensor, "fact pos"]]]:
    """Each set of positions with the grid, keys and values that an intermediate stop goes on with,
    and the positions it reaches.
    """
    changed = delta.written.any(-1)
    if SITES[stop.site].at != "key":
        yield delta.group, delta.grid, own["rot_k"], own["v"], changed
        return
    for i, positions in enumerate(delta.grid.positions):
        at = torch.from_numpy(positions).to(changed.device) & changed
        keys, values = (
            torch.where(at[..., None, None], new, old)
            for new, old in ((received[x], own[x]) for x in ("rot_k", "v"))
        )
        reached = at.long().cumsum(1) > 0
        there = reached.cpu().numpy()[None]
        grid = replace(delta.grid, positions=there, sources=there)
        yield i if delta.group is None else delta.group, grid, keys, values, reached


def _received(sweep: Sweep, stop: Stop, delta: Delta, layer: int) -> dict[str, Tensor]:
    """What ``stop`` computes in ``layer`` from the base run's residual stream plus the delta; the
    base run's own values where nothing changed.
    """
    own, weights = sweep.base[layer], sweep.weights
    block = weights.blocks[layer]
    changed = delta.written.any(-1)[..., None]
    if stop.site == LOGITS:
        return own | {"resid_post": own["resid_post"] + delta.written}
    if stop.site == "mlp_out":
        mid = own["resid_pre" if block.parallel else "resid_mid"]
        new = block.mlp(mid + delta.written)
        return own | {"mlp_out": torch.where(changed, new, own["mlp_out"])}
    name, kinds = stop.patched, "q" if stop.site == "q" else "kv"
    pos = torch.arange(changed.shape[1], device=changed.device)[None]
    turn = weights.turn_at(pos)
    heads = dict(zip(kinds, block.heads(own["resid_pre"] + delta.written, turn, kinds=kinds)))
    chosen = torch.zeros(own[name].shape[2], dtype=torch.bool, device=changed.device)
    chosen[stop.parts(weights.cfg, 1)] = True
    new = torch.where(changed[..., None] & chosen[:, None], heads[stop.site], own[name])
    return own | {name: new}


def _layers(sweep: Sweep, stop: Stop, delta: Delta) -> list[int]:
    """Layers at which ``stop`` comes after the delta."""
    if stop.site == LOGITS:
        return [sweep.weights.cfg.n_layers - 1]
    first = delta.mlp_from if stop.site == "mlp_out" else delta.attention_from
    return [layer for layer in stop.layers(sweep.weights.cfg) if layer >= first]


def _written_by_heads(
    sweep: Sweep, layer: int, heads: list[int], change: Float[Tensor, "fact pos part d_head"]
) -> Float[Tensor, "fact pos d_model"]:
    """The change of what attention writes when z of some heads changes."""
    base, block = sweep.base[layer], sweep.weights.blocks[layer]
    if block.norm_after:
        z = base["z"].clone()
        z[:, :, heads] += change
        return _where_changed(change, block.out(z.flatten(2)) - base["attn_out"])
    by_head = split_output_weight(block.head_out.weight, block.n_heads)[heads]
    return change.flatten(2) @ rearrange(by_head, "part m d -> (part d) m")


def _written_by_neurons(
    sweep: Sweep, layer: int, units: slice, change: Float[Tensor, "fact pos neuron"]
) -> Float[Tensor, "fact pos d_model"]:
    """The change of what the MLP writes when some of its neurons change."""
    base, block = sweep.base[layer], sweep.weights.blocks[layer]
    if not block.norm_after:
        return change @ block.neuron_out.weight[:, units].mT
    neurons = base["mlp_post"].clone()
    neurons[..., units] += change
    return _where_changed(change, block.down(neurons) - base["mlp_out"])


def _where_changed(
    change: Float[Tensor, "fact pos *rest"], written: Float[Tensor, "fact pos d_model"]
) -> Float[Tensor, "fact pos d_model"]:
    """``written``, exactly 0 where nothing changed, whatever rounding says."""
    return written * change.flatten(2).any(-1, keepdim=True)
