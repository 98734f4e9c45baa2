"""Which circuit recalls facts, at every checkpoint, and which estimates find it."""

from dataclasses import dataclass

from analyses.options import CheckpointsConfig
from analyses.registry import Analysis, imported_late
from interp.fields import number


@dataclass(frozen=True)
class CircuitsConfig(CheckpointsConfig):
    """A run, its checkpoints, and how faithful a circuit must be."""

    facts: int = number(192, least=12)
    """How many (person, attribute) pairs: edges are chosen on one half and circuits measured on the
    other. Shares of single heads are always of 768, or as many as there are."""
    faithfulness: float = number(0.8, above=0, below=1)
    """What a circuit must reach on the facts that choose it; its size is the least that does."""


ANALYSIS = Analysis(
    "circuits",
    "Which edges between components recall facts, how faithful such circuits are, when they form.",
    CircuitsConfig,
    (
        "circuits --ckpt checkpoints/demo",
        "circuits --ckpt checkpoints/demo --steps 600,6500 --facts 12 --workers 1",
    ),
    imported_late("analyses.circuits.over_training", "run_and_report"),
    "Writes results, from which a second run goes on, and an interactive report.",
)
