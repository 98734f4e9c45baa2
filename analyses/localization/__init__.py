"""Which heads and MLPs attend to names, hold facts and extract them, and since when."""

from dataclasses import dataclass

from analyses.registry import Analysis, imported_late
from interp.config import ALL_HERE, MOST_WORKERS, ClusterConfig, Device
from interp.fields import LARGEST_SEED, check_fields, number, path

N_PEOPLE = 640
"""By default."""


@dataclass(frozen=True)
class LocalizationConfig:
    """The run to localize, the checkpoints, and the number of facts."""

    ckpt: str = path()
    """A run folder, or a folder of other checkpoints; then give facts_csv."""
    steps: str = "all"
    """all, a list such as 0,200,1000, or every:4 for every fourth checkpoint."""
    attributes: tuple[str, ...] | None = None
    """Which attributes the facts are about; by default all of the run's."""
    facts: int = number(128, least=2)
    """People asked for each attribute; of a file, facts in all at most."""
    facts_csv: str | None = path(None)
    """A file of facts of your own instead of the run's, as for interp-patch. Attributes are then
    relations of the file, by default all."""
    people: int = number(N_PEOPLE, least=2)
    """People that a probe is fitted on, for each attribute; all, where there are fewer."""
    out: str | None = path(None)
    """Folder of the results; by default results/localization in the run folder, or for checkpoints
    of others results/NAME/localization in the current one."""
    report: str | None = path(None)
    """The HTML report; by default localization.html in the run folder, or in results/NAME."""
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
        if self.attributes is not None and (
            not self.attributes or len(set(self.attributes)) < len(self.attributes)
        ):
            raise ValueError(
                f"attributes is {' '.join(self.attributes) or 'empty'}; name some of the run's, "
                "each once"
            )
        if self.facts_csv and self.people != N_PEOPLE:
            raise ValueError(
                f"people is {self.people}, which does nothing with facts_csv: probes are fitted on "
                "people of a run; leave it out"
            )


ANALYSIS = Analysis(
    "localization",
    "Which heads and MLPs attend to names, hold facts and extract them, and since when.",
    LocalizationConfig,
    (
        "localization --ckpt checkpoints/demo",
        "localization --ckpt checkpoints/demo --steps every:4 --facts 32 --workers 1",
        "localization --ckpt checkpoints/demo --facts-csv mine.csv",
    ),
    imported_late("analyses.localization.localize_run", "run_and_report"),
    "Writes results, from which a second run goes on, and an interactive report.",
)
