"""Activation patching and its relatives (Vig et al. 2020, https://arxiv.org/abs/2004.12265; Meng et
al. 2022, https://arxiv.org/abs/2202.05262; Geva et al. 2023, https://arxiv.org/abs/2304.14767).

denoising: corrupted run ← clean activation, which shows what suffices to restore the answer;
noising: clean run ← corrupted activation, which shows what is needed to keep it.

Metrics, all positive towards the clean answer: ``logit_diff`` = logit(first token of the clean
answer) − logit(first token of the corrupted answer), in nats, at ``final``; ``first_logprob`` and
``value_logprob`` = ln p of the clean answer's first token, and of all its tokens given the ones
before.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import nn

from interp.config import CONTROL, METRICS, OWN_METRIC
from interp.data.facts import TEXT_COLUMNS, FactSet, check_vocabulary
from interp.fields import argument, shortened
from interp.model.decoder import HookedDecoder
from interp.model.flop_count import count_flops
from interp.model.gpu import free_bytes
from interp.model.model_check import check_model, check_plain
from interp.patching.activations import Metric, Prompts, prompts
from interp.patching.attribution_patching import GradientEstimates
from interp.patching.batch import (
    Batch,
    Giver,
    Results,
    Scores,
    base_runs,
    mean_cache,
    patch_batch,
    spread_of_names,
)
from interp.patching.grid import PatchGrid, Shape
from interp.patching.hooks import HookedRuns, check_hooks, reach
from interp.patching.intervention import (
    Intervention,
    axes_of,
    check_sites,
    intervention,
    memory_chunks,
    piece_bytes,
    prepared,
    starts_of,
)
from interp.patching.packed_weights import pack
from interp.patching.path_patching import is_path
from interp.patching.recompute import Recompute
from interp.patching.sites import SITES, activations_of, default_sites


def patch(
    model: nn.Module,
    facts: FactSet,
    *,
    site: str,
    max_memory: float = 2.0,
    metric: Metric | None = None,
    **options,
) -> xr.Dataset:
    """Metrics with every cell of one ``site`` changed, one at a time, on each fact.

    Args:
        model: a ``HookedDecoder``; or, slower, any ``HookedRootModule`` or ``TransformerBridge``
            with TransformerLens's hook names.
        site: one of ``sites.SITES``, or a path (see ``path_patching``) such as
            ``z-logits`` or ``L0H2.z-q``.
        max_memory: gigabytes (10⁹ bytes) that activations may take; on a GPU at most what is free.
        metric: a metric of your own, scored beside the others, with method exact: a function of
            logits (row, d_vocab) at the answer position (the one that predicts the first token of
            the answer), in fp32 on the model's device, and of the number of each row's fact in
            ``facts`` (row), which returns a finite number a row. A row is one patch of one fact,
            or a fact's unpatched run. It is called many times, for some rows each, from several
            threads, so it may depend on its arguments only.
        options: the fields of ``Intervention``.

    Returns:
        ``patched`` (layer, head where the site has them, role or pos, fact), ``clean`` (fact) and
        ``corrupted`` (fact): logit_diff, nats; and the same three with ``_first_logprob`` and
        ``_value_logprob`` after their names, and with ``_own_metric`` where a ``metric`` is given.
        NaN: the fact has no such position, or a path's stops are not in order; ``corrupted`` where
        facts without corrupted prompts are ablated; ``logit_diff`` of facts without corrupted
        answers. ``mlp_post`` has ``neuron``, the first of each group, for ``head``; ``edge`` and
        ``knockout`` have ``dest`` and ``src`` for role or pos; the second stop of a path has
        ``layer_1`` and ``head_1``, the third ``layer_2``, ...
        Attributes: ``intervention``, all options as JSON; and for a ``HookedDecoder`` ``flops``,
        floating-point operations of the matrix products of all sites together.

    Raises:
        ValueError: unknown site or option, a site this model lacks, prompts of several lengths with
            ``by="pos"``, hooks left on the model, facts that lack corrupted prompts, roles or
            tokens that are needed, logits that are not finite.
        RuntimeError: a patch that could change the result was not applied.
    """
    found = patch_sites(model, facts, sites=[site], max_memory=max_memory, metric=metric, **options)
    return found[site]


def patch_sites(
    model: nn.Module,
    facts: FactSet,
    *,
    sites: Sequence[str],
    max_memory: float = 2.0,
    metric: Metric | None = None,
    **options,
) -> dict[str, xr.Dataset]:
    """``patch`` for several sites at once, which share runs and batches."""
    asked = [{"sites": sites, **options}]
    return patch_together(model, facts, asked, max_memory=max_memory, metric=metric)[0]


def patch_together(
    model: nn.Module,
    facts: FactSet,
    asked: Sequence[dict[str, Any]],
    *,
    max_memory: float = 2.0,
    metric: Metric | None = None,
) -> list[dict[str, xr.Dataset]]:
    """``patch_sites`` with each of ``asked``, its keyword arguments. The clean and the corrupted
    run are computed once for all; ``flops`` of each includes them.

    Raises:
        ValueError: as ``patch``; several sweeps are estimated, or scored in different ways.
    """
    argument("facts", facts, FactSet)
    max_memory = argument("max_memory", max_memory, float, above=0)
    sweeps, facts = _prepared(model, facts, asked)
    _check_metric(metric, sweeps)
    how, cfg, weight = sweeps[0].how, _shape_of(model), next(model.parameters())
    max_memory = min(max_memory, free_bytes(weight.device) / 1e9)
    max_bytes, kept = piece_bytes(max_memory), set().union(*(sweep.kept for sweep in sweeps))
    replacements = {sweep.how.replacement for sweep in sweeps}
    n_numbers = max_bytes / weight.element_size()
    chunks = max((memory_chunks(cfg, facts, kept, x.how, n_numbers) for x in sweeps), key=len)
    runs: HookedRuns | Recompute | GradientEstimates
    if isinstance(model, HookedDecoder):
        runs = Recompute(pack(model, sweeps[0].grid.positions.shape[2]), max_bytes)
    else:
        runs = HookedRuns(model, max_bytes)
    counts = isinstance(model, HookedDecoder) and how.method == "exact"
    if how.method != "exact":
        nodes = [site for site in sweeps[0].sites if not is_path(site)]
        runs = GradientEstimates(model, runs, how.method, nodes, max_bytes)
    control = _control_pairs(facts, how.seed) if how.control else None
    clean, corrupted = prompts(facts, weight.device, how.by, control, metric)
    givers = [_givers_of(model, runs, sweep, facts, clean, chunks) for sweep in sweeps]
    for chunk in chunks:
        given, twins = clean[chunk], None if corrupted is None else corrupted[chunk]
        with count_flops() as shared:
            ends = base_runs(model, runs, chunk, given, twins, kept, replacements)
        for sweep, giver in zip(sweeps, givers):
            here = sweep.grid.of_facts(chunk, given.tokens.shape[1])
            batch = Batch(runs, sweep.how, sweep.sites, here, chunk, given, giver)
            with count_flops() as counted:
                sweep.add(*patch_batch(batch, *ends))
            sweep.flops += (shared.total + counted.total) * counts
    return [sweep.results(cfg, facts) for sweep in sweeps]


def _check_metric(metric: Metric | None, sweeps: Sequence["_Sweep"]) -> None:
    """Raises a ValueError unless ``metric`` is a function, of exact sweeps."""
    if metric is not None and not callable(metric):
        raise ValueError(f"metric is {shortened(metric)}; give a function of logits and facts")
    if metric is not None and any(sweep.how.method != "exact" for sweep in sweeps):
        raise ValueError(
            f"a metric of your own has no estimate by {sweeps[0].how.method}; use method exact"
        )


@dataclass
class _Sweep:
    """What one sweep asks for, and its results so far, by batches of facts."""

    how: Intervention
    sites: list[str]
    grid: PatchGrid
    labels: tuple[list, list]
    patched: dict[str, list[np.ndarray]]
    ends: dict[str, list[np.ndarray]]
    flops: int = 0

    @property
    def kept(self) -> set[str]:
        """Activations that runs keep for it."""
        frozen = {self.how.frozen} if self.how.frozen else set()
        return activations_of(starts_of(self.sites)) | frozen

    def add(self, results: Results, clean: Scores, corrupted: Scores) -> None:
        """Takes the results of a batch."""
        for site, values in results.items():
            self.patched[site].append(values)
        self.ends["clean"].append(clean)
        self.ends["corrupted"].append(corrupted)

    def results(self, cfg: Shape, facts: FactSet) -> dict[str, xr.Dataset]:
        """By site, of all batches."""
        ends = {end: np.concatenate(scores, -1) for end, scores in self.ends.items()}
        attrs = {"flops": float(self.flops)} if self.flops else {}
        return {
            site: _dataset(
                site, self.how, cfg, self.labels, np.concatenate(of_site, -1), ends, facts
            ).assign_attrs(attrs)
            for site, of_site in self.patched.items()
        }


def _prepared(
    model: nn.Module, facts: FactSet, asked: Sequence[dict[str, Any]]
) -> tuple[list[_Sweep], FactSet]:
    """The sweeps, and the facts as all of them are scored.

    Raises:
        ValueError: the model can't be patched as asked, or not at once.
    """
    sweeps: list[_Sweep] = []
    scored = facts
    for options in asked:
        how = intervention({name: x for name, x in options.items() if name != "sites"})
        sites = _checked(model, options["sites"], how, is_first=not sweeps)
        scored, grid, labels = prepared(_shape_of(model), sites, facts, how)
        check_vocabulary(scored, getattr(model, "vocabulary", ""), "the model")
        grid = reach(model, scored, grid)
        patched: dict[str, list[np.ndarray]] = {site: [] for site in sites}
        sweeps.append(_Sweep(how, sites, grid, labels, patched, {"clean": [], "corrupted": []}))
    scorings = {(x.how.by, x.how.whole_value, x.how.control, x.how.seed) for x in sweeps}
    if len(scorings) > 1 or (len(sweeps) > 1 and any(x.how.method != "exact" for x in sweeps)):
        raise ValueError(
            "only sweeps of method exact with the same by, whole_value, control and seed share "
            "their runs; patch the others one by one"
        )
    return sweeps, scored


def _givers_of(
    model: nn.Module,
    runs: Recompute | HookedRuns | GradientEstimates,
    sweep: _Sweep,
    facts: FactSet,
    clean: Prompts,
    chunks: list[np.ndarray],
) -> Giver:
    """What ablations and noise take from other facts."""
    if sweep.how.replacement == "mean":
        n_places = len(facts.role_names) if sweep.how.by == "role" else facts.clean.shape[1]
        return Giver(means=mean_cache(runs, clean, chunks, sweep.kept, n_places))
    if sweep.how.replacement == "resample":
        return Giver(prompts=clean, fact=_givers(len(facts), sweep.how.seed))
    if sweep.how.replacement == "noise":
        return Giver(spread=spread_of_names(model, facts))
    return Giver()


def _checked(
    model: nn.Module, sites: Sequence[str], how: Intervention, *, is_first: bool
) -> list[str]:
    """The sites to patch. The model as a whole is checked for the first of several sweeps.

    Raises:
        ValueError: ``model`` can't be patched, or not at these sites.
    """
    if not hasattr(model, "hook_dict"):
        raise ValueError(
            f"a {type(model).__name__} has no hooks; give a HookedDecoder, a HookedRootModule or a "
            "TransformerBridge"
        )
    if not isinstance(model, HookedDecoder) and not sites:
        usual, hooks = default_sites(parallel=False), cast(dict, model.hook_dict)
        sites = [site for site in usual if SITES[site].hook.format(0) in hooks]
    parallel = isinstance(model, HookedDecoder) and model.cfg.parallel
    sites = check_sites(sites, parallel=parallel, direction=how.direction)
    if is_first:
        check_model(model)
    if isinstance(model, HookedDecoder):
        if is_first:
            check_plain(model)
        return sites
    if how.method in ("atp-star", "relp"):
        raise ValueError(
            f"{how.method} needs a HookedDecoder, got a {type(model).__name__}; use atp or eap-ig"
        )
    if how.method != "exact" and "resid_mid" in sites:
        raise ValueError(
            f"{how.method} can't estimate 'resid_mid' of a {type(model).__name__}, where the hook "
            "is on what the MLP alone reads; leave it out, or use method exact"
        )
    for site in filter(is_path, sites):
        raise ValueError(
            f"path {site!r} needs a HookedDecoder, got a {type(model).__name__}; load the "
            "checkpoint with interp, or patch single sites"
        )
    check_hooks(model, sites)
    return sites


def _shape_of(model: nn.Module) -> Shape:
    """A model's configuration, which torch declares as a parameter or a module."""
    return cast(Shape, model.cfg)


