"""What attention scores and outputs are made of: parts of the residual stream, edges and circuits."""

from interp.attribution.attention_scores import score_attribution
from interp.attribution.circuits import (
    areas,
    connected,
    everything,
    everything_but,
    faithfulness,
    greedy_edges,
    importance,
    run_circuits,
    top_edges,
    without_each,
)
from interp.attribution.edges import edge_effects, graph_of

__all__ = [
    "areas",
    "connected",
    "edge_effects",
    "everything",
    "everything_but",
    "faithfulness",
    "graph_of",
    "greedy_edges",
    "importance",
    "run_circuits",
    "score_attribution",
    "top_edges",
    "without_each",
]
