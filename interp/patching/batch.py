"""One batch of facts, changed cell by cell."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from interp.data.facts import FactSet
from interp.model.decoder import HookedDecoder
from interp.model.model_check import check_finite
from interp.patching.activations import (
    PlaceSums,
    Prompts,
    Run,
    name_roles,
    prompts,
    same_place,
    taken_from,
)
from interp.patching.engine import Engine, check_same_logits
from interp.patching.grid import EDGES, Cells, Rows
from interp.patching.hooks import HookedEngine, embedding_of
from interp.patching.intervention import Intervention, kept_sites, n_parts
from interp.patching.path_patching import arrivals, is_path, parse_path

Results = dict[str, Float[np.ndarray, "metric layer part group source fact"]]
"""By site. Of a path the last stop's layer and part; ``source`` is the way up to it."""


def engine_of(model: torch.nn.Module, given: Prompts, max_bytes: float) -> Engine | HookedEngine:
    """The fast engine for a ``HookedDecoder``, hooks for any other hooked model."""
    if isinstance(model, HookedDecoder):
        return Engine(model, given)
    return HookedEngine(model, given, max_bytes)


class Batch:
    """Facts whose runs fit into memory together."""

    def __init__(
        self,
        model: torch.nn.Module,
        facts: FactSet,
        how: Intervention,
        sites: list[str],
        cells: Cells,
        may_differ: Bool[np.ndarray, "fact pos"],
        max_bytes: float,
        spread: float,
        control: Int[np.ndarray, "fact 2"] | None,
    ) -> None:
        self.model, self.how, self.sites, self.max_bytes = model, how, sites, max_bytes
        self.spread = spread
        self.kept = kept_sites(sites) | ({how.frozen} if how.frozen else set())
        device = next(model.parameters()).device
        self.clean_prompts, self.corrupted_prompts = prompts(facts, device, how.by)
        if control is not None:
            pair = torch.from_numpy(control).to(device)
            self.clean_prompts = replace(self.clean_prompts, control=pair)
        self.engine = engine_of(model, self.clean_prompts, max_bytes)
        n_pos = self.clean_prompts.tokens.shape[1]
        positions, sources = cells.positions[..., :n_pos], cells.sources[..., :n_pos]
        self.cells = replace(cells, positions=positions, sources=sources)
        self.may_differ = may_differ[:, :n_pos]

    def results(self, chunk: np.ndarray, means: Run | None, giver: FactSet | None) -> Results:
        """Metrics of every cell; sets those of the two ends, ``clean`` and ``corrupted``, too.

        Args:
            chunk: number of each fact among all of the sweep.
        """
        clean_run = self.engine.run(self.clean_prompts, self.kept)
        self.clean = self.engine.scores_of(clean_run)
        check_finite(self.clean[1:], chunk, "clean")
        if chunk[0] == 0 and isinstance(self.engine, Engine):
            check_same_logits(self.engine, clean_run)
        if self.how.replacement != "noise":
            self.corrupted, other = np.full_like(self.clean, np.nan), None
            if self.corrupted_prompts is not None:
                other = self.engine.run(self.corrupted_prompts, self.kept)
                self.corrupted = self.engine.scores_of(other)
                check_finite(self.corrupted[1:], chunk, "corrupted")
            if self.how.replacement != "run":
                del other
                other = self._ablated(clean_run, means, giver)
            return self._between(clean_run, other)
        draws = []
        for draw in range(self.how.noise_draws):
            noised = replace(self.clean_prompts, noise=self._noise(chunk, draw))
            run = self.engine.run(noised, self.kept)
            draws.append((self.engine.scores_of(run), self._between(clean_run, run)))
        self.corrupted = np.mean([scores for scores, _ in draws], 0)
        check_finite(self.corrupted[1:], chunk, "corrupted")
        return {site: np.mean([values[site] for _, values in draws], 0) for site in self.sites}

    def _between(self, clean: Run, other: Run) -> Results:
        base, source = (other, clean) if self.how.direction == "denoising" else (clean, other)
        unpatched = self.engine.scores_of(base)
        plain = [site for site in self.sites if not is_path(site)]
        patched = {site: self._unpatched(site, unpatched) for site in plain}
        if plain:
            sweep = self.engine.sweep(
                plain, self.cells, base, source, self.may_differ, max_bytes=self.max_bytes
            )
            for rows, scores in sweep:
                _check_patched(rows, scores)
                for site in np.unique(rows.site):
                    at = rows.site == site
                    place = (rows.layer, rows.part, rows.group, rows.source, rows.fact)
                    patched[site][:, *(column[at] for column in place)] = scores[:, at]
        for site in self.sites:
            if is_path(site):
                patched[site] = self._along_path(site, base, source, unpatched)
        return patched

    def _unpatched(self, site: str, scores: Float[np.ndarray, "metric fact"]) -> np.ndarray:
        """The base run's metrics in every cell that a fact has, NaN elsewhere."""
        cfg, has = self.model.cfg, self.cells.positions.any(2)
        there = has[:, None]
        if site in EDGES:
            sources = self.cells.sources
            of_source = sources.any(2)
            first = np.where(of_source, sources.argmax(2), sources.shape[2])
            last = self.cells.positions.shape[2] - 1 - self.cells.positions[:, :, ::-1].argmax(2)
            there = there & of_source & ((not self.cells.causal) | (first[None] <= last[:, None]))
        n_layers = 1 if site == "embed" else cfg.n_layers
        values = np.where(there, scores[:, None, None], np.float32(np.nan))
        shape = (len(scores), n_layers, n_parts(site, cfg, self.how), *values.shape[1:])
        return np.broadcast_to(values[:, None, None], shape).astype(np.float32)

    @torch.inference_mode()
    def _along_path(
        self, path: str, base: Run, source: Run, unpatched: Float[np.ndarray, "metric fact"]
    ) -> np.ndarray:
        """Metrics of every cell of a path; NaN where its stops are not in order."""
        stops, cfg = parse_path(path), self.model.cfg
        choices = [
            choice
            for stop in stops
            for choice in (stop.layers(cfg), stop.parts(cfg, self.cells.n_neurons))
        ]
        *before, layers, parts = choices
        sizes = [len(choice) for choice in before]
        has = self.cells.positions.any(2)
        shape = (len(unpatched), len(layers), len(parts), len(has), int(np.prod(sizes)))
        patched = np.full((*shape, has.shape[1]), np.nan, np.float32)
        there = np.where(has, unpatched[:, None], np.float32(np.nan))
        last = "resid_post" if stops[-1].site == "logits" else stops[-1].site
        layer_at = np.zeros(cfg.n_layers, int)
        if last != "resid_post":
            layer_at[layers] = np.arange(len(layers))
        for way in arrivals(self.engine, stops, base, source, self.cells):
            place = [choice.index(at) for choice, at in zip(before, way.place)]
            number = int(np.ravel_multi_index(place, sizes))
            groups = slice(None) if way.group is None else way.group
            for layer in layer_at[way.layers]:
                patched[:, layer, :, groups, number] = there[:, groups][:, None]
            sweep = self.engine.sweep(
                [last], way.cells, base, way.source, self.may_differ, max_bytes=self.max_bytes
            )
            for rows, scores in sweep:
                _check_patched(rows, scores)
                group = rows.group if way.group is None else np.full(len(rows), way.group)
                part = np.searchsorted(parts, rows.part)
                patched[:, layer_at[rows.layer], part, group, number, rows.fact] = scores
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

    def _ablated(self, clean: Run, means: Run | None, giver: FactSet | None) -> Run:
        """What is pasted instead of a fact's own activations."""
        engine, places = self.engine, self.clean_prompts.places
        if self.how.replacement == "zero":
            pattern = torch.zeros(*places.shape, self.model.cfg.n_heads, places.shape[1])
            pattern = pattern.to(clean[0].resid_pre)
            return [replace(layer.map(torch.zeros_like), pattern=pattern) for layer in clean]
        plain = engine.turned(clean, back=True)
        if means is not None:
            return engine.turned(taken_from(plain, means, places))
        given, _ = prompts(giver, places.device, self.how.by)
        other = engine_of(self.model, given, self.max_bytes)
        theirs = other.turned(other.run(given, self.kept), back=True)
        return engine.turned(taken_from(plain, theirs, same_place(places, given.places)))


