"""Which circuit recalls facts at every checkpoint, how large is it, and which estimates find it?

At each checkpoint every edge's effect (``interp.attribution.edges``) is found exactly and by each
estimate, on one half of the facts. The circuit of a checkpoint is the smallest, of ``SIZES``, whose
edges of largest signed importance reach the faithfulness asked for on that half, if the runs can be
told apart on the other. How faithful circuits are is measured on the other half
(``interp.attribution.circuits``: run exactly).
"""

from typing import get_args

import numpy as np
import xarray as xr

from analyses.agreement import MEASURES, agreement_of
from analyses.checkpoints import analyse_checkpoints, halves
from analyses.circuits import CircuitsConfig
from analyses.circuits.circuits_page import report, said
from interp.attribution.circuits import (
    areas,
    connected,
    everything_but,
    faithfulness,
    importance,
    top_edges,
)
from interp.attribution.edges import EdgeMethod, edge_effects, graph_of
from interp.data.facts import FactSet
from interp.model.decoder import HookedDecoder
from interp.patching import patch, patch_sites
from interp.statistics import runs_differ
from interp.suite import Suite

NAME = "circuits"
METHODS = get_args(EdgeMethod)
NODES = ("resid_pre", "z", "q", "k", "v", "mlp_out")
NODE_METHODS = ("exact", "atp", "atp-star", "relp", "eap-ig")
N_FOR_HEADS = 768
"""Facts, or as many as there are, for the shares of single heads, which are compared over time."""
SIZES = tuple(dict.fromkeys(int(1.25**k) for k in range(0, 40)))
"""Numbers of edges that are tried, up to 6,000, a quarter more each time."""


def run_and_report(config: CircuitsConfig, *, command: str, bar) -> str:
    """The findings in words, and the path of the report that was written."""
    return analyse_checkpoints(
        *(config, NAME, _of_step, report, said),
        command=command,
        bar=bar,
        target=config.faithfulness,
    )


def _of_step(
    suite: Suite, step: int, names: list[str], *, facts: FactSet, device: str, target: float
) -> dict[str, xr.Dataset]:
    model, more = suite.load(step, device=device), suite.facts(N_FOR_HEADS, fewer=True)
    return {NAME: of_model(model, facts, target).merge(heads(model, more))}


def of_model(model: HookedDecoder, facts: FactSet, target: float) -> xr.Dataset:
    """Effects of edges, agreement, areas and the circuit of one checkpoint.

    Returns:
        On the facts chosen by: ``effect`` (estimate, writer, reader, role), mean over facts,
        noising, nats; ``effect_of_fact`` (writer, reader, role, fact), the exact one; ``clean`` and
        ``corrupted`` (fact), ``logit_diff``; ``agreement``
        (estimate, measure) of edges and ``node_agreement`` (node_estimate, site, measure) with
        ``_low`` and ``_high``; ``circuit`` (writer, reader, role), 1 in it, with ``size``, NaN if
        none of ``SIZES`` suffices, ``connected_size`` and ``chosen_faithfulness``. On the others:
        ``faithfulness`` (estimate, ranking, fraction), ``circuit_faithfulness`` and
        ``without_circuit``, with ``_low`` and ``_high``; ``cpr`` and ``cmd`` (estimate); ``gap``
        (measured), clean − corrupted of each fact, nats.
    """
    chosen_by, others = (facts[at] for at in halves(facts.texts.attribute.to_numpy(object)))
    effects = {method: edge_effects(model, chosen_by, method=method) for method in METHODS}
    exact = effects["exact"]
    roles, gap = exact.role.values.tolist(), _gap(model, others)
    of_method = [areas(model, others, importance(x), roles) for x in effects.values()]
    estimate = xr.IndexVariable("estimate", list(METHODS))
    found = xr.concat(of_method, estimate)[
        ["faithfulness", "faithfulness_low", "faithfulness_high", "cpr", "cmd", "n_edges"]
    ]
    found["effect"] = xr.concat([x.effect.mean("fact") for x in effects.values()], estimate)
    found["effect_of_fact"] = exact.effect
    found = found.merge(exact[["clean", "corrupted"]])
    found = found.merge(_agreement(effects)).merge(node_agreement(model, chosen_by))
    found = found.merge(_circuit(model, chosen_by, others, exact, target, gap))
    found["gap"] = ("measured", gap)
    return found.assign_attrs(target=target)


