"""Settings of this process that make many middle-sized operations quick; the commands make them."""

import ctypes
import os
import sys

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # of glibc's mallopt


def tune_process() -> None:
    """Call before torch is imported. Keeps freed memory, since fetching it anew from the system can
    cost more than filling it, and lets waiting threads spin only briefly: those that spin for long
    slow each other many times over as soon as another job wants a core.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
