"""How the plateau grows with the number of people."""

from analyses.registry import training_study

ANALYSIS = training_study(
    "scaling",
    "How the plateau grows with the number of people, as a power law with intervals, and what "
    "batch size, width and learning rate change.",
    "analyses.scaling.plateau_length",
    takes="21 runs, 50 minutes",
    examples=("scaling", "scaling --preset paper --workers 1"),
)
