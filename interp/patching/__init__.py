"""Activation patching on a ``HookedDecoder``."""

from interp.patching.patch import patch, patch_sites

__all__ = ["patch", "patch_sites"]
