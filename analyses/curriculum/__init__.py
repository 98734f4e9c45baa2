"""Which warm-up on few people reduces the loss most within a budget of steps."""

from dataclasses import dataclass, replace

from analyses.options import StudyConfig
from analyses.registry import training_study
from interp.config import TrainConfig


@dataclass(frozen=True)
class CurriculumConfig(StudyConfig):
    """The number of people and the budget of steps of a warm-up study."""

    people: int | None = None
    """Number of people to be learnt; by default twice the preset's, once for paper."""
    steps: int | None = None
    """The budget; by default the preset's, half of it for paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"people": 32, "steps": 16}.items():
            given = getattr(self, name)
            if given is not None and given < least:
                raise ValueError(f"{name} is {given}; warm-ups need at least {least}")

    @property
    def folder(self) -> str:
        if self.people or self.steps:
            n, steps = self.changes["n_people"], self.changes["n_steps"]
            return self.out or f"studies/{self.preset}-{n}-people-{steps}-steps"
        return super().folder

    @property
    def changes(self) -> dict:
        """What the budget changes in the preset's run."""
        paper, base = self.preset == "paper", super().base
        return {
            "n_people": self.people or (base.n_people if paper else 2 * base.n_people),
            "n_steps": self.steps or (base.n_steps // 2 if paper else base.n_steps),
        }

    @property
    def unchanged(self) -> TrainConfig:
        """The run of the preset, with which the names of runs are compared."""
        return super().base

    @property
    def base(self) -> TrainConfig:
        """The run that is varied."""
        return replace(self.unchanged, **self.changes)


ANALYSIS = training_study(
    "curriculum",
    "Which warm-up on few people pays within a budget of steps, with the gain over uniform "
    "sampling on fresh seeds.",
    "analyses.curriculum.warm_up",
    takes="13 runs, 30 minutes",
    examples=("curriculum", "curriculum --people 1000 --steps 1500"),
    config=CurriculumConfig,
)
