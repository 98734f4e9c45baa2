"""One batch of facts, patched at every cell of the patch grid."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from interp.data.facts import FactSet
from interp.model.model_check import check_finite
from interp.patching.activations import (
    ActivationCache,
    PlaceSums,
    Prompts,
    name_roles,
    only,
    prompts,
    same_place,
    taken_from,
)
from interp.patching.grid import PatchGrid, WorkItems
from interp.patching.hooks import HookedRuns, embedding_of
from interp.patching.intervention import Intervention, starts_of
from interp.patching.packed_weights import PackedModel
from interp.patching.path_patching import arrivals, is_path, parse_path
from interp.patching.recompute import Recompute, check_same_logits
from interp.patching.sites import SITES, activations_of

Results = dict[str, Float[np.ndarray, "metric layer part group source fact"]]
"""By site. Of a path the last stop's layer and part; ``source`` is the way up to it."""


def runs_on(
    model: torch.nn.Module, weights: PackedModel | None, given: Prompts, max_bytes: float
) -> Recompute | HookedRuns:
    """Recomputation for a ``HookedDecoder``, whose ``weights`` are given, or hooks for any other
    model.
    """
    return HookedRuns(model, given, max_bytes) if weights is None else Recompute(weights, given)


class Batch:
    """Facts whose activation caches fit into memory together."""

    def __init__(
        self,
        model: torch.nn.Module,
        weights: PackedModel | None,
        facts: FactSet,
        how: Intervention,
        sites: list[str],
        grid: PatchGrid,
        may_differ: Bool[np.ndarray, "fact pos"],
        max_bytes: float,
        spread: float,
        control: Int[np.ndarray, "fact 2"] | None,
    ) -> None:
        self.model, self.weights, self.how, self.sites = model, weights, how, sites
        self.max_bytes, self.spread = max_bytes, spread
        self.pasted = activations_of(starts_of(sites))
        self.kept = self.pasted | ({how.frozen} if how.frozen else set())
        device = next(model.parameters()).device
        self.clean_prompts, self.corrupted_prompts = prompts(facts, device, how.by)
        if control is not None:
            pair = torch.from_numpy(control).to(device)
            self.clean_prompts = replace(self.clean_prompts, control=pair)
        self.runs = runs_on(model, weights, self.clean_prompts, max_bytes)
        n_pos = self.clean_prompts.tokens.shape[1]
        positions, sources = grid.positions[..., :n_pos], grid.sources[..., :n_pos]
        self.grid = replace(grid, positions=positions, sources=sources)
        self.may_differ = may_differ[:, :n_pos]

    def results(
        self, chunk: np.ndarray, means: ActivationCache | None, giver: FactSet | None
    ) -> Results:
        """Metrics of every cell; also sets those of the unpatched runs, ``clean`` and
        ``corrupted``.

        Args:
            chunk: number of each fact among all of the sweep.
        """
        clean_run = self.runs.run(self.clean_prompts, self.kept)
        self.clean = self.runs.scores_of(clean_run)
        check_finite(self.clean[1:], chunk, "clean")
        if chunk[0] == 0 and self.weights is not None:
            check_same_logits(self.model, self.runs, clean_run)
        if self.how.replacement != "noise":
            self.corrupted, other = np.full_like(self.clean, np.nan), None
            if self.corrupted_prompts is not None:
                other = self.runs.run(self.corrupted_prompts, self.kept)
                self.corrupted = self.runs.scores_of(other)
                check_finite(self.corrupted[1:], chunk, "corrupted")
            if self.how.replacement != "run":
                del other
                other = self._ablated(clean_run, means, giver)
            return self._between(clean_run, other)
        draws = []
        for draw in range(self.how.noise_draws):
            noised = replace(self.clean_prompts, noise=self._noise(chunk, draw))
            run = self.runs.run(noised, self.kept)
            draws.append((self.runs.scores_of(run), self._between(clean_run, run)))
        self.corrupted = np.mean([scores for scores, _ in draws], 0)
        check_finite(self.corrupted[1:], chunk, "corrupted")
        return {site: np.mean([values[site] for _, values in draws], 0) for site in self.sites}

    def _between(self, clean: ActivationCache, other: ActivationCache) -> Results:
        base, source = (other, clean) if self.how.direction == "denoising" else (clean, other)
        unpatched = self.runs.scores_of(base)
        plain = [site for site in self.sites if not is_path(site)]
        patched = {site: self._unpatched(site, unpatched) for site in plain}
        if plain:
            sweep = self.runs.sweep(
                plain, self.grid, base, source, self.may_differ, max_bytes=self.max_bytes
            )
            for items, scores in sweep:
                _check_patched(items, scores)
                for site in np.unique(items.site):
                    at = items.site == site
                    place = (items.layer, items.part, items.group, items.source, items.fact)
                    patched[site][:, *(column[at] for column in place)] = scores[:, at]
        for site in self.sites:
            if is_path(site):
                patched[site] = self._along_path(site, base, source, unpatched)
        return patched

    def _unpatched(self, site: str, scores: Float[np.ndarray, "metric fact"]) -> np.ndarray:
        """The base run's metrics in every cell that a fact has, NaN elsewhere."""
        cfg, has = self.model.cfg, self.grid.positions.any(2)
        there = has[:, None]
        if SITES[site].is_edge:
            sources = self.grid.sources
            of_source = sources.any(2)
            first = np.where(of_source, sources.argmax(2), sources.shape[2])
            last = self.grid.positions.shape[2] - 1 - self.grid.positions[:, :, ::-1].argmax(2)
            there = there & of_source & ((not self.grid.causal) | (first[None] <= last[:, None]))
        n_layers = cfg.n_layers if SITES[site].has_layers else 1
        values = np.where(there, scores[:, None, None], np.float32(np.nan))
        shape = (
            len(scores),
            n_layers,
            SITES[site].n_parts(cfg, self.how.n_neurons),
            *values.shape[1:],
        )
        return np.broadcast_to(values[:, None, None], shape).astype(np.float32)

    @torch.inference_mode()
    def _along_path(
        self,
        path: str,
        base: ActivationCache,
        source: ActivationCache,
        unpatched: Float[np.ndarray, "metric fact"],
    ) -> np.ndarray:
        """Metrics of every cell of a path; NaN where its stops are not in order."""
        stops, cfg = parse_path(path), self.model.cfg
        choices = [
            choice
            for stop in stops
            for choice in (stop.layers(cfg), stop.parts(cfg, self.grid.n_neurons))
        ]
        *before, layers, parts = choices
        sizes = [len(choice) for choice in before]
        has = self.grid.positions.any(2)
        shape = (len(unpatched), len(layers), len(parts), len(has), int(np.prod(sizes)))
        patched = np.full((*shape, has.shape[1]), np.nan, np.float32)
        there = np.where(has, unpatched[:, None], np.float32(np.nan))
        last = stops[-1].patched
        layer_at = np.zeros(cfg.n_layers, int)
        if stops[-1].has_layers:
            layer_at[layers] = np.arange(len(layers))
        for way in arrivals(self.weights, stops, base, source, self.grid):
            place = [choice.index(at) for choice, at in zip(before, way.place)]
            number = int(np.ravel_multi_index(place, sizes))
            groups = slice(None) if way.group is None else way.group
            for layer in layer_at[way.layers]:
                patched[:, layer, :, groups, number] = there[:, groups][:, None]
            sweep = self.runs.sweep(
                [last], way.grid, base, way.source, self.may_differ, max_bytes=self.max_bytes
            )
            for items, scores in sweep:
                _check_patched(items, scores)
                group = items.group if way.group is None else np.full(len(items), way.group)
                part = np.searchsorted(parts, items.part)
                patched[:, layer_at[items.layer], part, group, number, items.fact] = scores
        return patched

    def _noise(self, chunk: np.ndarray, draw: int) -> Float[torch.Tensor, "fact pos d_model"]:
        given, weight = self.clean_prompts, embedding_of(self.model)
        shape = (given.tokens.shape[1], weight.shape[1])
        noise = [
            np.random.default_rng([self.how.seed, 5, draw, int(fact)]).standard_normal(shape)
            for fact in chunk
        ]
        noise = torch.from_numpy(np.stack(noise)).to(weight) * self.how.noise_std * self.spread
        return (noise * given.named[..., None]).detach()

    def _ablated(
        self, clean: ActivationCache, means: ActivationCache | None, giver: FactSet | None
    ) -> ActivationCache:
        """The activations that replace a fact's own in an ablation."""
        own, places = only(clean, self.pasted), self.clean_prompts.places
        if self.how.replacement == "zero":
            return [{name: torch.zeros_like(x) for name, x in layer.items()} for layer in own]
        if means is not None:
            return taken_from(own, means, places)
        given, _ = prompts(giver, places.device, self.how.by)
        runs = runs_on(self.model, self.weights, given, self.max_bytes)
        theirs = only(runs.run(given, self.pasted), self.pasted)
        return taken_from(own, theirs, same_place(places, given.places))


