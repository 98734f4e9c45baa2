"""Activation patching (Vig et al. 2020, https://arxiv.org/abs/2004.12265; Meng et al. 2022,
https://arxiv.org/abs/2202.05262).

denoising: corrupted run ← clean activation, what is enough to restore the answer; noising: clean
run ← corrupted activation, what is needed to keep it. Metrics, all positive towards the clean
answer: ``logit_diff`` = logit(first token of the clean answer) − logit(first token of the corrupted
answer), in nats, at ``final``; ``first_logprob`` and ``value_logprob`` = ln p of the clean answer's
first token, and of all its tokens given the ones before.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool

from interp.config import METRICS, SITES, Direction, check_choice
from interp.facts import PROMPT_ROLES, FactSet, role_masks
from interp.model import HookedDecoder
from interp.patching.engine import Engine

By = Literal["role", "pos"]
FACT_COORDS = (
    "person",
    "corrupted_person",
    "attribute",
    "clean_prompt",
    "corrupted_prompt",
    "answer",
    "corrupted_answer",
)


def patch(
    model: HookedDecoder,
    facts: FactSet,
    *,
    site: str,
    by: By = "role",
    direction: Direction = "denoising",
) -> xr.Dataset:
    """Every (layer, role or position) of one ``site`` patched, for ``z`` every head, on each fact.

    Returns:
        ``patched`` (layer, head for z, role or pos, fact), ``clean`` (fact) and ``corrupted``
        (fact): logit_diff, nats; and the same three with ``_first_logprob`` and ``_value_logprob``
        after their names. NaN: the fact has no such position.

    Raises:
        ValueError: unknown site or direction, a site this model lacks, prompts of several lengths
            with ``by="pos"``, hooks left on the model.
    """
    return patch_sites(model, facts, sites=[site], by=by, direction=direction)[site]


def patch_sites(
    model: HookedDecoder,
    facts: FactSet,
    *,
    sites: Sequence[str],
    by: By = "role",
    direction: Direction = "denoising",
) -> dict[str, xr.Dataset]:
    """``patch`` for several sites at once, which share their runs and their batches."""
    sites = check_sites(sites, parallel=model.cfg.parallel)
    check_choice("direction", direction, Direction)
    if any(hook.has_hooks() for hook in model.hook_points()):
        raise ValueError(
            "the model has hooks, which patching would not run; take them off with "
            "model.reset_hooks()"
        )
    labels, positions = _groups(facts, by)
    engine = Engine(model, facts, direction)
    shape = (len(METRICS), model.cfg.n_layers, model.cfg.n_heads, len(labels), len(facts))
    unpatched = np.where(
        positions.any(2), engine.base_scores[:, None, None, None, :], np.float32(np.nan)
    )
    patched = {site: np.broadcast_to(unpatched, shape).copy() for site in sites}
    for rows, scores in engine.sweep(sites, positions):
        for site in np.unique(rows.site):
            at = rows.site == site
            patched[site][:, rows.layer[at], rows.head[at], rows.group[at], rows.fact[at]] = scores[
                :, at
            ]
    ends = {"clean": engine.source_scores, "corrupted": engine.base_scores}
    if direction == "noising":
        ends = {"clean": engine.base_scores, "corrupted": engine.source_scores}
    return {
        site: _dataset(site, by, direction, labels, patched[site], ends, facts) for site in sites
    }


def check_sites(sites: Sequence[str], *, parallel: bool = False) -> list[str]:
    """``sites`` as a list; none are all that the model has.

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
        return [site for site in SITES if not (parallel and site == "resid_mid")]
    return list(dict.fromkeys(sites))


def _groups(facts: FactSet, by: By) -> tuple[list, Bool[np.ndarray, "group fact pos"]]:
    if by == "role":
        masks = role_masks(facts).numpy()
        present = masks.any((1, 2))
        return [role for role, there in zip(PROMPT_ROLES, present) if there], masks[present]
    if by != "pos":
        raise ValueError(f"by is {by!r}; it must be 'role' or 'pos'")
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
    by: By,
    direction: Direction,
    labels: list,
    patched: np.ndarray,
    ends: dict[str, np.ndarray],
    facts: FactSet,
) -> xr.Dataset:
    dims = ("layer", "head", by, "fact") if site == "z" else ("layer", by, "fact")
    variables = {}
    for i, metric in enumerate(METRICS):
        suffix = "" if metric == "logit_diff" else f"_{metric}"
        values = patched[i] if site == "z" else patched[i][:, 0]
        attrs = {"units": "nats", "metric": metric, "sign": "positive towards the clean answer"}
        variables[f"patched{suffix}"] = (dims, values, attrs)
        for end, scores in ends.items():
            variables[f"{end}{suffix}"] = ("fact", scores[i], attrs)
    coords = {"layer": _numbers(patched.shape[1]), by: labels}
    if site == "z":
        coords["head"] = _numbers(patched.shape[2])
    coords |= {name: ("fact", _plain(facts.texts[name])) for name in FACT_COORDS}
    return xr.Dataset(variables, coords, {"site": site, "by": by, "direction": direction})


def _numbers(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int32)


def _plain(column: pd.Series) -> np.ndarray:
    """Integers in the 32 bits of a result file, texts as Python strings."""
    return column.to_numpy(dtype=np.int32 if column.dtype.kind in "iu" else object)
