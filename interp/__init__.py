"""Watch a transformer learn facts: training runs on synthetic biographies, and patching over their
checkpoints.

Names are imported when first used, so that ``import interp`` and ``--help`` are quick.
"""

import os
import sys
import warnings
from importlib import import_module

_HOMES = {
    "TrainConfig": "interp.config",
    "preset": "interp.config",
    "train": "interp.training.loop",
    "with_own_people": "interp.data.own_people",
    "train_all": "interp.training.run_many",
    "load_suite": "interp.suite",
    "audit": "interp.results.audit",
    "localize": "interp.results.localize",
    "patch": "interp.patching.act_patch",
    "patch_suite": "interp.results.sweep",
    "plan": "interp.patching.cost",
    "recovered": "interp.results.metrics",
    "effect": "interp.results.metrics",
    "interval": "interp.results.metrics",
    "build_report": "interp.report.patching_page",
}
_MODULES = {
    "attribution": "interp.attribution",
    "config": "interp.config",
    "dynamics": "interp.dynamics",
    "facts": "interp.data.facts",
    "figures": "interp.report.figures",
    "localization": "interp.localization",
    "patching": "interp.patching",
    "suite": "interp.suite",
}
__all__ = [*_HOMES, *_MODULES]

# Threads of torch that wait for work spin; beside any other job on the same cores that can slow
# them ten times. Read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
# Without, cuBLAS is not deterministic, which training on a GPU is. Read at its first product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if "ipykernel.zmqshell" in sys.modules:
    # In a notebook without ipywidgets tqdm, which several libraries import, warns that it falls
    # back to text; it does so when it is first imported.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module("tqdm.auto")


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(_MODULES[name])
    raise AttributeError(f"module 'interp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
