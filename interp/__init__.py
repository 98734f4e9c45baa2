"""Watch a transformer learn facts: training runs on synthetic biographies, and patching over their
checkpoints.

Names are imported when first used, so that ``import interp`` and ``--help`` are quick.
"""

from importlib import import_module

_HOMES = {
    "TrainConfig": "interp.config",
    "preset": "interp.config",
    "train": "interp.training.loop",
    "train_all": "interp.training.runs",
    "load_suite": "interp.suite",
    "patch": "interp.patching.patch",
    "patch_suite": "interp.sweep",
    "plan": "interp.patching.plan",
    "recovered": "interp.results",
    "effect": "interp.results",
    "interval": "interp.results",
    "build_report": "interp.report",
}
_MODULES = (
    "config",
    "dynamics",
    "emergence",
    "facts",
    "figures",
    "localization",
    "model",
    "patching",
    "report",
    "results",
    "suite",
    "sweep",
    "training",
)
__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(f"interp.{name}")
    raise AttributeError(f"module 'interp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
