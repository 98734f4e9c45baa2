"""Activation patching and its relatives (Vig et al. 2020, https://arxiv.org/abs/2004.12265; Meng et
al. 2022, https://arxiv.org/abs/2202.05262; Geva et al. 2023, https://arxiv.org/abs/2304.14767).

denoising: corrupted run ← clean activation, what is enough to restore the answer; noising: clean
run ← corrupted activation, what is needed to keep it. Metrics, all positive towards the clean
answer: ``logit_diff`` = logit(first token of the clean answer) − logit(first token of the corrupted
answer), in nats, at ``final``; ``first_logprob`` and ``value_logprob`` = ln p of the clean answer's
first token, and of all its tokens given the ones before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Bool, Float

from interp.config import (
    DEFAULT_SITES,
    HEAD_SITES,
    METRICS,
    SITES,
    By,
    Direction,
    Replacement,
    check_choice,
)
from interp.facts import NO_TOKEN, PROMPT_ROLES, FactSet, role_masks
from interp.model import DecoderConfig, HookedDecoder
from interp.patching.cells import EDGES, Cells
from interp.patching.engine import Engine
from interp.patching.runs import Prompts, Run, prompts, role_means, same_place, taken_from

FACT_COORDS = (
    "person",
    "corrupted_person",
    "attribute",
    "clean_prompt",
    "corrupted_prompt",
    "answer",
    "corrupted_answer",
)
NAME_ROLES = [PROMPT_ROLES.index(role) for role in PROMPT_ROLES if role.startswith("name")]


@dataclass(frozen=True)
class Intervention:
    """How activations are changed; with sites and facts it is a sweep."""

    by: By = "role"
    """A cell is all tokens of a role, or one position."""
    direction: Direction = "denoising"
    replacement: Replacement = "run"
    """What is pasted. run: the other prompt's run. noise: the other run is the clean prompt with
    Gaussian noise on the embeddings of its name tokens. mean, zero, resample (noising only): the
    mean over all facts' tokens of the role; 0; another fact's token of the role.
    """
    window: int = 1
    """Layers changed together: from layer − window // 2 on, as far as there are."""
    n_neurons: int = 16
    """Neurons a group of ``mlp_post``."""
    noise_std: float = 3.0
    """In standard deviations of the name tokens' embeddings (Meng et al. 2022)."""
    noise_draws: int = 5
    """Results are averages over so many draws of noise."""
    seed: int = 0
    """Of noise and resampling."""
    whole_value: bool = True
    """Score the whole value too; without, only its first token, and the sweep is shorter."""

    def __post_init__(self) -> None:
        check_choice("direction", self.direction, Direction)
        check_choice("replacement", self.replacement, Replacement)
        check_choice("grouping", self.by, By)
        for name in ("window", "n_neurons", "noise_std", "noise_draws"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        if self.replacement in ("mean", "zero", "resample") and self.direction != "noising":
            raise ValueError(f"{self.replacement!r} changes the clean run; use direction noising")


def patch(
    model: HookedDecoder, facts: FactSet, *, site: str, max_memory: float = 2.0, **options
) -> xr.Dataset:
    """Every cell of one ``site`` changed, one at a time, on each fact.

    Args:
        max_memory: gigabytes (10⁹ bytes) that the two runs and a batch of rows may take; mean and
            resample keep more runs.
        options: the fields of ``Intervention``.

    Returns:
        ``patched`` (layer, head where the site has them, role or pos, fact), ``clean`` (fact) and
        ``corrupted`` (fact): logit_diff, nats; and the same three with ``_first_logprob`` and
        ``_value_logprob`` after their names. NaN: the fact has no such position. ``mlp_post`` has
        ``neuron``, the first of each group, for ``head``; ``edge`` and ``knockout`` have ``dest``
        and ``src`` for role or pos. Attribute ``flops``: floating-point operations of the matrix
        products, of all sites together.

    Raises:
        ValueError: unknown site or option, a site this model lacks, prompts of several lengths with
            ``by="pos"``, hooks left on the model.
    """
    return patch_sites(model, facts, sites=[site], max_memory=max_memory, **options)[site]


def patch_sites(
    model: HookedDecoder,
    facts: FactSet,
    *,
    sites: Sequence[str],
    max_memory: float = 2.0,
    **options,
) -> dict[str, xr.Dataset]:
    """``patch`` for several sites at once, which share their runs and their batches."""
    how = Intervention(**options)
    sites = check_sites(sites, parallel=model.cfg.parallel)
    _check_fit(model, sites, how)
    if not how.whole_value:
        facts = replace(facts, answers=facts.answers[:, :1])
    cells, labels, may_differ = cells_of(facts, how)
    chunks = _chunks(model, facts, max_memory, "mlp_post" in sites)
    means = _means(model, facts, chunks, "mlp_post" in sites) if how.replacement == "mean" else None
    givers = _givers(len(facts), how.seed) if how.replacement == "resample" else None
    patched = {site: [] for site in sites}
    clean, corrupted, flops = [], [], 0
    for chunk in chunks:
        part = facts[chunk]
        positions = cells.positions[:, chunk]
        here = replace(cells, positions=positions, sources=positions)
        swept = _Swept(model, part, how, sites, here, may_differ[chunk], max_memory / 2 * 1e9)
        giver = facts[givers[chunk]] if givers is not None else None
        for site, values in swept.results(chunk, means, giver).items():
            patched[site].append(values)
        clean.append(swept.clean)
        corrupted.append(swept.corrupted)
        flops += swept.engine.flops
    ends = {"clean": np.concatenate(clean, -1), "corrupted": np.concatenate(corrupted, -1)}
    return {
        site: _dataset(
            site, how, labels, np.concatenate(patched[site], -1), ends, facts
        ).assign_attrs(flops=float(flops))
        for site in sites
    }


def check_sites(sites: Sequence[str], *, parallel: bool = False) -> list[str]:
    """``sites`` as a list; none are the usual ones that the model has.

    Raises:
        ValueError: one is unknown, or a model with parallel blocks lacks it.
    """
    for site in sites:
        if site not in SITES:
            raise ValueError(f"no site {site!r}; there are {', '.join(SITES)}")
        if site == "resid_mid" and parallel:
            raise ValueError(
                "no site 'resid_mid' in a model whose attention and MLP run in parallel; leave "
                "it out"
            )
    if not sites:
        return [site for site in DEFAULT_SITES if not (parallel and site == "resid_mid")]
    return list(dict.fromkeys(sites))


def _check_fit(model: HookedDecoder, sites: list[str], how: Intervention) -> None:
    if any(hook.has_hooks() for hook in model.hook_points()):
        raise ValueError(
            "the model has hooks, which patching would not run; take them off with "
            "model.reset_hooks()"
        )
    if "mlp_post" in sites and model.cfg.d_mlp % how.n_neurons:
        raise ValueError(
            f"n_neurons is {how.n_neurons}, which doesn't divide the {model.cfg.d_mlp} neurons of "
            "an MLP; choose a divisor"
        )
    if "knockout" in sites and how.direction != "noising":
        raise ValueError("a knockout changes the clean run; use direction noising")
    for site in sites:
        if site in ("pattern", "edge") and how.replacement in ("mean", "resample"):
            raise ValueError(
                f"site {site!r} of different prompts can't be compared; use replacement run, "
                "noise or zero"
            )


def n_parts(site: str, cfg: DecoderConfig, how: Intervention) -> int:
    """Heads, or groups of neurons, that are changed one at a time."""
    if site == "mlp_post":
        return cfg.d_mlp // how.n_neurons
    return cfg.n_heads if site in HEAD_SITES else 1


def cells_of(facts: FactSet, how: Intervention) -> tuple[Cells, list, Bool[np.ndarray, "fact pos"]]:
    """The cells of an intervention, the labels of their positions, and where the two runs may
    differ: from the first token on in which their inputs do.
    """
    labels, groups = _groups(facts, how.by)
    n_value = (facts.answers != NO_TOKEN).sum(1)
    n_pos = int((facts.lengths + n_value).max()) - 1
    positions = np.zeros((*groups.shape[:2], n_pos), bool)
    n = min(n_pos, groups.shape[2])
    positions[..., :n] = groups[..., :n]
    differs = torch.ones_like(facts.clean, dtype=torch.bool)
    if how.replacement == "run":
        differs = facts.clean != facts.corrupted
    elif how.replacement == "noise":
        differs = torch.isin(facts.roles, torch.tensor(NAME_ROLES))
    may_differ = np.zeros((len(facts), n_pos), bool)
    may_differ[:, :n] = differs.numpy()[:, :n]
    may_differ = np.logical_or.accumulate(may_differ, 1)
    return Cells(positions, positions, how.window, how.n_neurons), labels, may_differ


class _Swept:
    """One batch of facts, changed cell by cell."""

    def __init__(
        self,
        model: HookedDecoder,
        facts: FactSet,
        how: Intervention,
        sites: list[str],
        cells: Cells,
        may_differ: Bool[np.ndarray, "fact pos"],
        max_bytes: float,
    ) -> None:
        self.model, self.facts, self.how, self.sites = model, facts, how, sites
        self.max_bytes = max_bytes
        self.clean_prompts, self.corrupted_prompts = prompts(facts, model.embed.weight.device)
        self.engine = Engine(model, self.clean_prompts)
        n_pos = self.clean_prompts.tokens.shape[1]
        positions = cells.positions[..., :n_pos]
        self.cells = replace(cells, positions=positions, sources=positions)
        self.may_differ = may_differ[:, :n_pos]

    def results(
        self, chunk: np.ndarray, means: Run | None, giver: FactSet | None
    ) -> dict[str, Float[np.ndarray, "metric layer part group source fact"]]:
        """Metrics of every cell by site; sets those of the two ends, too."""
        clean_run = self._run(self.clean_prompts)
        self.clean = self.engine.scores_of(clean_run)
        if self.how.replacement != "noise":
            corrupted_run = self._run(self.corrupted_prompts)
            self.corrupted = self.engine.scores_of(corrupted_run)
            other = self._replacement(clean_run, corrupted_run, means, giver)
            return self._between(clean_run, other, self.may_differ)
        draws = []
        for draw in range(self.how.noise_draws):
            noised = replace(self.clean_prompts, noise=self._noise(chunk, draw))
            run = self._run(noised)
            scores = self.engine.scores_of(run)
            draws.append((scores, self._between(clean_run, run, self.may_differ)))
        self.corrupted = np.mean([scores for scores, _ in draws], 0)
        return {site: np.mean([values[site] for _, values in draws], 0) for site in self.sites}

    def _run(self, given: Prompts) -> Run:
        return self.engine.run(given, keep_neurons="mlp_post" in self.sites)

    def _between(
        self, clean: Run, other: Run, may_differ: Bool[np.ndarray, "fact pos"]
    ) -> dict[str, np.ndarray]:
        base, source = (other, clean) if self.how.direction == "denoising" else (clean, other)
        unpatched = self.engine.scores_of(base)
        patched = {site: self._unpatched(site, unpatched) for site in self.sites}
        sweep = self.engine.sweep(
            self.sites, self.cells, base, source, may_differ, max_bytes=self.max_bytes
        )
        for rows, scores in sweep:
            for site in np.unique(rows.site):
                at = rows.site == site
                place = (rows.layer, rows.part, rows.group, rows.source, rows.fact)
                patched[site][:, *(column[at] for column in place)] = scores[:, at]
        return patched

    def _unpatched(self, site: str, scores: Float[np.ndarray, "metric fact"]) -> np.ndarray:
        """The base run's metrics in every cell that a fact has, NaN elsewhere."""
        cfg, has = self.model.cfg, self.cells.positions.any(2)
        there = has[:, None]
        if site in EDGES:
            first = np.where(has, self.cells.positions.argmax(2), self.cells.positions.shape[2])
            last = self.cells.positions.shape[2] - 1 - self.cells.positions[:, :, ::-1].argmax(2)
            there = there & has & (first[None] <= last[:, None])
        n_layers = 1 if site == "embed" else cfg.n_layers
        values = np.where(there, scores[:, None, None], np.float32(np.nan))
        shape = (len(scores), n_layers, n_parts(site, cfg, self.how), *values.shape[1:])
        return np.broadcast_to(values[:, None, None], shape).astype(np.float32)

    def _noise(self, chunk: np.ndarray, draw: int) -> Float[torch.Tensor, "fact pos d_model"]:
        given = self.clean_prompts
        named = torch.isin(given.roles, torch.tensor(NAME_ROLES, device=given.roles.device))
        weight = self.model.embed.weight
        std = self.how.noise_std * weight[given.tokens[named].unique()].std()
        shape = (given.tokens.shape[1], weight.shape[1])
        noise = [
            np.random.default_rng([self.how.seed, 5, draw, int(fact)]).standard_normal(shape)
            for fact in chunk
        ]
        noise = torch.from_numpy(np.stack(noise)).to(weight) * std * named[..., None]
        return noise.detach()

    def _replacement(
        self, clean: Run, corrupted: Run, means: Run | None, giver: FactSet | None
    ) -> Run:
        if self.how.replacement == "run":
            return corrupted
        if self.how.replacement == "zero":
            return [layer.map(torch.zeros_like) for layer in clean]
        engine, roles = self.engine, self.clean_prompts.roles
        plain = engine.turned(clean, back=True)
        if means is not None:
            return engine.turned(taken_from(plain, means, roles))
        given, _ = prompts(giver, roles.device)
        other = Engine(self.model, given)
        theirs = other.turned(other.run(given, keep_neurons="mlp_post" in self.sites), back=True)
        return engine.turned(taken_from(plain, theirs, same_place(roles, given.roles)))


def _chunks(
    model: HookedDecoder, facts: FactSet, max_memory: float, keep_neurons: bool
) -> list[np.ndarray]:
    """Facts in batches whose runs fit into half of the memory."""
    cfg, n_pos = model.cfg, facts.clean.shape[1] + facts.answers.shape[1]
    token = 9 * cfg.d_model + (cfg.d_mlp if keep_neurons else 0)
    one = 2 * cfg.n_layers * n_pos * token * model.embed.weight.element_size()
    size = max(1, int(max_memory * 1e9 / 2 // one))
    return np.split(np.arange(len(facts)), range(size, len(facts), size))


def _means(
    model: HookedDecoder, facts: FactSet, chunks: list[np.ndarray], keep_neurons: bool
) -> Run:
    runs = []
    for chunk in chunks:
        given: Prompts = prompts(facts[chunk], model.embed.weight.device)[0]
        engine = Engine(model, given)
        runs.append(
            (engine.turned(engine.run(given, keep_neurons=keep_neurons), back=True), given.roles)
        )
    return role_means(runs)


def _givers(n: int, seed: int) -> np.ndarray:
    """Another fact for each fact, in a random circle."""
    order = np.random.default_rng([seed, 6]).permutation(n)
    givers = np.empty(n, int)
    givers[order] = np.roll(order, 1)
    return givers


def _groups(facts: FactSet, by: By) -> tuple[list, Bool[np.ndarray, "group fact pos"]]:
    if by == "role":
        masks = role_masks(facts).numpy()
        present = masks.any((1, 2))
        return [role for role, there in zip(PROMPT_ROLES, present) if there], masks[present]
    if len(lengths := facts.lengths.unique().tolist()) > 1:
        raise ValueError(
            f"by='pos' needs prompts of one length, got {min(lengths)} to {max(lengths)} tokens; "
            f"draw them with suite.facts(..., length={facts.lengths.mode().values}), or patch "
            "by='role'"
        )
    n = lengths[0]
    return list(range(n)), np.broadcast_to(np.eye(n, dtype=bool)[:, None], (n, len(facts), n))


def _dataset(
    site: str,
    how: Intervention,
    labels: list,
    patched: Float[np.ndarray, "metric layer part group source fact"],
    ends: dict[str, np.ndarray],
    facts: FactSet,
) -> xr.Dataset:
    part = "head" if site in HEAD_SITES else "neuron" if site == "mlp_post" else None
    group = ("dest", "src") if site in EDGES else (how.by,)
    dims = ("layer", *([part] if part else []), *group, "fact")
    axes = tuple(i for i, there in ((2, part), (4, site in EDGES)) if not there)
    values = patched.squeeze(axes)
    variables = {}
    for i, metric in enumerate(METRICS if how.whole_value else METRICS[:2]):
        suffix = "" if metric == "logit_diff" else f"_{metric}"
        attrs = {"units": "nats", "metric": metric, "sign": "positive towards the clean answer"}
        variables[f"patched{suffix}"] = (dims, values[i], attrs)
        for end, scores in ends.items():
            variables[f"{end}{suffix}"] = ("fact", scores[i], attrs)
    coords = {"layer": _numbers(patched.shape[1])} | {name: labels for name in group}
    if part:
        step = how.n_neurons if part == "neuron" else 1
        coords[part] = _numbers(patched.shape[2]) * np.int32(step)
    coords |= {name: ("fact", _plain(facts.texts[name])) for name in FACT_COORDS}
    attrs = {"site": site, "by": how.by, "direction": how.direction}
    if how != Intervention(by=how.by, direction=how.direction):
        attrs |= {"replacement": how.replacement, "window": how.window}
    return xr.Dataset(variables, coords, attrs)


def _numbers(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int32)


def _plain(column: pd.Series) -> np.ndarray:
    """Integers in the 32 bits of a result file, texts as Python strings."""
    return column.to_numpy(dtype=np.int32 if column.dtype.kind in "iu" else object)
