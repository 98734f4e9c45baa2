"""Cost estimates: how much work and memory a sweep takes, computed before it runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
import torch

from interp.config import METRICS
from interp.data.facts import NO_TOKEN, FactSet
from interp.fields import argument
from interp.jupyter import html_table
from interp.model.decoder import DecoderConfig
from interp.patching.attribution_patching import N_POINTS, n_forwards
from interp.patching.grid import PatchGrid, items_of, prune
from interp.patching.intervention import (
    Intervention,
    axes_of,
    check_sites,
    held_by_fact,
    intervention,
    memory_chunks,
    piece_bytes,
    prepared,
    starts_of,
)
from interp.patching.path_patching import LOGITS, Stop, count_ways, is_path, parse_path
from interp.patching.recompute import TOKENS_AT_ONCE, item_size
from interp.patching.sites import SITES, activations_of

_WORDS = {
    "dest": ("destination", "destinations"),
    "src": ("source", "sources"),
    "pos": ("position", "positions"),
    "neuron": ("group of neurons", "groups of neurons"),
}
_HEADS = (
    *("site", "cells", "facts", "(cell, fact) pairs to compute", "TFLOP"),
    *("forward passes that take as many operations", "MB"),
)
_ROW_BYTES = 150
"""Bytes that a (cell, fact) pair to compute takes in the tables of work items."""


@dataclass(frozen=True)
class Plan:
    """Cost estimate of one site at one checkpoint; ``str`` gives it in one line."""

    site: str
    axes: dict[str, list]
    """Layers, heads, roles, ... of the cells."""
    n_facts: int
    n_draws: int
    """Draws of noise."""
    n_items: int
    """(cell, fact) pairs that can differ from the base run: the ones to compute, at most."""
    flops: float
    """Operations of the matrix products, at most; padding of batches comes on top."""
    flops_of_forward: float
    """Operations of a forward pass of one prompt, on average."""
    megabytes: float
    """Memory that activations and results take at once, at most, on as many cores as torch uses
    here.
    """

    @property
    def n_cells(self) -> int:
        return int(np.prod([len(labels) for labels in self.axes.values()]))

    @property
    def forwards(self) -> float:
        """Number of forward passes of one prompt that take as many operations."""
        return self.flops / self.flops_of_forward

    def cells(self) -> Iterator[dict]:
        """The cells of the patch grid, each as its labels along the axes."""
        return (dict(zip(self.axes, place)) for place in product(*self.axes.values()))

    def __repr__(self) -> str:
        return f"Plan({self})"

    def _repr_html_(self) -> str:
        return Plans([self])._repr_html_()

    def __str__(self) -> str:
        cells = " × ".join(_counted(len(labels), name) for name, labels in self.axes.items())
        n_pairs = self.n_cells * self.n_facts * self.n_draws
        return (
            f"{self.site}: {cells} = {self.n_cells:,} cells on {self.n_facts} facts; "
            f"{self.n_items:,} of {n_pairs:,} (cell, fact) pairs to compute; "
            f"{self.flops / 1e9:,.1f} GFLOP, as much as {self.forwards:,.0f} forward passes where "
            f"a loop makes {n_pairs:,}; {self.megabytes:,.0f} MB at most"
        )


class Plans(list[Plan]):
    """A list of cost estimates, which a notebook shows as a table."""

    def to_dataframe(self) -> pd.DataFrame:
        """A row a site: cells, facts, (cell, fact) pairs to compute, TFLOP, forward passes of one
        prompt that take as many operations, and megabytes at once; all at most.
        """
        return pd.DataFrame(
            {
                "site": [of.site for of in self],
                "cells": [of.n_cells for of in self],
                "facts": [of.n_facts for of in self],
                "pairs": [of.n_items for of in self],
                "tflop": [of.flops / 1e12 for of in self],
                "forwards": [of.forwards for of in self],
                "megabytes": [of.megabytes for of in self],
            }
        )

    def _repr_html_(self) -> str:
        rows = [
            (of.site, f"{of.n_cells:,}", f"{of.n_facts:,}", f"{of.n_items:,}",
             f"{of.flops / 1e12:.4g}", f"{of.forwards:,.0f}", f"{of.megabytes:,.0f}")
            for of in self
        ]  # fmt: skip
        return html_table("Cost estimate at one checkpoint, at most.", rows, heads=_HEADS)


def plan(
    cfg: DecoderConfig,
    facts: FactSet,
    *,
    sites: Sequence[str] = (),
    max_memory: float = 2.0,
    **options,
) -> Plans:
    """One ``Plan`` per site, from shapes and tokens alone: no model is loaded or run.

    Args:
        max_memory: gigabytes (10⁹ bytes), as ``interp.patch`` takes it.
        options: the fields of ``Intervention``.
    """
    how = intervention(options)
    argument("cfg", cfg, DecoderConfig), argument("facts", facts, FactSet)
    max_memory = argument("max_memory", max_memory, float, above=0)
    sites = check_sites(sites, parallel=cfg.parallel, direction=how.direction)
    facts, grid, labels = prepared(cfg, sites, facts, how)
    costs = _Costs(cfg, facts, grid)
    n_draws = how.noise_draws if how.replacement == "noise" else 1
    plans = Plans()
    for site in sites:
        if is_path(site):
            n_items, flops = costs.of_path(parse_path(site))
        else:
            parts = SITES[site].n_parts(cfg, how.n_neurons)
            layers = grid.swept(site, cfg.n_layers)
            n_items, flops = np.sum([costs.of_layer(site, layer, parts) for layer in layers], 0)
        if how.method != "exact":  # passes are shared by all sites
            flops = n_forwards(how, cfg.n_layers) * costs.whole_forward.sum()
            flops += costs.of_products(parse_path(site), how) if is_path(site) else 0
        axes = {name: x.tolist() for name, x in axes_of(site, cfg, how).items()}
        edges = not is_path(site) and SITES[site].is_edge
        groups = ("dest", "src") if edges else (how.by,)
        axes |= {name: list(of) for name, of in zip(groups, labels)}
        n_results = len(METRICS) * len(facts) * np.prod([len(x) for x in axes.values()])
        held = costs.bytes_at_once(site, how, max_memory)
        megabytes = float(held + 4 * n_results + _ROW_BYTES * n_items) / 1e6
        forward = float(costs.whole_forward.mean())
        of_all = (int(n_items) * n_draws, float(flops) * n_draws)
        plans.append(Plan(site, axes, len(facts), n_draws, *of_all, forward, megabytes))
    return plans


def weight_gigabytes(cfg: DecoderConfig) -> float:
    """Memory that a model's weights take on a CPU while it is patched: in fp32, with the copies
    that are laid out for fast products (every matrix of a block, those of queries, keys and values
    in three arrangements, and the unembedding).
    """
    of_heads, of_keys, of_mlp = cfg.widths
    qkv = cfg.d_model * (of_heads + of_keys)
    block = qkv + cfg.d_model * (of_heads + of_mlp + cfg.d_mlp)
    vocabulary = cfg.d_vocab * cfg.d_model
    positions = cfg.n_ctx * cfg.d_model * cfg.learned_positions
    numbers = cfg.n_layers * (2 * block + 3 * qkv) + 3 * vocabulary + positions
    return 4 * numbers / 1e9


def _counted(n: int, axis: str) -> str:
    """A count with its noun, such as ``4 layers``, or ``1 head of stop 2``."""
    name, _, stop = axis.partition("_")
    one, many = _WORDS.get(name, (name, f"{name}s"))
    return f"{n} {one if n == 1 else many}" + (f" of stop {int(stop) + 1}" if stop else "")


class _Costs:
    """Operations of items on given facts; a multiplication and an addition are two."""

    def __init__(self, cfg: DecoderConfig, facts: FactSet, grid: PatchGrid) -> None:
        self.cfg, self.facts, self.grid = cfg, facts, grid
        self.n_prompt = facts.lengths.numpy()
        self.n_value = (facts.answers != NO_TOKEN).sum(1).numpy()
        self.n_total, self.n_pos = self.n_prompt + self.n_value - 1, grid.positions.shape[2]
        of_heads, of_keys, of_mlp = cfg.widths
        self.keys = 2 * cfg.d_model * of_keys
        self.block = self.keys + 2 * cfg.d_model * (2 * of_heads + of_mlp + cfg.d_mlp)
        self.attention = 4 * of_heads * self.n_pos
        self.unembed = 2 * cfg.d_model * cfg.d_vocab
        self.whole_forward = self.n_total * (cfg.n_layers * self.block + self.unembed)

    def of_layer(
        self, site: str, layer: int, parts: int, *, carried: bool = False
    ) -> tuple[int, float]:
        """Number of items of one site at one layer, and their operations.

        Args:
            carried: every later position is changed too.
        """
        cfg, grid, of = self.cfg, self.grid, SITES[site]
        if carried:
            later = np.logical_or.accumulate(grid.positions, 2)
            grid = replace(grid, positions=later, sources=later)
        differs = grid.may_differ[None]
        if of.is_edge:
            differs = np.logical_or.accumulate(grid.sources, 2) & (grid.may_differ | of.cut)
        items = items_of(site, layer, np.broadcast_to(differs, (parts, *differs.shape)), grid)
        entry = grid.layers(site, layer, cfg.n_layers).start + (not of.before_block)
        items, at = prune(items, grid, entry, cfg.n_layers, self.n_prompt, self.n_total)
        tokens, read = self.n_total[items.fact] - at.argmax(1), self.n_value[items.fact]
        in_block = self.block + self.attention
        flops = tokens * max(0, cfg.n_layers - 1 - entry) * in_block + read * self.unembed
        if entry < cfg.n_layers:
            flops += tokens * self.keys + read * in_block
        inside = at.sum() * self.block if not of.before_block else 0
        return len(items), float(flops.sum() + inside)

    def of_path(self, stops: list[Stop]) -> tuple[int, float]:
        """The same for all ways along a path, with what its stops compute themselves."""
        last = stops[-1]
        carried = any(SITES[stop.site].at == "key" for stop in stops[1:-1])
        parts = len(last.parts(self.cfg, self.grid.n_neurons))
        layers = [self.cfg.n_layers - 1] if last.site == LOGITS else last.layers(self.cfg)
        n_items, flops = 0, 0.0
        for layer in layers:
            n_ways = count_ways(stops[:-1], last, layer, self.cfg, self.grid.n_neurons)
            kept, of_one = self.of_layer(last.patched, layer, parts, carried=carried)
            n_heard = n_ways * (len(self.grid.positions) if carried else 1)
            if last.site == LOGITS and len(stops) == 2:
                n_heard = 0  # nothing is computed on the way
            n_items += n_ways * kept
            flops += n_ways * of_one + n_heard * float(self.n_total.sum()) * self.block
        return n_items, flops

    def of_products(self, stops: list[Stop], how: Intervention) -> float:
        """Operations of an estimated path beyond the passes: what its first stop writes, the
        gradients by what its second reads, their products, and sums over sets of positions.
        """
        cfg, n_metrics = self.cfg, len(METRICS) + how.control
        first, last = stops
        widths = {
            "embed": 0,
            "attn_out": 0,
            "mlp_out": 0,
            "z": cfg.widths[0],
            "mlp_post": cfg.d_mlp,
        }
        written = len(first.layers(cfg)) * widths[first.site]
        read = {LOGITS: 0, "mlp_out": cfg.d_mlp}.get(last.site, cfg.d_model) * cfg.n_layers
        n_points = N_POINTS if how.method == "eap-ig" else 1
        n_pairs = np.prod(
            [len(x.layers(cfg)) * len(x.parts(cfg, how.n_neurons)) for x in (first, last)]
        )
        by_token = cfg.d_model * (written + n_metrics * (n_points * read + n_pairs))
        by_token += n_metrics * n_pairs * len(self.grid.positions)
        return 2.0 * float(self.n_total.sum() * by_token)

    def bytes_at_once(self, site: str, how: Intervention, max_memory: float) -> float:
        """Bytes of a batch's activation caches, and of the items that are computed together."""
        cfg, n_pos, share = self.cfg, self.n_pos, piece_bytes(max_memory)
        kept = activations_of(starts_of([site]))
        chunks = memory_chunks(cfg, self.facts, kept, how, share / 4)
        runs = len(chunks[0]) * held_by_fact(cfg, kept, how, n_pos)
        token, row = item_size(cfg, n_pos, int(self.n_value.max()))
        rows = torch.get_num_threads() * TOKENS_AT_ONCE * (token + row / max(1, n_pos // 2))
        return min(4 * runs, share) + min(4 * rows, share)
