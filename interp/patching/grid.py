"""Cells, what a sweep changes one at a time, and the rows of work they become."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

AT_ENTRY = ("embed", "resid_pre")
"""Sites that change the residual stream entering their own layer; all others the next one's."""
CUTS = ("knockout", "head_knockout")
"""Sites whose attention is cut before the softmax: of all heads, or of one."""
EDGES = ("edge", *CUTS)
"""Sites that are pairs of a destination and a source."""
ON_KEYS = ("k", "v")
"""Sites that every later destination reads."""


@runtime_checkable
class Shape(Protocol):
    """What a sweep needs to know of a model's configuration."""

    n_layers: int
    n_heads: int
    n_key_value_heads: int | None
    d_model: int
    d_mlp: int
    d_vocab: int


@dataclass(frozen=True)
class Cells:
    """Sets of positions, each changed together, at each layer or window of layers."""

    positions: Bool[np.ndarray, "group fact pos"]
    """Where to change a site; the destinations of an edge."""
    sources: Bool[np.ndarray, "source fact pos"]
    """Sources of an edge."""
    window: int = 1
    """Layers changed together: from layer − window // 2 on, as far as there are."""
    n_neurons: int = 1
    """Neurons a group of ``mlp_post``."""
    frozen: str | None = None
    """What stays the base run's at ``positions`` from the change on."""
    only: tuple[int, ...] = ()
    """Layers to change; none are all."""
    causal: bool = True
    """No position attends to a later one."""

    def swept(self, site: str, n_layers: int) -> list[int]:
        """Layers of ``site`` that are changed one at a time."""
        layers = range(1 if site == "embed" else n_layers)
        return [layer for layer in layers if not self.only or site == "embed" or layer in self.only]

    def reaching(self) -> Bool[np.ndarray, "source fact pos"]:
        """Destinations that could attend to any of each set of sources."""
        if self.causal:
            return np.logical_or.accumulate(self.sources, 2)
        return np.broadcast_to(self.sources.any(2, keepdims=True), self.sources.shape)

    def layers(self, layer: int, n_layers: int) -> range:
        """The window around ``layer``."""
        start = layer - self.window // 2
        return range(max(0, start), min(n_layers, start + self.window))


@dataclass(frozen=True)
class Rows:
    """Work that enters at one layer: one row a (cell, fact)."""

    site: np.ndarray
    layer: np.ndarray
    part: np.ndarray
    """Head, or group of neurons; 0 for sites without."""
    group: np.ndarray
    """Which set of positions."""
    source: np.ndarray
    """Which set of sources; 0 for sites without."""
    fact: np.ndarray

    def __getitem__(self, index: np.ndarray) -> "Rows":
        return Rows(*(column[index] for column in vars(self).values()))

    def __len__(self) -> int:
        return len(self.fact)


def rows_of(
    site: str, layer: int, differs: Bool[np.ndarray, "part source fact pos"], cells: Cells
) -> Rows:
    """The rows of one site and layer that change anything, given where each part of it does."""
    group, part, source, fact = (cells.positions[:, None, None] & differs).any(-1).nonzero()
    n = len(fact)
    return Rows(np.full(n, site), np.full(n, layer), part, group, source, fact)


def concatenate(tables: list[Rows]) -> Rows:
    if not tables:
        return Rows(*(np.zeros(0, int) for _ in range(6)))
    return Rows(*(np.concatenate(column) for column in zip(*(vars(t).values() for t in tables))))


def reached(rows: Rows, cells: Cells) -> Bool[np.ndarray, "row pos"]:
    """Positions of the residual stream that each row changes first."""
    at = cells.positions[rows.group, rows.fact]
    keys, edges = np.isin(rows.site, ON_KEYS), np.isin(rows.site, EDGES)
    at[keys] = np.logical_or.accumulate(at[keys], 1)
    at[edges] &= np.logical_or.accumulate(cells.sources[rows.source[edges], rows.fact[edges]], 1)
    return at
