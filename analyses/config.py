"""What the analyses can be told: one dataclass an analysis, the source of its flags."""

from dataclasses import dataclass

from interp.config import ATTRIBUTES, Device


@dataclass(frozen=True)
class LocalizationConfig:
    """Which run to localize, and how thoroughly."""

    ckpt: str
    """A run folder."""
    steps: str = "all"
    """``all``, a list such as ``0,200,1000``, or ``every:4`` for every fourth checkpoint."""
    attributes: tuple[str, ...] = ATTRIBUTES
    """Which attributes the facts are about."""
    facts: int = 128
    """People asked for each attribute."""
    people: int = 640
    """People that a probe is fitted on, for each attribute; all, where there are fewer."""
    out: str | None = None
    """Folder of the results; by default results/localization in the run folder."""
    report: str | None = None
    """The HTML report; by default localization.html in the run folder."""
    device: Device = "auto"
    """auto is CUDA where there is one."""
    seed: int = 0
    """Of the choice of facts, and of shuffled controls."""
    workers: int = 2
    """Checkpoints worked on side by side, each in a process of its own."""
    max_memory: float = 0.75
    """Gigabytes that the activations of a worker may take."""

    def __post_init__(self) -> None:
        least = {"facts": 2, "people": 2, "workers": 1, "seed": 0}
        for name, smallest in least.items():
            if not getattr(self, name) >= smallest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {smallest}")
        if not self.max_memory > 0:
            raise ValueError(f"max_memory is {self.max_memory}; it must be positive")
        if not self.attributes or len(set(self.attributes)) < len(self.attributes):
            raise ValueError(
                f"attributes is {' '.join(self.attributes) or 'empty'}; name some of "
                f"{', '.join(ATTRIBUTES)}, each once"
            )


@dataclass(frozen=True)
class EmergenceConfig:
    """Whose rise is to be timed."""

    curves: str
    """A CSV with the columns step and value and, if wanted, curve (a label) and fact (the sample:
    intervals are over facts). Curves must rise: negate one that falls."""
    out: str | None = None
    """A CSV to write the times to."""
    confidence: float = 0.95
    """Of the intervals."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it can't be negative")