def _check_patched(items: WorkItems, scores: Float[np.ndarray, "metric item"]) -> None:
    """Raises a ValueError where a patch made log-probabilities that are not finite, because NaN
    stands for cells that a fact does not have.
    """
    for i in np.flatnonzero(~np.isfinite(scores[1:3]).all(0))[:1]:
        raise ValueError(
            f"patching {items.site[i]} at layer {items.layer[i]} makes logits that are not "
            "finite; patch in fp32, or leave that layer out"
        )


def spread_of_names(model: torch.nn.Module, facts: FactSet) -> float:
    """Standard deviation of the embeddings of all name tokens."""
    named = torch.tensor(name_roles(facts), dtype=facts.roles.dtype)
    tokens = facts.clean[torch.isin(facts.roles, named)].unique()
    weight = embedding_of(model)
    return float(weight[tokens.to(weight.device)].detach().std())


def mean_cache(
    model: torch.nn.Module,
    weights: PackedModel | None,
    facts: FactSet,
    chunks: list[np.ndarray],
    sites: list[str],
    how: Intervention,
    max_bytes: float,
) -> ActivationCache:
    """Mean activations of every role or position over all facts, with axes (1, place, ...)."""
    n_places = len(facts.role_names) if how.by == "role" else facts.clean.shape[1]
    sums, device = PlaceSums(n_places), next(model.parameters()).device
    names = activations_of(starts_of(sites))
    for chunk in chunks:
        given = prompts(facts[chunk], device, how.by)[0]
        cache = runs_on(model, weights, given, max_bytes).run(given, names)
        sums.add(only(cache, names), given.places)
    return sums.means()
