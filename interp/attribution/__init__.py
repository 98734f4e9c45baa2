"""What attention scores are made of, what heads move, how much of the answer goes through each
attention edge; edges between components, and circuits of them.
"""

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
from interp.attribution.pattern_attribution import pattern_attribution
from interp.attribution.value_attribution import value_attribution

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
    "pattern_attribution",
    "run_circuits",
    "score_attribution",
    "top_edges",
    "value_attribution",
    "without_each",
]
