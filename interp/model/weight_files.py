"""The tensors of a checkpoint folder, in one safetensors file or in several with an index."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from interp.model.checkpoint_folder import INDEX, WEIGHTS, weight_files
from interp.model.tensor_file import opened, read_tensors


@dataclass(frozen=True)
class StoredTensor:
    """What the header of a file says of a tensor."""

    path: Path
    """The file that holds it."""
    shape: tuple[int, ...]
    dtype: str
    """As safetensors writes it: F32, BF16, ..."""


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint folder, by name; reads headers only.

    Raises:
        FileNotFoundError, ValueError: as ``weight_files``; a file is damaged, or holds other
            tensors than the index says.
    """
    return {
        name: StoredTensor(path, tuple(one.get_shape()), one.get_dtype())
        for path, file in open_files(folder)
        for name in file.keys()  # noqa: SIM118, not a dict
        for one in [file.get_slice(name)]
    }


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint folder, by name, mapped into memory: a page is read from disk
    when it is first used. Files with a checksum, which interp writes, are read and checked at once.

    Raises:
        FileNotFoundError, ValueError: as ``stored_tensors``; a checksum is of other tensors.
    """
    tensors: dict[str, Tensor] = {}
    for path, listed in weight_files(folder).items():
        of_file = read_tensors(path)
        _check_listed(path, listed, of_file.keys())
        tensors |= of_file
    return tensors


def open_files(folder: Path) -> Iterator[tuple[Path, safe_open]]:
    """Each file of a checkpoint's weights, opened until the next is asked for.

    Raises:
        FileNotFoundError, ValueError: as ``stored_tensors``.
    """
    for path, listed in weight_files(folder).items():
        with opened(path) as file:
            _check_listed(path, listed, file.keys())
            yield path, file


def weight_bytes(folder: Path) -> int:
    """Size of a checkpoint's weights on disk."""
    return sum(path.stat().st_size for path in weight_files(folder))


def weights_path(folder: Path) -> Path:
    """The file of a checkpoint's weights, or the index of several: what errors about the weights as
    a whole name.
    """
    return folder / (INDEX if (folder / INDEX).is_file() else WEIGHTS)


def _check_listed(path: Path, listed: list[str] | None, there: Collection[str]) -> None:
    """Raises a ValueError where a shard holds other tensors than the index says."""
    if listed is None:
        return
    if missing := set(listed) - set(there):
        raise ValueError(f"{path} lacks {min(missing)}, which {INDEX} says it holds; copy it again")
    if extra := set(there) - set(listed):
        raise ValueError(
            f"{path} holds {min(extra)}, which {INDEX} does not say; copy all files again"
        )
