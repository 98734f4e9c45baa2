"""Which heads and MLPs attend to names, hold facts and extract them, and since when."""

from dataclasses import dataclass

from analyses.registry import Analysis, imported_late
from interp.config import ALL_HERE, ATTRIBUTES, MOST_WORKERS, ClusterConfig, Device
from interp.fields import LARGEST_SEED, check_fields, number, path


@dataclass(frozen=True)
class LocalizationConfig:
    """The run to localize, the checkpoints, and the number of facts."""

    ckpt: str = path()
    """A run folder."""
    steps: str = "all"
    """all, a list such as 0,200,1000, or every:4 for every fourth checkpoint."""
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
    """Seed of the sampled facts and of shuffled controls."""
    workers: int = number(2, least=1, most=MOST_WORKERS)
    """Checkpoints evaluated in parallel, each in its own process."""
    max_memory: float = number(0.75, above=0)
    """Gigabytes for the activations of a worker."""
    cluster: ClusterConfig = ALL_HERE

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.attributes or len(set(self.attributes)) < len(self.attributes):
            raise ValueError(
                f"attributes is {' '.join(self.attributes) or 'empty'}; name some of "
                f"{', '.join(ATTRIBUTES)}, each once"
            )


ANALYSIS = Analysis(
    "localization",
    "Which heads and MLPs attend to names, hold facts and extract them, and since when.",
    LocalizationConfig,
    (
        "localization --ckpt checkpoints/demo",
        "localization --ckpt checkpoints/demo --steps every:4 --facts 32 --workers 1",
    ),
    imported_late("analyses.localization.localize_run", "run_and_report"),
    "Writes results, from which a second run goes on, and an interactive report.",
)
