"""What the analyses can be told: one dataclass an analysis, the source of its flags."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from interp.config import ATTRIBUTES, MOST_WORKERS, PRESETS, Device, TrainConfig
from interp.fields import LARGEST_SEED, check_fields, number, path

Size = Literal["smoke", "laptop", "paper"]
_LAPTOP = replace(
    PRESETS["tiny"],
    n_people=320,
    n_held_out=128,
    n_first_names=20,
    n_middle_names=20,
    n_last_names=20,
    n_cities=24,
    n_universities=16,
    n_majors=12,
    n_companies=20,
    n_birth_years=10,
    n_steps=2000,
    batch_size=16,
    dense_every=20,
    dense_until=400,
    checkpoint_every=50,
    n_evaluated=320,
    precision="fp32",
)
BASES: dict[Size, TrainConfig] = {
    "smoke": replace(
        _LAPTOP,
        n_people=24,
        n_held_out=16,
        n_layers=1,
        n_heads=2,
        d_model=16,
        d_mlp=32,
        n_steps=12,
        batch_size=4,
        dense_every=4,
        dense_until=12,
        checkpoint_every=12,
    ),
    "laptop": _LAPTOP,
    "paper": TrainConfig(),
}
"""The run that a study of each size varies. ``laptop`` is the paper's divided: people by 200, steps
by 8, the batch by 8; so a person is met 100 times instead of 32, by a far smaller model.
"""


@dataclass(frozen=True)
class LocalizationConfig:
    """Which run to localize, and how thoroughly."""

    ckpt: str = path()
    """A run folder."""
    steps: str = "all"
    """``all``, a list such as ``0,200,1000``, or ``every:4`` for every fourth checkpoint."""
    attributes: tuple[str, ...] = ATTRIBUTES
    """Which attributes the facts are about."""
    facts: int = number(128, least=2)
    """People asked for each attribute."""
    people: int = number(640, least=2)
    """People that a probe is fitted on, for each attribute; all, where there are fewer."""
    out: str | None = path(None)
    """Folder of the results; by default results/localization in the run folder."""
    report: str | None = path(None)
    """The HTML report; by default localization.html in the run folder."""
    device: Device = "auto"
    """auto is CUDA where there is one."""
    seed: int = number(0, least=0, most=LARGEST_SEED)
    """Of the choice of facts, and of shuffled controls."""
    workers: int = number(2, least=1, most=MOST_WORKERS)
    """Checkpoints worked on side by side, each in a process of its own."""
    max_memory: float = number(0.75, above=0)
    """Gigabytes that the activations of a worker may take."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.attributes or len(set(self.attributes)) < len(self.attributes):
            raise ValueError(
                f"attributes is {' '.join(self.attributes) or 'empty'}; name some of "
                f"{', '.join(ATTRIBUTES)}, each once"
            )


@dataclass(frozen=True)
class StudyConfig:
    """How large a study of training runs is, and where they are kept."""

    preset: Size = "laptop"
    """smoke takes seconds and shows nothing but that all works; laptop takes up to an hour and a
    half; paper is the paper's own size, for a GPU."""
    out: str | None = path(None)
    """Folder of tables and figures; by default studies/PRESET, or one named after what else was
    given. Runs are kept in its folder runs, where all studies of the same size share them."""
    workers: int = number(2, least=1, most=MOST_WORKERS)
    """Runs trained side by side, each in a process of its own."""
    device: Device = "auto"
    """auto is CUDA where there is one."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def base(self) -> TrainConfig:
        """The run that is varied."""
        return replace(BASES[self.preset], device=self.device)

    @property
    def folder(self) -> str:
        return self.out or f"studies/{self.preset}"


@dataclass(frozen=True)
class PhasesConfig(StudyConfig):
    """Which runs' phases are read off: new ones of a size, or those there are."""

    ckpt: tuple[str, ...] | None = path(None)
    """Run folders to read, which may differ in the seed only; then nothing is trained, and
    preset and workers are of no use."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for folder in self.ckpt or ():
            if not (Path(folder) / "run.json").is_file():
                raise ValueError(
                    f"no run.json in {folder}; give run folders, such as checkpoints/demo"
                )

    @property
    def folder(self) -> str:
        if self.ckpt:
            return self.out or f"studies/{Path(self.ckpt[0]).name}"
        return super().folder


@dataclass(frozen=True)
class CurriculumConfig(StudyConfig):
    """The people and steps that a warm-up is sought for."""

    people: int | None = None
    """How many are to be learnt; by default twice the preset's, once for paper."""
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
        """The preset's run, after which runs are named."""
        return super().base

    @property
    def base(self) -> TrainConfig:
        """The run that is varied."""
        return replace(self.unchanged, **self.changes)


@dataclass(frozen=True)
class EmergenceConfig:
    """Whose rise is to be timed."""

    curves: str = path()
    """A CSV with the columns step and value and, if wanted, curve (a label) and fact (the sample:
    intervals are over facts). Curves must rise: negate one that falls."""
    out: str | None = path(None)
    """A CSV to write the times to."""
    confidence: float = number(0.95, above=0, most=0.9999)
    """Of the intervals."""
    seed: int = number(0, least=0, most=LARGEST_SEED)
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        check_fields(self)
