"""Interventions on a ``HookedDecoder``."""

from interp.patching.patch import Intervention, patch, patch_sites

__all__ = ["Intervention", "patch", "patch_sites"]
