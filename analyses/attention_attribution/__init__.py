"""Why heads attend to names, and since when."""

from dataclasses import dataclass

from analyses.registry import Analysis, imported_late
from interp.config import MOST_WORKERS, Device
from interp.fields import LARGEST_SEED, check_fields, number, path


@dataclass(frozen=True)
class AttentionAttributionConfig:
    """The run, its checkpoints, and the number of facts."""

    ckpt: str = path()
    """A run folder."""
    steps: str = "all"
    """all, a list such as 0,200,1000, or every:4 for every fourth checkpoint."""
    facts: int = number(120, least=2)
    """How many (person, attribute) pairs, spread evenly over the attributes."""
    out: str | None = path(None)
    """Folder of the results; by default results/attention-attribution in the run folder."""
    report: str | None = path(None)
    """The HTML report; by default attention-attribution.html in the run folder."""
    device: Device = "auto"
    """auto is CUDA where there is one."""
    seed: int = number(0, least=0, most=LARGEST_SEED)
    """Seed of the sampled facts."""
    workers: int = number(2, least=1, most=MOST_WORKERS)
    """Checkpoints evaluated in parallel, each in its own process."""

    def __post_init__(self) -> None:
        check_fields(self)


ANALYSIS = Analysis(
    "attention-attribution",
    "Why heads attend to names: which parts of the residual stream make their attention scores.",
    AttentionAttributionConfig,
    (
        "attention-attribution --ckpt checkpoints/demo",
        "attention-attribution --ckpt checkpoints/demo --steps every:4 --facts 48 --workers 1",
    ),
    imported_late("analyses.attention_attribution.scores", "run_and_report"),
    "Writes results, from which a second run goes on, and an interactive report.",
)
