"""One page on a run: which heads and MLPs recall facts, since when, and the evidence."""

from dataclasses import dataclass

from analyses.registry import Analysis, imported_late
from interp.config import MOST_WORKERS, Device
from interp.fields import LARGEST_SEED, check_fields, number, path


@dataclass(frozen=True)
class ReportPageConfig:
    """The run, and how much of what has not been computed yet is computed."""

    ckpt: str = path()
    """A run folder."""
    facts: int = number(16, least=2)
    """People asked for each attribute by the quick localization, which is done where
    interp-analyse localization has not been run; its results are kept."""
    out: str | None = path(None)
    """The HTML page; by default report.html in the run folder."""
    device: Device = "auto"
    """auto is CUDA where there is one."""
    seed: int = number(0, least=0, most=LARGEST_SEED)
    """Seed of the sampled facts."""
    workers: int = number(1, least=1, most=MOST_WORKERS)
    """Checkpoints evaluated in parallel, each in its own process."""

    def __post_init__(self) -> None:
        check_fields(self)


ANALYSIS = Analysis(
    "report",
    "One page on a run: which heads and MLPs recall facts, since when, and the evidence.",
    ReportPageConfig,
    ("report --ckpt checkpoints/demo",),
    imported_late("analyses.report.one_page", "run_and_report"),
    "Shows what interp-patch and the other analyses have stored in the run folder.",
)
