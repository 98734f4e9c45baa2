"""One pass over the weights of a checkpoint of any model: digests, numbers that are none, and a
sample of each matrix, by which steps are compared.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from interp.model.families import FAMILIES
from interp.model.tensor_file import check_digests, digest_of, is_finite
from interp.model.weight_files import open_files

N_SAMPLED = 4096
"""Numbers of a matrix that are compared between steps. Two unrelated ones then correlate by about
1 ÷ √4096 = 0.016.
"""


@dataclass(frozen=True)
class Scan:
    """What is known of a checkpoint's tensors, by name."""

    files: dict[str, str]
    """Name of the file that holds it."""
    digests: dict[str, str]
    """``tensor_file.digest_of``."""
    not_finite: tuple[str, ...]
    """Tensors with NaN, or with numbers that fp32 can't hold."""
    samples: dict[str, np.ndarray]
    """``N_SAMPLED`` numbers of each matrix, at the same places at every step."""


def scan(folder: Path) -> Scan:
    """Reads each file of a checkpoint once, mapped into memory; tensors are digested in parallel.

    Raises:
        FileNotFoundError, ValueError: as ``weight_files.stored_tensors``; a checksum is of other
            tensors.
    """
    files: dict[str, str] = {}
    digests: dict[str, str] = {}
    not_finite: list[str] = []
    samples: dict[str, np.ndarray] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for path, file in open_files(folder):
            of_file: dict[str, str] = {}
            names = sorted(file.keys())
            for name, found in _in_parallel(
                pool, ((name, file.get_tensor(name)) for name in names)
            ):
                files[name] = path.name
                of_file[name], finite, sample = found
                if any(family.buffers.fullmatch(name) for family in FAMILIES.values()):
                    continue  # masks and the like, the same in every model
                if not finite:
                    not_finite.append(name)
                if sample is not None:
                    samples[name] = sample
            check_digests(path, of_file, file.metadata() or {})
            digests |= of_file
    return Scan(files, digests, tuple(not_finite), samples)


Found = tuple[str, bool, np.ndarray | None]


def _in_parallel(
    pool: ThreadPoolExecutor, tensors: Iterator[tuple[str, Tensor]]
) -> list[tuple[str, Found]]:
    found: list[tuple[str, Future]] = [(name, pool.submit(_look, x)) for name, x in tensors]
    return [(name, future.result()) for name, future in found]


def _look(tensor: Tensor) -> Found:
    """Digest, whether all is finite, and the sample of a matrix."""
    sample = None
    if tensor.is_floating_point() and tensor.ndim > 1 and tensor.numel():
        sample = tensor.flatten()[_places(tensor.numel())].to(torch.float32).numpy()
    return digest_of(tensor), is_finite(tensor), sample


@lru_cache(64)
def _places(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(n, (min(n, N_SAMPLED),), generator=generator)
