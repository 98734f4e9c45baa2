"""Path patching (Wang et al. 2022, https://arxiv.org/abs/2211.00593; Goldowsky-Dill et al. 2023,
https://arxiv.org/abs/2304.05969): a change that reaches a later component along chosen edges only.

A path is written as its stops, ``z-q`` or ``embed-v-logits``: a component is changed; the next stop
reads the base run's residual stream plus what that change wrote into it, LayerNorm included, all
else frozen; and so on. What the last stop then computes is pasted into the base run, which goes on
from there with nothing frozen; ``logits`` as the last stop ends it. A stop may be a single one:
``L0H2.z-L2H1.q``. An effect along a path is not evidence that nothing else carries the change.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.model.decoder import DecoderConfig
from interp.patching.activations import Layer, Run
from interp.patching.engine import Engine
from interp.patching.grid import ON_KEYS, Cells, Shape
from interp.patching.tensor_ops import softmax

FIRST_STOPS = ("embed", "attn_out", "mlp_out", "mlp_post", "z")
LATER_STOPS = ("q", "k", "v", "mlp_out", "logits")
_HEADS = ("z", "q", "k", "v")


@dataclass(frozen=True)
class Stop:
    """A site on a path, at every layer and head unless one is given."""

    site: str
    layer: int | None = None
    head: int | None = None

    def layers(self, cfg: Shape) -> list[int]:
        """Which it may be; 0 alone for sites without."""
        if self.site in ("embed", "logits"):
            return [0]
        return list(range(cfg.n_layers)) if self.layer is None else [self.layer]

    def parts(self, cfg: Shape, n_neurons: int) -> list[int]:
        """Which heads or groups of neurons it may be; 0 alone for sites without."""
        if self.head is not None:
            return [self.head]
        n = cfg.n_heads if self.site in _HEADS else 1
        return list(range(cfg.d_mlp // n_neurons if self.site == "mlp_post" else n))


@dataclass(frozen=True)
class Arrival:
    """A way up to a path's last stop, and what that stop is to be changed to."""

    place: tuple[int, ...]
    """Layer and part of each stop before."""
    source: Run
    layers: list[int]
    """At which the last stop can be."""
    cells: Cells
    """Where to change it."""
    group: int | None
    """Of which set of positions; None: of each its own."""


@dataclass(frozen=True)
class _Change:
    """What the stops so far wrote into the residual stream."""

    place: tuple[int, ...]
    written: Float[Tensor, "fact pos d_model"]
    attention_from: int
    """First layer whose attention reads it."""
    mlp_from: int
    cells: Cells
    group: int | None


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
        known = LATER_STOPS if i else FIRST_STOPS
        if not match or match[3] not in known:
            raise ValueError(
                f"no stop {text!r} in path {path!r}; it can {'go on to' if i else 'start with'} "
                f"{', '.join(known)}, or a single one such as {'L1H3.q' if i else 'L1H3.z'}"
            )
        layer, head = (None if x is None else int(x) for x in match.group(1, 2))
        stop = Stop(match[3], layer, head)
        if (head is not None and stop.site not in _HEADS) or (
            layer is not None and stop.site in ("embed", "logits")
        ):
            raise ValueError(f"{stop.site!r} has no {text.split('.')[0]}; take it out of {path!r}")
        if stop.site == "logits" and i < len(words) - 1:
            raise ValueError(f"path {path!r} goes on after the logits; end it there")
        stops.append(stop)
    return stops


def arrivals(
    engine: Engine, stops: list[Stop], base: Run, source: Run, cells: Cells
) -> Iterator[Arrival]:
    """Every way up to the last stop, once. At the logits the last residual stream is changed."""
    for change in _changes(engine, stops[:-1], base, source, cells):
        layers = _layers(engine, stops[-1], change)
        if layers:
            received = {at: _received(engine, stops[-1], base, change, at) for at in layers}
            run = [received.get(at, layer) for at, layer in enumerate(base)]
            yield Arrival(change.place, run, layers, change.cells, change.group)


def count_ways(
    before: list[Stop], last: Stop, layer: int, cfg: DecoderConfig, n_neurons: int
) -> int:
    """Ways along the stops ``before`` that ``last``, at ``layer``, comes after."""
    ways = {(0, 0): 1}
    """Number by the first layer whose attention, and whose MLP, read the change."""
    for i, stop in enumerate(before):
        onward: dict[tuple[int, int], int] = {}
        for starts, n in ways.items():
            for at in stop.layers(cfg):
                if i and at < starts[stop.site == "mlp_out"]:
                    continue
                same_block = not cfg.parallel and stop.site in ("attn_out", *_HEADS)
                after = (0, 0) if stop.site == "embed" else (at + 1, at + (not same_block))
                n_parts = len(stop.parts(cfg, n_neurons))
                onward[after] = onward.get(after, 0) + n * n_parts
        ways = onward
    if last.site == "logits":
        return sum(ways.values())
    return sum(n for starts, n in ways.items() if layer >= starts[last.site == "mlp_out"])


