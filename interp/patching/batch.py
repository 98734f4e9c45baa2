"""One batch of facts, patched at every cell of the patch grid."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float, Int

from interp.config import Replacement
from interp.data.facts import FactSet
from interp.model.model_check import check_finite
from interp.patching.activations import (
    ActivationCache,
    Prompts,
    ScoredCache,
    name_roles,
    only,
    same_place,
    taken_from,
)
from interp.patching.attribution_patching import GradientEstimates
from interp.patching.changed_block import Sweep
from interp.patching.edge_estimates import path_estimates
from interp.patching.grid import PatchGrid, WorkItems
from interp.patching.hooks import HookedRuns, embedding_of
from interp.patching.intervention import Intervention, starts_of
from interp.patching.path_patching import arrivals, is_path, parse_path
from interp.patching.recompute import Recompute, check_same_logits
from interp.patching.sites import SITES, activations_of

Results = dict[str, Float[np.ndarray, "metric layer part group source fact"]]
"""Metrics by site. For a path, layer and part are the last stop's, and ``source`` is the way up to
it.
"""
Scores = Float[np.ndarray, "metric fact"]


@dataclass(frozen=True)
class Giver:
    """What ablations and noise take from other facts; empty where they take nothing."""

    prompts: Prompts | None = None
    fact: Int[np.ndarray, " fact"] | None = None
    """Of ``prompts``, the one that each fact is resampled from."""
    means: ActivationCache | None = None
    """Of every role or position, for mean ablation."""
    spread: float = 0.0
    """Standard deviation of the embeddings that noise is added to."""


@dataclass(frozen=True)
class Batch:
    """Facts whose activation caches fit into memory together, and how they are patched."""

    runs: Recompute | HookedRuns | GradientEstimates
    how: Intervention
    sites: list[str]
    grid: PatchGrid
    numbers: Int[np.ndarray, " fact"]
    """The facts' numbers among all."""
    given: Prompts
    giver: Giver


def base_runs(
    model: torch.nn.Module,
    runs: Recompute | HookedRuns | GradientEstimates,
    numbers: Int[np.ndarray, " fact"],
    clean: Prompts,
    corrupted: Prompts | None,
    kept: set[str],
    replacements: set[Replacement],
) -> tuple[ScoredCache, ScoredCache | None]:
    """The clean and the corrupted run of facts with these numbers, with the activations ``kept``;
    of the latter only the scores, or nothing, where ``replacements`` need no more.

    Raises:
        ValueError: their scores are not finite, or not those of the model's own forward pass.
    """
    of_clean = runs.run(clean, kept)
    check_finite(of_clean.scores[1:], numbers, "clean")
    if numbers[0] == 0 and isinstance(runs, Recompute):
        check_same_logits(model, runs, of_clean)
    if corrupted is None or replacements == {"noise"}:
        return of_clean, None
    of_corrupted = runs.run(corrupted, kept)
    check_finite(of_corrupted.scores[1:], numbers, "corrupted")
    if "run" not in replacements:  # the memory of activations is free
        of_corrupted = ScoredCache([], corrupted, of_corrupted.scores)
    return of_clean, of_corrupted


def patch_batch(
    batch: Batch, clean: ScoredCache, corrupted: ScoredCache | None
) -> tuple[Results, Scores, Scores]:
    """Metrics of every cell, of the clean and of the corrupted run."""
    if batch.how.replacement == "noise":
        draws, ends = [], []
        kept = _pasted(batch) | ({batch.how.frozen} if batch.how.frozen else set())
        for draw in range(batch.how.noise_draws):
            noised = batch.runs.run(replace(batch.given, noise=_noise(batch, draw)), kept)
            ends.append(noised.scores)
            draws.append(_between(batch, clean, noised))
        of_noise = np.mean(ends, 0)
        check_finite(of_noise[1:], batch.numbers, "corrupted")
        results = {site: np.mean([draw[site] for draw in draws], 0) for site in batch.sites}
        return results, clean.scores, of_noise
    scores = np.full_like(clean.scores, np.nan) if corrupted is None else corrupted.scores
    other = clean if corrupted is None else corrupted
    if batch.how.replacement != "run":
        other = _ablated(batch, clean)
    return _between(batch, clean, other), clean.scores, scores


def _pasted(batch: Batch) -> set[str]:
    """Activations that are replaced."""
    return activations_of(starts_of(batch.sites))


def _between(batch: Batch, clean: ScoredCache, other: ActivationCache) -> Results:
    """Metrics of every cell between the clean run and another."""
    base, source = (other, clean) if batch.how.direction == "denoising" else (clean, other)
    plain = [site for site in batch.sites if not is_path(site)]
    patched = {site: _unpatched(batch, site, base.scores) for site in plain}
    for items, scores in _sweep(batch, plain, batch.grid, base, source):
        for site in np.unique(items.site):
            at = items.site == site
            place = (items.layer, items.part, items.group, items.source, items.fact)
            patched[site][:, *(column[at] for column in place)] = scores[:, at]
    paths = [site for site in batch.sites if is_path(site)]
    if paths and batch.how.method != "exact":
        return patched | path_estimates(batch.runs, paths, batch.grid, base, source)
    return patched | {path: _along_path(batch, path, base, source) for path in paths}


def _sweep(
    batch: Batch, sites: list[str], grid: PatchGrid, base: ScoredCache, source: ActivationCache
) -> Iterator[tuple[WorkItems, Float[np.ndarray, "metric item"]]]:
    """Metrics of the items that can differ from the base run.

    Raises:
        ValueError: a change makes log-probabilities that are not finite. NaN stands for cells that
            a fact does not have.
    """
    for items, scores in batch.runs.sweep(sites, grid, base, source) if sites else ():
        for i in np.flatnonzero(~np.isfinite(scores[1:3]).all(0))[:1]:
            raise ValueError(
                f"patching {items.site[i]} at layer {items.layer[i]} makes logits that are not "
                "finite; patch in fp32, or leave that layer out"
            )
        yield items, scores


