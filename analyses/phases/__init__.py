"""When the plateau begins and ends, and where attention goes."""

from dataclasses import dataclass
from pathlib import Path

from analyses.options import StudyConfig
from analyses.registry import training_study
from interp.config import ALL_HERE
from interp.fields import path


@dataclass(frozen=True)
class PhasesConfig(StudyConfig):
    """Runs whose phases are measured: new ones of a size, or existing ones."""

    ckpt: tuple[str, ...] | None = path(None)
    """Run folders to read, which may differ in the seed only; then nothing is trained, and
    preset and workers are of no use."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ckpt and self.cluster != ALL_HERE:
            raise ValueError(
                "runs given by ckpt are read here, not trained; leave out the options of clusters"
            )
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


ANALYSIS = training_study(
    "phases",
    "When the plateau begins and ends, where attention goes, and since when the model hallucinates "
    "about held-out people.",
    "analyses.phases.training_phases",
    takes="3 runs, 10 minutes",
    examples=("phases", "phases --ckpt checkpoints/demo"),
    config=PhasesConfig,
)
