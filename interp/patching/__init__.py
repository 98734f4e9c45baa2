"""Interventions on a ``HookedDecoder``, or by hooks on any hooked model."""

from interp.patching.intervention import Intervention
from interp.patching.patch import patch, patch_sites

__all__ = ["Intervention", "patch", "patch_sites"]
