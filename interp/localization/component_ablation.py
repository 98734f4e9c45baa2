"""How much each head and MLP is needed for each mechanism of factual recall, by ablation.

Mechanisms (Geva et al. 2023, https://arxiv.org/abs/2304.14767; Nanda et al. 2023, Fact finding):
name attention, a head that brings earlier parts of a name to a later one; memory, an MLP that turns
the name into values; extraction, a head that brings what the name tokens hold to the answer
position; relation, a head that brings what is asked for there.

Causes, all noising: a head's attention along the mechanism's edges is cut before the softmax
(``head_knockout``); an MLP's output at its tokens is replaced by that of the run with another
person's name. Effect = clean − patched ``logit_diff``, nats, positive = needed. Each has a control:
the same change, scored on another fact's pair of values. A component whose part others can take
over is not needed and stays hidden here: compare the effects of whole layers, and the other
direction.
"""

from itertools import chain

import numpy as np
import xarray as xr
from jaxtyping import Float

from interp.config import CONTROL, METRICS
from interp.data.facts import FactSet, role_masks
from interp.localization.attention_to_names import EDGES
from interp.localization.inputs import check_inputs
from interp.localization.probes import PLACES
from interp.model.decoder import HookedDecoder
from interp.patching.act_patch import patch_together

MECHANISM_EDGES = {
    "name_middle ← name_first": "name attention",
    "name_last ← other names": "name attention",
    "final ← names": "extraction",
    "final ← cue": "relation",
}
"""The edges of ``attention_to_names.EDGES`` along which heads implement a mechanism."""


def needs(
    model: HookedDecoder, facts: FactSet, *, whole_value: bool = False, max_memory: float = 2.0
) -> xr.Dataset:
    """Effect of ablating each component on each mechanism, with a control.

    Returns:
        ``effect`` and ``control`` (cell, fact): clean − patched ``logit_diff`` of the fact, and of
        another fact's pair of values, nats; ``effect_first_logprob``, and with ``whole_value``
        ``effect_value_logprob``: the same of the log-probability of the value's first token, and of
        all its tokens; ``clean`` and ``corrupted`` (fact). A cell is one component at one
        mechanism; its coordinates: ``component`` (L1H3, L2 MLP; "layer 1 heads" and "all MLPs" when
        cut together), ``role`` (the mechanism), ``place`` (where it is cut), ``kind`` (head, mlp,
        layer, all); and ``n``, how many facts have the place. A prompt that lacks it has nothing
        that is cut there, and loses nothing: its effect is 0.
    """
    check_inputs(model, facts, names=True, twins=True)
    options = {"direction": "noising", "whole_value": whole_value, "control": True}
    every = {"window": 2 * model.cfg.n_layers, "layers": (0,)}
    cuts = {"head_knockout": "head", "knockout": "layer"}
    there = _places_of(facts)
    ends = {edge: there[edge] for edge in MECHANISM_EDGES if edge in there}
    places = tuple(place for place in PLACES if place in there)
    asked, tables = [], []
    for dest in dict.fromkeys(dest for dest, _ in ends.values()):
        sources = tuple(src for of, src in ends.values() if of == dest)
        edges = {"groups": (dest,), "sources": sources}
        asked += [{"sites": ["knockout"], **every, **edges}, {"sites": list(cuts), **edges}]
    mlps = {"sites": ["mlp_out"], "groups": places}
    asked += [mlps | every, mlps]
    asked = [options | sweep for sweep in asked]
    *swept, all_mlps, single_mlps = patch_together(model, facts, asked, max_memory=max_memory)
    for whole, single in zip(swept[::2], swept[1::2]):
        for edge, (dest, src) in ends.items():
            if dest in single["knockout"].dest and src in single["knockout"].src:
                about = MECHANISM_EDGES[edge], {"dest": dest, "src": src}, edge
                tables += [_cells(single[site], kind, *about) for site, kind in cuts.items()]
                tables.append(_cells(whole["knockout"], "all", *about))
    for kind, swapped in (("mlp", single_mlps["mlp_out"]), ("all", all_mlps["mlp_out"])):
        tables += [_cells(swapped, kind, "memory", {"role": place}, place) for place in places]
    labels, columns = zip(*tables)
    named = zip(("component", "role", "place", "kind"), zip(*chain.from_iterable(labels)))
    coords = {name: ("cell", np.array(of_cells, object)) for name, of_cells in named}
    coords |= {name: swapped[name] for name in ("attribute", "person")}
    joined = {name: np.concatenate([of[name] for of in columns]) for name in columns[0]}
    units = {"units": "nats"}
    cells = xr.Dataset({x: (("cell", "fact"), of, units) for x, of in joined.items()}, coords)
    n_of = _n_with(facts)
    runs = {name: swapped[name].variable for name in ("clean", "corrupted")}
    return cells.assign(runs | {"n": ("cell", [n_of[x] for x in coords["place"][1]])}).assign_attrs(
        units="nats", sign="positive = needed", direction="noising"
    )


def _places_of(facts: FactSet) -> dict[str, tuple[str, str]]:
    """Destination and sources of the places that some prompt has, by place: of an edge those of its
    sources that are there, of an MLP's place the place itself for both.
    """
    roles = {role for i, role in enumerate(facts.role_names) if (facts.roles == i).any()}
    found = {place: (place, place) for place in PLACES if place in roles}
    for edge in MECHANISM_EDGES:
        dest, sources = EDGES[edge]
        if dest in roles and (there := [role for role in sources if role in roles]):
            found[edge] = dest, "+".join(there)
    return found


def _n_with(facts: FactSet) -> dict[str, int]:
    """How many prompts have each place, of an edge both of its ends."""
    has = dict(zip(facts.role_names, role_masks(facts).any(2).numpy()))
    counts = {}
    for place, (dest, sources) in _places_of(facts).items():
        from_any = np.logical_or.reduce([has[role] for role in sources.split("+")])
        counts[place] = int((has[dest] & from_any).sum())
    return counts


def _cells(
    result: xr.Dataset, kind: str, mechanism: str, at: dict[str, str], place: str
) -> tuple[list[tuple[str, str, str, str]], dict[str, Float[np.ndarray, "cell fact"]]]:
    """Component, mechanism, place and kind of each cell of a sweep that measures one mechanism at
    one token role, and its effects by name.
    """
    names = {"effect": "", "control": f"_{CONTROL}"}
    names |= {f"effect_{x}": f"_{x}" for x in METRICS[1:] if f"patched_{x}" in result}
    columns = {}
    where = {dim: result[dim].values.tolist().index(label) for dim, label in at.items()}
    for name, suffix in names.items():
        patched = result.variables[f"patched{suffix}"].isel(where).transpose("layer", ..., "fact")
        clean = result[f"clean{suffix}"].values
        effect = (clean - patched.values).reshape(-1, len(clean))
        columns[name] = np.where(np.isnan(effect), 0, effect)  # nothing to cut
    labels = [
        (_component(kind, mechanism, dict(zip(patched.dims, cell))), mechanism, place, kind)
        for cell in np.ndindex(*patched.shape[:-1])
    ]
    return labels, columns


def _component(kind: str, mechanism: str, at: dict[str, int]) -> str:
    if kind == "all":
        return "all MLPs" if mechanism == "memory" else "all heads"
    if kind == "layer":
        return f"layer {at['layer']} heads"
    return f"L{at['layer']}H{at['head']}" if "head" in at else f"L{at['layer']} MLP"
