"""What fine-tuning on new people does to what is known of old ones, and which weights carry it."""

from analyses.registry import training_study

ANALYSIS = training_study(
    "finetuning",
    "What fine-tuning on new people costs what is known of old ones, and which weights carry it.",
    "analyses.finetuning.new_people",
    takes="9 runs, 66 fine-tunings, about an hour",
    examples=("finetuning", "finetuning --preset smoke"),
)
