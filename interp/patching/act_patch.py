"""Activation patching and its relatives (Vig et al. 2020, https://arxiv.org/abs/2004.12265; Meng et
al. 2022, https://arxiv.org/abs/2202.05262; Geva et al. 2023, https://arxiv.org/abs/2304.14767).

denoising: corrupted run ← clean activation, what is enough to restore the answer; noising: clean
run ← corrupted activation, what is needed to keep it. Metrics, all positive towards the clean
answer: ``logit_diff`` = logit(first token of the clean answer) − logit(first token of the corrupted
answer), in nats, at ``final``; ``first_logprob`` and ``value_logprob`` = ln p of the clean answer's
first token, and of all its tokens given the ones before.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import nn

from interp.config import CONTROL, METRICS
from interp.data.facts import TEXT_COLUMNS, FactSet, check_tokens, check_vocabulary
from interp.fields import argument
from interp.model.decoder import HookedDecoder
from interp.model.flop_count import count_flops
from interp.model.model_check import check_model, check_plain
from interp.patching.batch import Batch, mean_cache, spread_of_names
from interp.patching.grid import Shape
from interp.patching.hooks import check_hooks, reach
from interp.patching.intervention import (
    Intervention,
    axes_of,
    check_fit,
    check_sites,
    grid_of,
    intervention,
    memory_chunks,
    piece_bytes,
    starts_of,
)
from interp.patching.packed_weights import pack
from interp.patching.path_patching import is_path
from interp.patching.sites import SITES, activations_of, default_sites


def patch(
    model: nn.Module, facts: FactSet, *, site: str, max_memory: float = 2.0, **options
) -> xr.Dataset:
    """Metrics after patching every cell of one ``site``, one cell at a time, on each fact.

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
        are not in order; ``corrupted`` of an ablation of facts without twins; ``logit_diff`` of
        facts without corrupted answers. ``mlp_post`` has ``neuron``, the first of each group, for
        ``head``; ``edge`` and ``knockout`` have ``dest`` and ``src`` for role or pos; the second
        stop of a path has ``layer_1`` and ``head_1``, the third ``layer_2``, ... Attribute
        ``flops``: floating-point operations of the matrix products, of all sites together (not of a
        model that is not a ``HookedDecoder``).

    Raises:
        ValueError: unknown site or option, a site this model lacks, prompts of several lengths with
            ``by="pos"``, hooks left on the model, facts that lack a twin, roles or tokens that
            are needed, logits that are not finite.
        RuntimeError: a cell that could change the result was not applied.
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
    sites = _sites_of(model, sites, how)
    check_vocabulary(facts, getattr(model, "vocabulary", ""), "the model")
    if not how.whole_value:
        facts = replace(facts, answers=facts.answers[:, :1])
    grid, labels, may_differ = grid_of(facts, how)
    check_tokens(facts, model.cfg.d_vocab, model.cfg.n_ctx)
    grid, may_differ = reach(model, facts, grid, may_differ)
    max_bytes, n_bytes = piece_bytes(max_memory), next(model.parameters()).element_size()
    kept = activations_of(starts_of(sites))
    chunks = memory_chunks(model.cfg, facts, kept, how, max_bytes / n_bytes)
    own, n_pos = isinstance(model, HookedDecoder), grid.positions.shape[2]
    weights, means = pack(model, n_pos) if own else None, None
    if how.replacement == "mean":
        means = mean_cache(model, weights, facts, chunks, sites, how, max_bytes)
    spread = spread_of_names(model, facts) if how.replacement == "noise" else 0.0
    givers = _givers(len(facts), how.seed)
    control = _control_pairs(facts, how.seed) if how.control else None
    patched = {site: [] for site in sites}
    clean, corrupted, flops = [], [], 0
    for chunk in chunks:
        here = replace(grid, positions=grid.positions[:, chunk], sources=grid.sources[:, chunk])
        pairs = None if control is None else control[chunk]
        differ, given = may_differ[chunk], facts[chunk]
        batch = Batch(model, weights, given, how, sites, here, differ, max_bytes, spread, pairs)
        giver = facts[givers[chunk]] if how.replacement == "resample" else None
        with count_flops() as counted:
            for site, values in batch.results(chunk, means, giver).items():
                patched[site].append(values)
        clean.append(batch.clean)
        corrupted.append(batch.corrupted)
        flops += counted.total if own else 0
    ends = {"clean": np.concatenate(clean, -1), "corrupted": np.concatenate(corrupted, -1)}
    return {
        site: _dataset(
            site, how, model.cfg, labels, np.concatenate(patched[site], -1), ends, facts
        ).assign_attrs({"flops": float(flops)} if flops else {})
        for site in sites
    }


