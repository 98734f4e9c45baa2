"""Safetensors files with a checksum of their tensors, so that a flipped bit is noticed.

The checksum is one more entry of the file's metadata, which other readers ignore; files without it,
as everybody else writes them, are read as they are.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

_CHECKSUM = "interp_checksum"


def to_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file with ``metadata`` and its checksum."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    digests = {name: digest_of(tensor) for name, tensor in tensors.items()}
    return _sorted_header(save(tensors, metadata | {_CHECKSUM: _checksum(digests, metadata)}))


def _sorted_header(content: bytes) -> bytes:
    """The file with its metadata sorted. Safetensors writes them in varying order, but the same
    weights should give the same file.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[end:]


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file opened for reading.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again, or train again") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file.

    Raises:
        ValueError: it is damaged, or its checksum is of other tensors.
    """
    with opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        metadata = file.metadata() or {}
    if _CHECKSUM in metadata:
        check_digests(path, {name: digest_of(x) for name, x in tensors.items()}, metadata)
    return tensors


def check_digests(path: Path, digests: dict[str, str], metadata: dict[str, str]) -> None:
    """Raises a ValueError where a file's checksum is not that of its tensors and metadata."""
    others = {name: text for name, text in metadata.items() if name != _CHECKSUM}
    if metadata.get(_CHECKSUM, "") not in ("", _checksum(digests, others)):
        raise ValueError(
            f"{path} is damaged (its checksum is of other tensors); copy it again, or train again"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether every number of a tensor is one that fp32 can hold; NaN and infinities are none."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:  # float8, which has no minimum in torch
        tensor = tensor.to(torch.float32)
    ends = torch.stack(tensor.aminmax())  # NaN if any is; ten times as fast as isfinite().all()
    return bool(ends.to(torch.float32).isfinite().all())


def digest_of(tensor: Tensor) -> str:
    """Shape, type and digest of a tensor, such as 489x64:float32:1b2c…"""
    raw = tensor.contiguous().flatten().view(torch.uint8).numpy()
    shape = "x".join(map(str, tensor.shape))
    digest = hashlib.blake2b(raw, digest_size=8).hexdigest()
    return f"{shape}:{str(tensor.dtype).removeprefix('torch.')}:{digest}"


def _checksum(digests: dict[str, str], metadata: dict[str, str]) -> str:
    parts = sorted([*digests.items(), *metadata.items()])
    return hashlib.sha256(repr(parts).encode()).hexdigest()
