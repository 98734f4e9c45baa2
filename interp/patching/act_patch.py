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
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import nn

from interp.config import CONTROL, METRICS
from interp.data.facts import TEXT_COLUMNS, FactSet, check_vocabulary
from interp.fields import argument
from interp.model.decoder import HookedDecoder
from interp.model.flop_count import count_flops
from interp.model.model_check import check_model, check_plain
from interp.patching.activations import prompts
from interp.patching.attribution_patching import GradientEstimates
from interp.patching.batch import Batch, mean_cache, patch_batch, spread_of_names
from interp.patching.grid import Shape
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
    model: nn.Module, facts: FactSet, *, site: str, max_memory: float = 2.0, **options
) -> xr.Dataset:
    """Metrics with every cell of one ``site`` changed, one at a time, on each fact.

    Args:
        model: a ``HookedDecoder``; or, slower, any ``HookedRootModule`` or ``TransformerBridge``
            with TransformerLens's hook names.
        site: one of ``sites.SITES``, or a path (see ``path_patching``) such as
            ``z-logits`` or ``L0H2.z-q``.
        max_memory: gigabytes (10⁹ bytes) that activations may take.
        options: the fields of ``Intervention``.

    Returns:
        ``patched`` (layer, head where the site has them, role or pos, fact), ``clean`` (fact) and
        ``corrupted`` (fact): logit_diff, nats; and the same three with ``_first_logprob`` and
        ``_value_logprob`` after their names. NaN: the fact has no such position, or a path's stops
        are not in order; ``corrupted`` where facts without corrupted prompts are ablated;
        ``logit_diff`` of facts without corrupted answers. ``mlp_post`` has ``neuron``, the first of
        each group, for ``head``; ``edge`` and ``knockout`` have ``dest`` and ``src`` for role or
        pos; the second stop of a path has ``layer_1`` and ``head_1``, the third ``layer_2``, ...
        Attributes: ``intervention``, all options as JSON; and for a ``HookedDecoder`` ``flops``,
        floating-point operations of the matrix products of all sites together.

    Raises:
        ValueError: unknown site or option, a site this model lacks, prompts of several lengths with
            ``by="pos"``, hooks left on the model, facts that lack corrupted prompts, roles or
            tokens that are needed, logits that are not finite.
        RuntimeError: a patch that could change the result was not applied.
    """
    return patch_sites(model, facts, sites=[site], max_memory=max_memory, **options)[site]


def patch_sites(
    model: nn.Module,
    facts: FactSet,
    *,
    sites: Sequence[str],
    max_memory: float = 2.0,
    **options,
) -> dict[str, xr.Dataset]:
    """``patch`` for several sites at once, which share runs and batches."""
    how = intervention(options)
    argument("facts", facts, FactSet)
    max_memory = argument("max_memory", max_memory, float, above=0)
    sites = _checked(model, sites, how)
    cfg = _shape_of(model)
    facts, grid, labels = prepared(cfg, sites, facts, how)
    check_vocabulary(facts, getattr(model, "vocabulary", ""), "the model")
    grid = reach(model, facts, grid)
    weight, max_bytes = next(model.parameters()), piece_bytes(max_memory)
    names = activations_of(starts_of(sites))
    chunks = memory_chunks(cfg, facts, names, how, max_bytes / weight.element_size())
    runs: HookedRuns | Recompute | GradientEstimates
    if isinstance(model, HookedDecoder):
        runs = Recompute(pack(model, grid.positions.shape[2]), max_bytes)
    else:
        runs = HookedRuns(model, max_bytes)
    counts = isinstance(model, HookedDecoder) and how.method == "exact"
    if how.method != "exact":
        nodes = [site for site in sites if not is_path(site)]
        runs = GradientEstimates(model, runs, how.method, nodes, max_bytes)
    control = _control_pairs(facts, how.seed) if how.control else None
    clean, corrupted = prompts(facts, weight.device, how.by, control)
    means, givers, spread = None, None, 0.0
    if how.replacement == "mean":
        n_places = len(facts.role_names) if how.by == "role" else facts.clean.shape[1]
        means = mean_cache(runs, clean, chunks, names, n_places)
    elif how.replacement == "resample":
        givers = _givers(len(facts), how.seed)
    elif how.replacement == "noise":
        spread = spread_of_names(model, facts)
    patched: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    ends: dict[str, list[np.ndarray]] = {"clean": [], "corrupted": []}
    flops = 0
    for chunk in chunks:
        given, twins = clean[chunk], None if corrupted is None else corrupted[chunk]
        giver = None if givers is None else clean[givers[chunk]]
        here = grid.of_facts(chunk, given.tokens.shape[1])
        batch = Batch(runs, how, sites, here, chunk, given, twins, giver, means, spread)
        with count_flops() as counted:
            results, *scores = patch_batch(model, batch)
        for site, values in results.items():
            patched[site].append(values)
        for end, of_end in zip(ends.values(), scores):
            end.append(of_end)
        flops += counted.total if counts else 0
    joined = {end: np.concatenate(scores, -1) for end, scores in ends.items()}
    attrs = {"flops": float(flops)} if flops else {}
    return {
        site: _dataset(
            site, how, cfg, labels, np.concatenate(patched[site], -1), joined, facts
        ).assign_attrs(attrs)
        for site in sites
    }


def _checked(model: nn.Module, sites: Sequence[str], how: Intervention) -> list[str]:
    """The sites to patch.

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
    check_model(model)
    if isinstance(model, HookedDecoder):
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
    names = METRICS if how.whole_value else METRICS[:2]
    for metric in (*names, *([CONTROL] if how.control else [])):
        i = (*METRICS, CONTROL).index(metric)
        suffix = "" if metric == "logit_diff" else f"_{metric}"
        attrs = {"units": "nats", "metric": metric, "sign": "positive towards the clean answer"}
        variables[f"patched{suffix}"] = (dims, values[i], attrs)
        for end, scores in ends.items():
            variables[f"{end}{suffix}"] = ("fact", scores[i], attrs)
    coords = axes | {name: ("fact", _plain(facts.texts[name])) for name in TEXT_COLUMNS}
    attrs = {"site": site, "by": how.by, "direction": how.direction}
    attrs |= {"replacement": how.replacement, "method": how.method, "frozen": how.frozen or ""}
    attrs["window"] = how.window if is_path(site) or SITES[site].has_layers else 1
    attrs["intervention"] = json.dumps(asdict(how))
    return xr.Dataset(variables, coords, attrs)


def _plain(column: pd.Series) -> np.ndarray:
    """Integers in 32 bits, text as Python strings."""
    return column.to_numpy(dtype=np.int32 if column.dtype.kind in "iu" else object)
