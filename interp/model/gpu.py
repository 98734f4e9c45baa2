"""What running on a GPU needs: copies that the CPU does not wait for, and the sizes of batches,
which follow from the GPU's memory and number of multiprocessors.
"""

from math import inf

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

TOKENS_OF_A_MULTIPROCESSOR = 512
"""Chosen, not measured: four tiles of 128 rows, the largest that matrix products are divided into,
keep a multiprocessor busy even with one tile of columns, as at width 128.
"""


def to_device(
    x: Shaped[np.ndarray, "*axes"], device: torch.device | str
) -> Shaped[Tensor, "*axes"]:
    """``x`` on ``device``; on a GPU copied from pinned memory, while the CPU goes on."""
    here = torch.from_numpy(x)
    if torch.device(device).type != "cuda":
        return here.to(device)
    return here.pin_memory().to(device, non_blocking=True)


def free_bytes(device: torch.device) -> float:
    """Bytes that new tensors can take on a GPU: those that are free, and those that torch holds in
    reserve. Infinite on a CPU, whose callers have a limit of their own.
    """
    if device.type != "cuda":
        return inf
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(free + unused)


def tokens_that_fill(device: torch.device) -> int:
    """How many tokens are computed together so that every multiprocessor of a GPU is busy."""
    properties = torch.cuda.get_device_properties(device)
    return TOKENS_OF_A_MULTIPROCESSOR * properties.multi_processor_count