def _givers(n: int, seed: int) -> np.ndarray:
    """Another fact for each fact: a random permutation without fixed points."""
    order = np.random.default_rng([seed, 6]).permutation(n)
    givers = np.empty(n, int)
    givers[order] = np.roll(order, 1)
    return givers


def _control_pairs(facts: FactSet, seed: int) -> Int[np.ndarray, "fact 2"]:
    """First tokens of the values of another fact of the same attribute, none of them its own."""
    assert facts.corrupted_answers is not None, "prepared refuses a control without them"
    pairs = torch.stack((facts.answers[:, 0], facts.corrupted_answers[:, 0]), 1).numpy()
    attribute = facts.texts.attribute.to_numpy()
    chosen, rng = np.empty_like(pairs), np.random.default_rng([seed, 7])
    for name in dict.fromkeys(attribute):
        at = np.flatnonzero(attribute == name)
        of = pairs[at]
        fits = ~(of[:, None, :, None] == of[None, :, None, :]).any((2, 3))
        if not fits.any(1).all():
            raise ValueError(
                f"no control for the {name} of fact {at[~fits.any(1)][0]}: all others share one of "
                "its values; ask for more facts"
            )
        chosen[at] = of[np.where(fits, rng.random(fits.shape), -1).argmax(1)]
    return chosen


