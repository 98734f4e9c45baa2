"""Training that repeats itself bit by bit, also on a GPU.

On a CPU it does by itself: sums are made in a fixed order (see ``packed_attention``). On a GPU
embedding gradients are sorted sums and all other gathers have gathers as gradients, but the
gradient of fused attention is summed by atomic additions, and cuBLAS may divide a product in
several ways, unless torch is asked for deterministic algorithms.
Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic


@contextmanager
def deterministic_algorithms(device: str) -> Iterator[None]:
    """Asks torch for deterministic algorithms where ``device`` is a GPU, and restores its settings.

    What is read is always written first, so memory is not filled beforehand.
    """
    if not device.startswith("cuda"):
        yield
        return
    asked = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=warn_only)
        deterministic.fill_uninitialized_memory = filled