def _unpatched(batch: Batch, name: str, scores: Scores) -> np.ndarray:
    """The base run's metrics in every cell that a fact has, NaN elsewhere."""
    site, grid, cfg = SITES[name], batch.grid, batch.runs.cfg
    there = grid.positions.any(2)[:, None]
    if site.is_edge:
        n_pos, of_source = grid.positions.shape[2], grid.sources.any(2)
        first = np.where(of_source, grid.sources.argmax(2), n_pos)
        last = n_pos - 1 - grid.positions[:, :, ::-1].argmax(2)
        there = there & of_source & ((not grid.causal) | (first[None] <= last[:, None]))
    values = np.where(there, scores[:, None, None], np.float32(np.nan))
    n_layers, n_parts = cfg.n_layers if site.has_layers else 1, site.n_parts(cfg, grid.n_neurons)
    return repeat(values, "metric ... -> metric layer part ...", layer=n_layers, part=n_parts)


@torch.inference_mode()
def _along_path(
    batch: Batch, path: str, base: ScoredCache, source: ActivationCache
) -> Float[np.ndarray, "metric layer part group source fact"]:
    """Metrics of every cell of a path; NaN where its stops are not in order."""
    stops, cfg, grid = parse_path(path), batch.runs.cfg, batch.grid
    sweep = Sweep(batch.runs.weights, grid, base, source)
    choices = [(stop.layers(cfg), stop.parts(cfg, grid.n_neurons)) for stop in stops]
    *before, layers, parts = chain.from_iterable(choices)
    sizes = [len(choice) for choice in before]
    has, last = grid.positions.any(2), stops[-1].patched
    there = np.where(has, base.scores[:, None], np.float32(np.nan))
    n_metrics, n_groups, n_facts = there.shape
    shape = (n_metrics, len(layers), len(parts), n_groups, int(np.prod(sizes)), n_facts)
    patched = np.full(shape, np.nan, np.float32)
    layer_at = np.zeros(cfg.n_layers, int)
    if stops[-1].has_layers:
        layer_at[layers] = np.arange(len(layers))
    for delta, received, reached in arrivals(sweep, stops):
        place = [choice.index(at) for choice, at in zip(before, delta.place)]
        way = int(np.ravel_multi_index(place, sizes))
        groups = slice(None) if delta.group is None else delta.group
        for layer in layer_at[reached]:
            patched[:, layer, :, groups, way] = there[:, groups][:, None]
        for items, scores in _sweep(batch, [last], delta.grid, base, received):
            group = items.group if delta.group is None else np.full(len(items), delta.group)
            part = np.searchsorted(parts, items.part)
            patched[:, layer_at[items.layer], part, group, way, items.fact] = scores
    return patched


def _noise(batch: Batch, draw: int) -> Float[torch.Tensor, "fact pos d_model"]:
    weight = batch.runs.embedding
    shape = (batch.given.tokens.shape[1], weight.shape[1])
    noise = [
        np.random.default_rng([batch.how.seed, 5, draw, int(fact)]).standard_normal(shape)
        for fact in batch.numbers
    ]
    noise = torch.from_numpy(np.stack(noise)).to(weight) * batch.how.noise_std * batch.giver.spread
    return (noise * batch.given.named[..., None]).detach()


def _ablated(batch: Batch, clean: ScoredCache) -> ActivationCache:
    """What is pasted instead of a fact's own activations."""
    names, places, giver = _pasted(batch), batch.given.places, batch.giver
    own = only(clean, names)
    if batch.how.replacement == "zero":
        return [{name: torch.zeros_like(x) for name, x in layer.items()} for layer in own]
    if giver.means is not None:
        return taken_from(own, giver.means, places)
    of = giver.prompts[giver.fact[batch.numbers]]
    theirs = only(batch.runs.run(of, names), names)
    return taken_from(own, theirs, same_place(places, of.places))


def spread_of_names(model: torch.nn.Module, facts: FactSet) -> float:
    """Standard deviation of the embeddings of all name tokens."""
    named = torch.tensor(name_roles(facts), dtype=facts.roles.dtype)
    tokens = facts.clean[torch.isin(facts.roles, named)].unique()
    weight = embedding_of(model)
    return float(weight[tokens.to(weight.device)].detach().std())


def mean_cache(
    runs: Recompute | HookedRuns | GradientEstimates,
    given: Prompts,
    chunks: list[np.ndarray],
    names: set[str],
    n_places: int,
) -> ActivationCache:
    """Each activation's mean over all tokens of a role or position, with axes (1, place, ...); 0
    for a place that no fact has.
    """
    sums, counts = [{} for _ in range(runs.cfg.n_layers)], torch.zeros(n_places)
    for chunk in chunks:
        some = given[chunk]
        there = some.places >= 0
        places = some.places[there]
        counts = counts.to(places.device) + torch.bincount(places, minlength=n_places)
        for of_layer, layer in zip(sums, only(runs.run(some, names), names)):
            for name, x in layer.items():
                table = x.new_zeros(n_places, *x.shape[2:], dtype=torch.float64)
                table.index_add_(0, places, x[there].double())
                of_layer[name] = table + of_layer.get(name, 0)
    counts = counts.clamp(min=1)
    return [
        {
            name: (table / counts.reshape(-1, *[1] * (table.ndim - 1)))[None].to(x.dtype)
            for name, table in of_layer.items()
        }
        for of_layer in sums
    ]
