"""Why heads attend to names, and since when."""

from dataclasses import dataclass

from analyses.options import CheckpointsConfig
from analyses.registry import Analysis, imported_late
from interp.fields import number


@dataclass(frozen=True)
class AttentionAttributionConfig(CheckpointsConfig):
    """A run, its checkpoints, and the number of facts."""

    facts: int = number(120, least=12)
    """How many (person, attribute) pairs, spread evenly over the attributes."""


ANALYSIS = Analysis(
    "attention-attribution",
    "Why heads attend to names: which parts of the residual stream make their attention scores.",
    AttentionAttributionConfig,
    (
        "attention-attribution --ckpt checkpoints/demo",
        "attention-attribution --ckpt checkpoints/demo --steps every:4 --facts 48 --workers 1",
    ),
    imported_late("analyses.attention_attribution.scores", "run_and_report"),
    "Writes results, from which a second run goes on, and an interactive report.",
)
