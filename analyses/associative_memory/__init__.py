"""What a toy associative memory forgets when it is fine-tuned on new pairs."""

from dataclasses import dataclass
from typing import Literal

from analyses.registry import Analysis, imported_late
from interp.fields import check_fields, number, path


@dataclass(frozen=True)
class AssociativeMemoryConfig:
    """The size of the memory, the number of seeds, and where the results go."""

    preset: Literal["smoke", "paper"] = "paper"
    """smoke takes seconds and shows nothing but that all works; paper is the paper's own size."""
    seeds: int = number(5, least=1, most=20)
    """Seeds 0, 1, ...: each has pairs, initial weights and batches of its own."""
    out: str | None = path(None)
    """Folder of tables and figures; by default studies/associative-memory, or
    studies/associative-memory-smoke."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def folder(self) -> str:
        smoke = "-smoke" if self.preset == "smoke" else ""
        return self.out or f"studies/associative-memory{smoke}"


ANALYSIS = Analysis(
    "associative-memory",
    "What a one-hidden-layer MLP that stores key-value pairs forgets when it is fine-tuned on new "
    "pairs, with and without replay of old ones.",
    AssociativeMemoryConfig,
    ("associative-memory", "associative-memory --seeds 3 --out studies/three-seeds"),
    imported_late("analyses.associative_memory.memory_page", "run"),
    "Trains toy models of its own (arXiv 2503.21676, appendix F.4) at the paper's size on one CPU "
    "core. Writes tables (CSV) and a page of figures to OUT.",
)
