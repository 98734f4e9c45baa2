"""When a model learns: the plateau and its end, when curves rise, and how both scale."""

from interp.dynamics.plateau import (
    MARGIN,
    Phases,
    knowledge_start,
    phases,
    plateau_crossing,
    plateau_end,
    plateau_end_interval,
    rises_from,
)
from interp.dynamics.power_law import PowerLaw, power_law

__all__ = [
    "MARGIN",
    "Phases",
    "PowerLaw",
    "knowledge_start",
    "phases",
    "plateau_crossing",
    "plateau_end",
    "plateau_end_interval",
    "power_law",
    "rises_from",
]
