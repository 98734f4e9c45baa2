"""What a model learns when trained with another checkpoint's attention."""

from analyses.registry import training_study

ANALYSIS = training_study(
    "attention-patching",
    "What a model learns when trained with the attention patterns of another checkpoint, by that "
    "checkpoint's step: from the start, frozen, or learnt on few people.",
    "analyses.attention_patching.reference_patterns",
    takes="45 runs, 80 minutes",
    examples=("attention-patching",),
)
