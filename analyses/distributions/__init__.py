"""What changes if some people are sampled more often than others."""

from analyses.registry import training_study

ANALYSIS = training_study(
    "distributions",
    "What changes if people are sampled by an inverse power law, or some are celebrities: plateau, "
    "final loss, accuracy by frequency.",
    "analyses.distributions.sampling",
    takes="54 runs, 80 minutes",
    examples=("distributions",),
)