def _dataset(
    site: str,
    how: Intervention,
    cfg: Shape,
    labels: tuple[list, list],
    patched: Float[np.ndarray, "metric layer part group source fact"],
    ends: dict[str, np.ndarray],
    facts: FactSet,
) -> xr.Dataset:
    edges = not is_path(site) and SITES[site].is_edge
    group = ("dest", "src") if edges else (how.by,)
    axes: dict[str, Any] = dict(axes_of(site, cfg, how)) | dict(zip(group, labels))
    if is_path(site):  # results have the ways up to the last stop first
        patched = np.moveaxis(patched, 4, 1)
    elif how.layers and SITES[site].has_layers:
        patched = patched[:, list(how.layers)]
    shape = (len(patched), *map(len, axes.values()), patched.shape[-1])
    values = patched.reshape(shape)
    dims = (*axes, "fact")
    variables: dict[str, tuple] = {}
    named = (*METRICS, *([CONTROL] if how.control else []), OWN_METRIC)[: len(patched)]
    for i, metric in enumerate(named):
        if metric == "value_logprob" and not how.whole_value:
            continue
        suffix = "" if metric == "logit_diff" else f"_{metric}"
        attrs = {"units": "nats", "metric": metric, "sign": "positive towards the clean answer"}
        if metric == OWN_METRIC:
            attrs |= {"units": "of the metric given", "sign": "of the metric given"}
        variables[f"patched{suffix}"] = (dims, values[i], attrs)
        for end, scores in ends.items():
            variables[f"{end}{suffix}"] = ("fact", scores[i], attrs)
    coords = axes | {name: ("fact", _plain(facts.texts[name])) for name in TEXT_COLUMNS}
    of_all: dict[str, Any] = {"site": site, "by": how.by, "direction": how.direction}
    of_all |= {"replacement": how.replacement, "method": how.method, "frozen": how.frozen or ""}
    of_all["window"] = how.window if is_path(site) or SITES[site].has_layers else 1
    of_all["intervention"] = json.dumps(asdict(how))
    return xr.Dataset(variables, coords, of_all)


def _plain(column: pd.Series) -> np.ndarray:
    """Integers in 32 bits, text as Python strings."""
    return column.to_numpy(dtype=np.int32 if column.dtype.kind in "iu" else object)
