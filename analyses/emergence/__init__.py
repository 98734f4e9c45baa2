"""When curves rose: onset, midpoint and completion, with intervals over facts."""

from dataclasses import dataclass

from analyses.registry import Analysis, imported_late
from interp.fields import LARGEST_SEED, check_fields, number, path


@dataclass(frozen=True)
class EmergenceConfig:
    """The curves whose rise is timed."""

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


ANALYSIS = Analysis(
    "emergence",
    "When curves rose: onset, midpoint and completion (10, 50 and 90 % of the rise), with "
    "intervals over facts; or that they have no step.",
    EmergenceConfig,
    (
        "emergence --curves docs/accuracy.csv",
        "emergence --curves docs/accuracy.csv --out times.csv",
    ),
    imported_late("analyses.emergence.rise_times", "time_and_write"),
)
