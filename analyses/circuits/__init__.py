"""Which circuit recalls facts, at every checkpoint, and which estimates find it."""

from dataclasses import dataclass

from analyses.registry import Analysis, imported_late
from interp.config import MOST_WORKERS, Device
from interp.fields import LARGEST_SEED, check_fields, number, path


@dataclass(frozen=True)
class CircuitsConfig:
    """The run, its checkpoints, and the number of facts."""

    ckpt: str = path()
    """A run folder."""
    steps: str = "all"
    """all, a list such as 0,200,1000, or every:4 for every fourth checkpoint."""
    facts: int = number(48, least=2)
    """How many (person, attribute) pairs, spread evenly over the attributes."""
    faithfulness: float = number(0.8, above=0, below=1)
    """What a circuit must reach; its size is the least that does."""
    out: str | None = path(None)
    """Folder of the results; by default results/circuits in the run folder."""
    report: str | None = path(None)
    """The HTML report; by default circuits.html in the run folder."""
    device: Device = "auto"
    """auto is CUDA where there is one."""
    seed: int = number(0, least=0, most=LARGEST_SEED)
    """Seed of the sampled facts."""
    workers: int = number(2, least=1, most=MOST_WORKERS)
    """Checkpoints evaluated in parallel, each in its own process."""

    def __post_init__(self) -> None:
        check_fields(self)


ANALYSIS = Analysis(
    "circuits",
    "Which edges between components recall facts, how faithful such circuits are, when they form.",
    CircuitsConfig,
    (
        "circuits --ckpt checkpoints/demo",
        "circuits --ckpt checkpoints/demo --steps 600,6500 --facts 12 --workers 1",
    ),
    imported_late("analyses.circuits.over_training", "run_and_report"),
    "Writes results, from which a second run goes on, and an interactive report.",
)