def _sites_of(model: nn.Module, sites: Sequence[str], how: Intervention) -> list[str]:
    own = isinstance(model, HookedDecoder)
    if not hasattr(model, "hook_dict"):
        raise ValueError(
            f"a {type(model).__name__} has no hooks; give a HookedDecoder, a HookedRootModule or a "
            "TransformerBridge"
        )
    if not own and not sites:
        usual = default_sites(parallel=False)
        sites = [site for site in usual if SITES[site].hook.format(0) in model.hook_dict]
    parallel = own and model.cfg.parallel
    sites = check_sites(sites, parallel=parallel, direction=how.direction)
    check_model(model)
    if own:
        check_plain(model)
    else:
        for site in filter(is_path, sites):
            raise ValueError(
                f"path {site!r} needs a HookedDecoder, got a {type(model).__name__}; load the "
                "checkpoint with interp, or patch single sites"
            )
        check_hooks(model, sites)
    check_fit(model.cfg, sites, how)
    return sites


def _givers(n: int, seed: int) -> np.ndarray:
    """For each fact another fact, in one random cycle."""
    order = np.random.default_rng([seed, 6]).permutation(n)
    givers = np.empty(n, int)
    givers[order] = np.roll(order, 1)
    return givers


def _control_pairs(facts: FactSet, seed: int) -> Int[np.ndarray, "fact 2"]:
    """First tokens of two other values of the same attribute, taken from another fact."""
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
    coords = axes_of(site, cfg, how) | dict(zip(group, labels))
    if is_path(site):  # the last stop's layer and part come before the ways up to it
        patched = np.moveaxis(patched, 4, 1)
    elif how.layers and SITES[site].has_layers:
        patched = patched[:, list(how.layers)]
    shape = (len(patched), *map(len, coords.values()), patched.shape[-1])
    values = patched.reshape(shape)
    dims = (*coords, "fact")
    variables = {}
    names = METRICS if how.whole_value else METRICS[:2]
    for metric in (*names, *([CONTROL] if how.control else [])):
        i = (*METRICS, CONTROL).index(metric)
        suffix = "" if metric == "logit_diff" else f"_{metric}"
        attrs = {"units": "nats", "metric": metric, "sign": "positive towards the clean answer"}
        variables[f"patched{suffix}"] = (dims, values[i], attrs)
        for end, scores in ends.items():
            variables[f"{end}{suffix}"] = ("fact", scores[i], attrs)
    coords |= {name: ("fact", _plain(facts.texts[name])) for name in TEXT_COLUMNS}
    attrs = {"site": site, "by": how.by, "direction": how.direction}
    if how != Intervention(by=how.by, direction=how.direction):
        attrs |= {"replacement": how.replacement, "window": how.window}
    if how.frozen:
        attrs["frozen"] = how.frozen
    return xr.Dataset(variables, coords, attrs)


def _plain(column: pd.Series) -> np.ndarray:
    """The result with integers in 32 bits and texts as Python strings."""
    return column.to_numpy(dtype=np.int32 if column.dtype.kind in "iu" else object)
