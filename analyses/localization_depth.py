"""What localization asks of the last checkpoint only, since it takes too long to ask of all."""

import numpy as np
import xarray as xr

from interp.localization.component_ablation import needs
from interp.localization.fact_editing import edit_facts
from interp.localization.logit_attribution import copying
from interp.localization.neurons import written
from interp.patching import patch
from interp.results.metrics import effect, recovered
from interp.statistics import runs_differ

DEPTH = ("severed", "neurons", "edits", "feeds", "parts", "copying", "value")
SEVERED = {"nothing": None, "MLPs": "mlp_out", "attention": "attn_out"}
PARTS = ("first", "middle", "last")
N_IN_DEPTH, N_EDITED, N_SEVERED, N_SCORED = 96, 24, 192, 384
"""Facts asked in depth, overwritten, run severed, and those whose whole value is scored."""


def possible(leading: dict[str, dict[str, str]]) -> list[str]:
    """Those of ``DEPTH`` that can be asked: about a memory or an extraction head only where there
    is one.
    """
    left_out = set() if "memory" in leading else {"neurons", "edits"}
    if leading.get("extraction", {"component": "L0"})["component"].startswith("L0"):
        left_out.add("feeds")  # no MLP comes before
    return [question for question in DEPTH if question not in left_out]


def answer(
    suite,
    step: int,
    questions: list[str],
    *,
    facts,
    leading: dict[str, dict[str, str]],
    seed: int,
    max_memory: float,
    device: str,
) -> dict[str, xr.Dataset]:
    """Of one checkpoint, what takes too long to ask of all: the functions below, by name."""
    model = suite.load(step, device=device)
    few, to_edit = (facts[_spread(facts, n)] for n in (N_IN_DEPTH, N_EDITED))
    how = {"whole_value": False, "max_memory": max_memory}
    some = facts[_spread(facts, N_SEVERED)]
    ask = {
        "severed": lambda: _severed(model, some, how),
        "neurons": lambda: _neurons(model, few, leading["memory"], how),
        "edits": lambda: _edits(model, suite, to_edit, leading["memory"], seed),
        "parts": lambda: _parts(model, suite, few, seed, how),
        "feeds": lambda: _feeds(model, few, leading["extraction"]["component"], how),
        "copying": lambda: xr.Dataset({"share": copying(model, facts)}),
        "value": lambda: needs(
            model, facts[_spread(facts, N_SCORED)], whole_value=True, max_memory=max_memory
        ),
    }
    return {question: _plain(ask[question]()) for question in questions}


def _severed(model, facts, how: dict) -> xr.Dataset:
    """``recovered`` (frozen, layer, role) by the clean residual stream, with nothing, the MLPs or
    the attention of all later layers frozen at the patched tokens; NaN where the two runs can't be
    told apart. Attribute ``n``: facts.
    """
    runs = [
        patch(model, facts, site="resid_pre", frozen=frozen, **how) for frozen in SEVERED.values()
    ]
    apart = runs_differ((runs[0].clean - runs[0].corrupted).values)
    shares = xr.concat([recovered(run) for run in runs], "frozen").where(bool(apart))
    return xr.Dataset({"recovered": shares}, {"frozen": list(SEVERED)}, {"n": len(facts)})


def _neurons(model, facts, memory: dict[str, str], how: dict) -> xr.Dataset:
    """``effect`` (layer, neuron, fact) of single neurons where the leading memory works, noising,
    nats, negative = needed; at ``final`` also ``agreement`` (fact): correlation over neurons of the
    memory's layer of −effect and what they write towards the right value.
    """
    layer, place = _layer_of(memory), memory["place"]
    single = {"groups": (place,), "n_neurons": 1, "direction": "noising"}
    result = effect(patch(model, facts, site="mlp_post", **single, **how))
    answer = xr.Dataset({"effect": result.isel(role=0, drop=True)})
    if place == "final":
        own = written(model, facts, layer=layer).drop_vars("layer")
        single_layer = answer.effect.sel(layer=layer, drop=True)
        answer["agreement"] = xr.corr(-single_layer, own, dim="neuron")
    return answer


def _edits(model, suite, facts, memory: dict[str, str], seed: int) -> xr.Dataset:
    """``edit_facts`` in the leading memory, and in the first MLP at name_middle, which works on
    names.
    """
    where = {
        f"{memory['component']} at {memory['place']}": (_layer_of(memory), memory["place"]),
        "L0 MLP at name_middle": (0, "name_middle"),
    }
    how = {"n_sentences": min(10, suite.config.n_train_templates), "seed": seed}
    tables = [
        edit_facts(model, suite, facts, layer=at, role=role, **how) for at, role in where.values()
    ]
    return xr.concat(tables, "edited").assign_coords(edited=list(where))


def _layer_of(mlp: dict[str, str]) -> int:
    return int(mlp["component"].removeprefix("L").removesuffix(" MLP"))


def _parts(model, suite, facts, seed: int, how: dict) -> xr.Dataset:
    """``recovered`` (part, layer, role): by the residual stream, one part of the name swapped; of
    ``n`` (part) facts, or as many as there are whose person has such a twin. NaN where there is
    none, and where the two runs can't be told apart.
    """
    attributes = list(dict.fromkeys(facts.texts.attribute))
    shares, counts = {}, {}
    for part in PARTS:
        drawn = {"attribute": attributes, "seed": seed, "corruption": f"swap-{part}"}
        swapped = suite.facts(len(facts), fewer=True, **drawn)
        counts[part] = len(swapped)
        if len(swapped) < 2:
            continue
        result = patch(model, swapped, site="resid_pre", **how)
        apart = runs_differ((result.clean - result.corrupted).values)
        shares[part] = recovered(result).where(bool(apart))
    found = xr.Dataset({"n": ("part", list(counts.values()))}, {"part": list(counts)})
    if shares:
        found["recovered"] = xr.concat(shares.values(), "part").assign_coords(part=list(shares))
    return found


def _feeds(model, facts, head: str, how: dict) -> xr.Dataset:
    """``recovered`` (layer, role, ...): through each MLP's output into one head's values."""
    return xr.Dataset(
        {"recovered": recovered(patch(model, facts, site=f"mlp_out-{head}.v", **how))}
    )


def _spread(facts, n: int) -> np.ndarray:
    """About ``n`` facts, as many of each attribute."""
    attribute = facts.texts.attribute.to_numpy()
    names = list(dict.fromkeys(attribute))
    each = max(1, n // len(names))
    return np.concatenate([np.flatnonzero(attribute == name)[:each] for name in names])


def _plain(answer: xr.Dataset) -> xr.Dataset:
    """Without what netCDF 3 can't hold."""
    answer = answer.drop_vars([x for x in answer.coords if "prompt" in str(x)])
    for name in [*answer.data_vars, *answer.coords]:
        if answer[name].dtype == bool:
            answer[name] = answer[name].astype(np.int8)
        if answer[name].dtype == np.int64:
            answer[name] = answer[name].astype(np.int32)
    return answer
