"""Exact and fast patching of a ``HookedDecoder``, and patching by hooks of any other hooked model.

Names are imported when first used, so that figures can read ``sites`` without torch.
"""

from importlib import import_module

_HOMES = {
    "Intervention": "interp.patching.intervention",
    "patch": "interp.patching.act_patch",
    "patch_sites": "interp.patching.act_patch",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'interp.patching' has no attribute {name!r}")
