"""Options that analyses share: checkpoints of a run; training studies and their sizes."""

from dataclasses import dataclass, replace
from typing import Literal

from interp.config import ALL_HERE, MOST_WORKERS, PRESETS, ClusterConfig, Device, TrainConfig
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
by 8, the batch by 8; so there are 100 biographies per person instead of 32, and a far smaller
model.
"""


@dataclass(frozen=True)
class CheckpointsConfig:
    """A run, its checkpoints, and where results go."""

    ckpt: str = path()
    """A run folder."""
    steps: str = "all"
    """all, a list such as 0,200,1000, or every:4 for every fourth checkpoint."""
    facts: int = number(48, least=2)
    """How many (person, attribute) pairs, spread evenly over the attributes."""
    out: str | None = path(None)
    """Folder of the results; by default in results, in the run folder."""
    report: str | None = path(None)
    """The HTML report; by default in the run folder."""
    device: Device = "auto"
    """auto is CUDA where there is one."""
    seed: int = number(0, least=0, most=LARGEST_SEED)
    """Seed of the sampled facts."""
    workers: int = number(2, least=1, most=MOST_WORKERS)
    """Checkpoints evaluated in parallel, each in its own process."""
    cluster: ClusterConfig = ALL_HERE

    def __post_init__(self) -> None:
        check_fields(self)


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
    cluster: ClusterConfig = ALL_HERE

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def base(self) -> TrainConfig:
        """The run that is varied."""
        return replace(BASES[self.preset], device=self.device)

    @property
    def folder(self) -> str:
        return self.out or f"studies/{self.preset}"
