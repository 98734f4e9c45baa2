"""What attention scores are made of; edges between components, and circuits of them."""

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