def heads(model: HookedDecoder, facts: FactSet) -> xr.Dataset:
    """What every head as a whole does for the answer: ``head_lost`` (layer, head, any_fact), clean
    − patched ``logit_diff`` with all of its output from the corrupted run, and ``head_gap``
    (any_fact), clean − corrupted, nats; with the attribute that each fact is ``asked`` for.
    """
    cut = patch(
        model, facts, site="z", groups=("all",), direction="noising", whole_value=False
    ).squeeze("role", drop=True)
    lost = {"head_lost": cut.clean - cut.patched, "head_gap": cut.clean - cut.corrupted}
    found = xr.Dataset(lost).drop_vars([x for x in cut.coords if x not in ("layer", "head")])
    asked = facts.texts.attribute.to_numpy(object)
    return found.rename(fact="any_fact").assign_coords(asked=("any_fact", asked))


def node_agreement(model: HookedDecoder, facts: FactSet) -> xr.Dataset:
    """How well each estimate of patching nodes agrees with exact patching, over layers, heads,
    token roles and facts: ``node_agreement`` (node_estimate, site, measure), with ``_low`` and
    ``_high``.
    """
    options = {"sites": NODES, "direction": "noising", "whole_value": False}
    of = {method: patch_sites(model, facts, method=method, **options) for method in NODE_METHODS}
    rows = []
    for method in NODE_METHODS[1:]:
        pairs = [
            [
                (of[x][site].patched - of[x][site].clean).transpose(..., "fact")
                for x in (method, "exact")
            ]
            for site in NODES
        ]
        rows.append([
            agreement_of(*(x.values.reshape(-1, x.shape[-1]).astype(float) for x in pair))
            for pair in pairs
        ])  # fmt: skip
    found, dims = np.array(rows), ("node_estimate", "site", "measure")
    return xr.Dataset(
        {
            f"node_agreement{end}": (dims, found[:, :, i])
            for i, end in enumerate(("", "_low", "_high"))
        },
        {"node_estimate": list(NODE_METHODS[1:]), "site": list(NODES), "measure": list(MEASURES)},
    )


def _agreement(effects: dict[str, xr.Dataset]) -> xr.Dataset:
    flat = {
        name: x.effect.transpose("writer", "reader", "role", "fact").values
        for name, x in effects.items()
    }
    exact = flat["exact"].reshape(-1, flat["exact"].shape[-1]).astype(float)
    found = np.stack([agreement_of(x.reshape(exact.shape).astype(float), exact)
                      for x in flat.values()])  # fmt: skip
    names = ("agreement", "agreement_low", "agreement_high")
    return xr.Dataset(
        {name: (("estimate", "measure"), found[:, i]) for i, name in enumerate(names)},
        {"estimate": list(METHODS), "measure": list(MEASURES)},
    )


def _gap(model: HookedDecoder, facts: FactSet) -> np.ndarray:
    """Clean − corrupted ``logit_diff`` of each fact, nats."""
    ends = edge_effects(model, facts, method="eap")
    return (ends.clean - ends.corrupted).values


def _circuit(
    model: HookedDecoder,
    chosen_by: FactSet,
    others: FactSet,
    exact: xr.Dataset,
    target: float,
    gap: np.ndarray,
) -> xr.Dataset:
    graph, roles, scores = graph_of(model.cfg), exact.role.values.tolist(), importance(exact)
    sizes = [size for size in SIZES if size <= np.isfinite(scores).sum()]
    tried = np.stack([top_edges(scores, size, "signed") for size in sizes])
    shares = faithfulness(model, chosen_by, tried, roles).faithfulness.values
    reached = bool((shares >= target).any()) and bool(runs_differ(gap))
    first = int((shares >= target).argmax())
    circuit = tried[first] if reached else np.zeros_like(tried[0])
    both = np.stack([circuit, everything_but(circuit, graph)])
    measured = faithfulness(model, others, both, roles)
    numbers = {
        "size": sizes[first],
        "connected_size": connected(circuit, graph).sum(),
        "chosen_faithfulness": shares[first],
    }
    for i, name in enumerate(("circuit_faithfulness", "without_circuit")):
        for end in ("", "_low", "_high"):
            numbers[name + end] = measured[f"faithfulness{end}"].values[i]
    values = {name: ((), float(x) if reached else np.nan) for name, x in numbers.items()}
    values["circuit"] = (("writer", "reader", "role"), circuit.astype(np.int8))
    return xr.Dataset(values, {"writer": graph.writers, "reader": graph.readers, "role": roles})