def _changes(
    engine: Engine, stops: list[Stop], base: Run, source: Run, cells: Cells
) -> Iterator[_Change]:
    if len(stops) == 1:
        yield from _starts(engine, stops[0], base, source, cells)
        return
    for change in _changes(engine, stops[:-1], base, source, cells):
        for layer in _layers(engine, stops[-1], change):
            yield from _onward(engine, stops[-1], base, change, layer)


def _starts(engine: Engine, stop: Stop, base: Run, source: Run, cells: Cells) -> Iterator[_Change]:
    if stop.site == "embed":
        yield _Change((0, 0), source[0].resid_pre - base[0].resid_pre, 0, 0, cells, None)
        return
    for layer in stop.layers(engine.model.cfg):
        block = engine.blocks[layer]
        change = getattr(source[layer], stop.site) - getattr(base[layer], stop.site)
        attention = stop.site in ("z", "attn_out")
        mlp_from = layer if attention and not block.parallel else layer + 1
        for part in stop.parts(engine.model.cfg, cells.n_neurons):
            written = change
            if stop.site == "z":
                written = _written_by_head(engine, layer, part, change[:, :, part])
            if stop.site == "mlp_post":
                units = slice(part * cells.n_neurons, (part + 1) * cells.n_neurons)
                written = change[..., units] @ block.down.weight[:, units].mT
            yield _Change((layer, part), written, layer + 1, mlp_from, cells, None)


def _onward(
    engine: Engine, stop: Stop, base: Run, change: _Change, layer: int
) -> Iterator[_Change]:
    """What one stop on the way writes, of each of its heads, and of each set of positions where
    keys or values carry them to other positions.
    """
    received, own = _received(engine, stop, base, change, layer), base[layer]
    if stop.site == "mlp_out":
        place = (*change.place, layer, 0)
        written = received.mlp_out - own.mlp_out
        yield replace(
            change, place=place, written=written, attention_from=layer + 1, mlp_from=layer + 1
        )
        return
    mlp_from = layer + 1 if engine.blocks[layer].parallel else layer
    for group, cells, keys, values, reached in _keys_of_groups(stop, change, own, received):
        z = engine.weigh(softmax(engine.all_scores(received.q, keys)), values)
        z = (z - own.z) * reached[..., None, None]
        for head in stop.parts(engine.model.cfg, 1):
            written = _written_by_head(engine, layer, head, z[:, :, head])
            place = (*change.place, layer, head)
            yield _Change(place, written, layer + 1, mlp_from, cells, group)


def _keys_of_groups(
    stop: Stop, change: _Change, own: Layer, received: Layer
) -> Iterator[tuple[int | None, Cells, Tensor, Tensor, Bool[Tensor, "fact pos"]]]:
    """A set of positions, those it reaches, and the keys and values that are read there."""
    changed = change.written.any(-1)
    if stop.site not in ON_KEYS:
        yield change.group, change.cells, own.k, own.v, changed
        return
    for i, positions in enumerate(change.cells.positions):
        at = torch.from_numpy(positions).to(changed.device) & changed
        keys, values = (
            torch.where(at[..., None, None], new, old)
            for new, old in ((received.k, own.k), (received.v, own.v))
        )
        reached = at.long().cumsum(1) > 0
        there = reached.cpu().numpy()[None]
        cells = replace(change.cells, positions=there, sources=there)
        yield i if change.group is None else change.group, cells, keys, values, reached


def _received(engine: Engine, stop: Stop, base: Run, change: _Change, layer: int) -> Layer:
    """What ``stop`` computes in ``layer`` from the base run's residual stream and the change in it;
    the base run's own values where nothing changed.
    """
    own, block = base[layer], engine.blocks[layer]
    changed = change.written.any(-1)[..., None]
    if stop.site == "logits":
        return replace(own, resid_post=own.resid_post + change.written)
    if stop.site == "mlp_out":
        new = block.mlp(own.resid_mid + change.written)
        return replace(own, mlp_out=torch.where(changed, new, own.mlp_out))
    pos = torch.arange(own.q.shape[1], device=own.q.device)[None]
    kinds = "q" if stop.site == "q" else "kv"
    heads = dict(zip(kinds, engine.heads(block, own.resid_pre + change.written, pos, kinds)))
    old = getattr(own, stop.site)
    chosen = torch.zeros(old.shape[2], dtype=torch.bool, device=old.device)
    chosen[stop.parts(engine.model.cfg, 1)] = True
    new = torch.where(changed[..., None] & chosen[:, None], heads[stop.site], old)
    return replace(own, **{stop.site: new})


def _layers(engine: Engine, stop: Stop, change: _Change) -> list[int]:
    """Where ``stop`` comes after the change."""
    if stop.site == "logits":
        return [engine.n_layers - 1]
    first = change.mlp_from if stop.site == "mlp_out" else change.attention_from
    return [layer for layer in stop.layers(engine.model.cfg) if layer >= first]


def _written_by_head(
    engine: Engine, layer: int, head: int, change: Float[Tensor, "fact pos d_head"]
) -> Float[Tensor, "fact pos d_model"]:
    units = slice(head * change.shape[-1], (head + 1) * change.shape[-1])
    return change @ engine.blocks[layer].out.weight[:, units].mT
