"""How many sentence templates per fact training needs."""

from analyses.registry import training_study

ANALYSIS = training_study(
    "templates",
    "In how many sentences a fact must be expressed, and whether their order must change.",
    "analyses.templates.sentence_templates",
    takes="6 runs, 15 minutes",
    examples=("templates",),
)
