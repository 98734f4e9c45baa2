"""When a model begins to hallucinate about people it was never told of, and what it says."""

from analyses.registry import training_study

ANALYSIS = training_study(
    "hallucination",
    "When hallucination about unknown people begins relative to knowledge of known ones, and what "
    "is said of them.",
    "analyses.hallucination.known_and_unknown",
    takes="3 runs, half an hour",
    examples=("hallucination", "hallucination --preset smoke"),
)
