"""What holds forgetting and hallucination back, and what it costs."""

from dataclasses import dataclass

from analyses.options import StudyConfig
from analyses.registry import training_study

METHODS = (
    *("plain", "replay", "freeze-attention", "freeze-mlp", "freeze-lower-layers"),
    *("sparse-gradient", "sparse-memory", "sparse-unused", "sparse-random"),
    *("lora", "l2", "ewc", "distil", "slots", "warmup"),
)
"""Ways to fine-tune on new people."""
UNKNOWN_PEOPLE = "unknown-people"
"""Training on people whose values change: against hallucination."""


@dataclass(frozen=True)
class MitigationConfig(StudyConfig):
    """Which ways are compared."""

    method: tuple[str, ...] = (*METHODS, UNKNOWN_PEOPLE)
    """Some of plain, replay, freeze-attention, freeze-mlp, freeze-lower-layers, sparse-gradient,
    sparse-memory, sparse-unused, sparse-random, lora, l2, ewc, distil, slots and warmup, which hold
    forgetting back, and unknown-people, which holds hallucination back. Tables and page are of
    these only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = (*METHODS, UNKNOWN_PEOPLE)
        for name in self.method:
            if name not in known:
                raise ValueError(f"no method {name!r}; there are {', '.join(known)}")
        if not self.method:
            raise ValueError(f"method is empty; name some of {', '.join(known)}")


ANALYSIS = training_study(
    "mitigation",
    "What holds forgetting and hallucination back, how well, and at what cost.",
    "analyses.mitigation.compare_methods",
    takes="3 runs, 81 fine-tunings, 6 more runs, an hour",
    examples=("mitigation", "mitigation --method plain replay ewc"),
    config=MitigationConfig,
)
