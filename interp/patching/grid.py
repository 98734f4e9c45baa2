"""The patch grid, which says which positions are changed together, and the work items it makes."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from interp.patching.sites import SITES, names_of


@runtime_checkable
class Shape(Protocol):
    """The parts of a model's configuration that patching needs."""

    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def n_key_value_heads(self) -> int | None: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def d_mlp(self) -> int: ...
    @property
    def d_vocab(self) -> int: ...


@dataclass(frozen=True)
class PatchGrid:
    """Sets of positions, each patched together, at each layer or window of layers."""

    positions: Bool[np.ndarray, "group fact pos"]
    """Where a site is changed; the destinations of an edge."""
    sources: Bool[np.ndarray, "source fact pos"]
    """Sources of an edge."""
    may_differ: Bool[np.ndarray, "fact pos"]
    """False where the two runs differ by rounding at most."""
    window: int = 1
    """Layers changed together: from layer − window // 2 on, as far as there are."""
    n_neurons: int = 1
    """Neurons per group of ``mlp_post``."""
    frozen: str | None = None
    """Which output keeps the base run's value at ``positions`` in all layers from the change on."""
    only: tuple[int, ...] = ()
    """Layers to change; empty means all."""
    causal: bool = True
    """No position attends to a later one."""

    def of_facts(self, facts: Int[np.ndarray, " n"], n_pos: int) -> "PatchGrid":
        """The grid of some of the facts, on their first ``n_pos`` positions."""
        return replace(
            self,
            positions=self.positions[:, facts, :n_pos],
            sources=self.sources[:, facts, :n_pos],
            may_differ=self.may_differ[facts, :n_pos],
        )

    def swept(self, site: str, n_layers: int) -> list[int]:
        """Layers at which ``site`` is patched, one at a time."""
        if not SITES[site].has_layers:
            return [0]
        return [layer for layer in range(n_layers) if not self.only or layer in self.only]

    def layers(self, site: str, layer: int, n_layers: int) -> range:
        """Layers that are patched together with ``layer``."""
        if not SITES[site].has_layers:
            return range(1)
        start = layer - self.window // 2
        return range(max(0, start), min(n_layers, start + self.window))

    def reaching(self) -> Bool[np.ndarray, "source fact pos"]:
        """Destinations that can attend to any of each set of sources."""
        if self.causal:
            return np.logical_or.accumulate(self.sources, 2)
        return np.broadcast_to(self.sources.any(2, keepdims=True), self.sources.shape)


@dataclass(frozen=True)
class WorkItems:
    """Patches that can change the logits: one item per (grid cell, fact)."""

    site: np.ndarray
    layer: np.ndarray
    part: np.ndarray
    """Head, or group of neurons; 0 for sites without parts."""
    group: np.ndarray
    """Which set of positions."""
    source: np.ndarray
    """Which set of sources; 0 for sites without sources."""
    fact: np.ndarray

    def __getitem__(self, index: np.ndarray) -> "WorkItems":
        return WorkItems(*(column[index] for column in vars(self).values()))

    def __len__(self) -> int:
        return len(self.fact)


def items_of(
    site: str, layer: int, differs: Bool[np.ndarray, "part source fact pos"], grid: PatchGrid
) -> WorkItems:
    """The items of one site and layer at which the two runs differ."""
    group, part, source, fact = (grid.positions[:, None, None] & differs).any(-1).nonzero()
    n = len(fact)
    return WorkItems(np.full(n, site), np.full(n, layer), part, group, source, fact)


def concatenate(tables: list[WorkItems]) -> WorkItems:
    return WorkItems(*map(np.concatenate, zip(*(vars(table).values() for table in tables))))


def prune(
    items: WorkItems,
    grid: PatchGrid,
    entry: int,
    n_layers: int,
    n_prompt: np.ndarray,
    n_total: np.ndarray,
) -> tuple[WorkItems, Bool[np.ndarray, "item pos"]]:
    """The items that can change a logit that is read, and the positions that they change of the
    residual stream entering layer ``entry``; all others are pruned.

    Args:
        n_prompt: tokens of each fact's prompt; the last of them predicts the value.
        n_total: positions of each fact up to the last that is read.
    """
    at = _reached(items, grid)
    pos = np.arange(at.shape[1])
    at &= pos < n_total[items.fact, None]
    if entry == n_layers:
        at &= pos >= n_prompt[items.fact, None] - 1
    keep = np.flatnonzero(at.any(1))
    return items[keep], at[keep]


def _reached(items: WorkItems, grid: PatchGrid) -> Bool[np.ndarray, "item pos"]:
    """Positions at which each item first changes the residual stream."""
    at = grid.positions[items.group, items.fact]
    keys, edges = (np.isin(items.site, names_of(at=kind)) for kind in ("key", "edge"))
    at[keys] = np.logical_or.accumulate(at[keys], 1)
    sources = grid.sources[items.source[edges], items.fact[edges]]
    at[edges] &= np.logical_or.accumulate(sources, 1)
    return at
