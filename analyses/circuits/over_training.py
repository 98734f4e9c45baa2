"""Which circuit recalls facts at every checkpoint, how large is it, and which estimates find it?

At each checkpoint every edge's effect (``interp.attribution.edges``) is found exactly and by each
estimate, on the same facts; circuits of the most important edges are run exactly
(``interp.attribution.circuits``). The circuit of a checkpoint is the smallest, of ``SIZES``, whose
edges of largest signed importance reach the faithfulness asked for.
"""

from typing import get_args

import numpy as np
import xarray as xr

from analyses.agreement import MEASURES, agreement_of
from analyses.checkpoints import analyse_checkpoints
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
from interp.attribution.edges import EdgeMethod, Graph, edge_effects, graph_of
from interp.data.facts import FactSet
from interp.model.decoder import HookedDecoder
from interp.suite import Suite

NAME = "circuits"
METHODS = get_args(EdgeMethod)
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
    return {NAME: of_model(suite.load(step, device=device), facts, target)}


def of_model(model: HookedDecoder, facts: FactSet, target: float) -> xr.Dataset:
    """Effects, agreement, areas and the circuit of one checkpoint.

    Returns:
        ``effect`` (estimate, writer, reader, role): mean over facts, noising, nats;
        ``effect_of_fact`` (writer, reader, role, fact): the exact one. ``agreement`` (estimate,
        measure) and ``faithfulness`` (estimate, ranking, fraction), each with ``_low`` and
        ``_high``; ``cpr`` and ``cmd`` (estimate). ``circuit`` (writer, reader, role): 1 in it;
        ``size``, its number of edges, NaN if none of ``SIZES`` suffices; ``connected_size``;
        ``circuit_faithfulness`` and ``without_circuit``, with intervals. ``clean`` and
        ``corrupted`` (fact).
    """
    effects = {method: edge_effects(model, facts, method=method) for method in METHODS}
    exact, graph = effects["exact"], graph_of(model.cfg)
    roles = exact.role.values.tolist()
    of_method = [areas(model, facts, importance(x), roles) for x in effects.values()]
    found = xr.concat(of_method, xr.IndexVariable("estimate", list(METHODS)))[
        ["faithfulness", "faithfulness_low", "faithfulness_high", "cpr", "cmd", "n_edges"]
    ]
    means = [x.effect.mean("fact") for x in effects.values()]
    found["effect"] = xr.concat(means, xr.IndexVariable("estimate", list(METHODS)))
    found["effect_of_fact"] = exact.effect
    found = found.merge(exact[["clean", "corrupted"]]).merge(_agreement(effects))
    return found.merge(_circuit(model, facts, exact, graph, roles, target)).assign_attrs(
        target=target
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


def _circuit(
    model: HookedDecoder,
    facts: FactSet,
    exact: xr.Dataset,
    graph: Graph,
    roles: list[str],
    target: float,
) -> xr.Dataset:
    scores = importance(exact)
    sizes = [size for size in SIZES if size <= np.isfinite(scores).sum()]
    tried = np.stack([top_edges(scores, size, "signed") for size in sizes])
    reached = faithfulness(model, facts, tried, roles).faithfulness.values >= target
    first = int(reached.argmax()) if reached.any() else -1
    circuit = tried[first] if reached.any() else np.zeros_like(tried[0])
    pruned = connected(circuit, graph)
    both = faithfulness(model, facts, np.stack([circuit, everything_but(circuit, graph)]), roles)
    values = {
        "circuit": (("writer", "reader", "role"), circuit.astype(np.int8)),
        "size": ((), float(sizes[first]) if reached.any() else np.nan),
        "connected_size": ((), float(pruned.sum()) if reached.any() else np.nan),
    }
    for i, name in enumerate(("circuit_faithfulness", "without_circuit")):
        for end in ("", "_low", "_high"):
            value = float(both[f"faithfulness{end}"][i])
            values[name + end] = ((), value if reached.any() else np.nan)
    return xr.Dataset(values, {"writer": graph.writers, "reader": graph.readers, "role": roles})