def _check_patched(rows: Rows, scores: Float[np.ndarray, "metric row"]) -> None:
    """Raises a ValueError where a change made log-probabilities that are not finite, since NaN
    stands for cells that a fact does not have.
    """
    for row in np.flatnonzero(~np.isfinite(scores[1:3]).all(0))[:1]:
        raise ValueError(
            f"patching {rows.site[row]} at layer {rows.layer[row]} makes logits that are not "
            "finite; patch in fp32, or leave that layer out"
        )


def spread_of_names(model: torch.nn.Module, facts: FactSet) -> float:
    """Standard deviation of the embeddings of all name tokens."""
    named = torch.tensor(name_roles(facts), dtype=facts.roles.dtype)
    tokens = facts.clean[torch.isin(facts.roles, named)].unique()
    weight = embedding_of(model)
    return float(weight[tokens.to(weight.device)].detach().std())


def mean_run(
    model: torch.nn.Module,
    facts: FactSet,
    chunks: list[np.ndarray],
    sites: list[str],
    how: Intervention,
    max_bytes: float,
) -> Run:
    """Every role's or position's mean over all facts, as a run with an axis (1, place)."""
    n_places = len(facts.role_names) if how.by == "role" else facts.clean.shape[1]
    sums, device = PlaceSums(n_places), next(model.parameters()).device
    for chunk in chunks:
        given = prompts(facts[chunk], device, how.by)[0]
        engine = engine_of(model, given, max_bytes)
        sums.add(engine.turned(engine.run(given, kept_sites(sites)), back=True), given.places)
    return sums.means()
