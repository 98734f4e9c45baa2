"""A checkpoint on disk is an ordinary Hugging Face folder: ``config.json`` and
``model.safetensors``, or several shards with an index.

Ours are GPT-NeoX's, whose layout a ``HookedDecoder`` keeps. Folders of other ``FAMILIES`` are read,
not written.
"""

import hashlib
import json
import re
import shutil
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from interp.files import read_json, temporary_of, write_bytes, write_json
from interp.model.attention import apart, fused
from interp.model.checkpoint_folder import INDEX, WEIGHTS, weight_files
from interp.model.decoder import DecoderConfig, HookedDecoder
from interp.model.families import FAMILIES
from interp.model.gpt_neox import GPT_NEOX, neox_config
from interp.model.hf_config import Family, decoder_config, family_of
from interp.model.tensor_file import check_digests, digest_of, is_finite, to_bytes
from interp.model.weight_files import open_files, read_weights, stored_tensors, weights_path

_FLOATS = ("F64", "F32", "F16", "BF16")


def write_checkpoint(model: HookedDecoder, folder: Path, *, dtype: torch.dtype) -> None:
    """Writes ``model`` to ``folder``, replacing what is there; a kill leaves no half-written folder
    under that name.
    """
    config = neox_config(model.cfg)
    temporary = temporary_of(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        weights = {
            GPT_NEOX.their_name(name): weight.detach().to("cpu", dtype)
            for name, weight in model.state_dict().items()
        }
        write_bytes(temporary / WEIGHTS, to_bytes(weights, {"format": "pt"}))
        write_json(temporary / "config.json", config)
        replaced = temporary_of(folder.with_name(f"{folder.name}.old"))
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_checkpoint(folder: Path, *, device: str = "cpu") -> HookedDecoder:
    """The model in a step folder, in fp32 and evaluation mode.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the config or the weights are damaged, incomplete, not supported, or don't
            belong together; a weight is not finite.
    """
    cfg, family, tied = _checked(folder, device)
    with torch.device("meta"):
        model = HookedDecoder(cfg)
    weights, path = {}, weights_path(folder)
    for name, tensor in read_weights(folder).items():
        if not family.buffers.fullmatch(name):
            ours, weight = family.our_name(name), _finite(path, name, tensor)
            weights[ours] = family.to_ours(ours, weight, cfg).to(device)
    if tied:
        embedding = weights["embed.weight"]
        if not weights.setdefault("unembed.weight", embedding.clone()).equal(embedding):
            raise ValueError(
                f"{path} has an output layer that is not the embedding, config.json says that it is"
                " (tie_word_embeddings); they don't belong together"
            )
    if family.separate:
        weights = fused(weights, cfg.n_key_value_heads)
    for name, weight in model.state_dict().items():
        if name not in weights:  # biases, or factors of norms, that such models do not have
            value = float(name.endswith("weight"))
            weights[name] = torch.full(weight.shape, value, dtype=torch.float32, device=device)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def check_checkpoint(folder: Path, *, device: str = "cpu") -> DecoderConfig:
    """The config of a step folder after its files, keys and the names, shapes and types of its
    weights were checked; reads no weights.

    Raises:
        FileNotFoundError, ValueError: as ``read_checkpoint``, but for values of weights.
    """
    return _checked(folder, device)[0]


def _checked(folder: Path, device: str) -> tuple[DecoderConfig, Family, bool]:
    """``check_checkpoint``'s config, its family, and whether the unembedding is the embedding."""
    weight_files(folder)  # which files are missing is said first
    given, path = read_json(folder / "config.json"), folder / "config.json"
    family = family_of(given, path, FAMILIES)
    cfg = decoder_config(given, path, family, device=device)
    path = weights_path(folder)
    stored = {
        name: (tensor.shape, tensor.dtype)
        for name, tensor in stored_tensors(folder).items()
        if not family.buffers.fullmatch(name)
    }
    tied = given.get("tie_word_embeddings", family.others["tie_word_embeddings"])
    _check_tensors(path, stored, cfg, family, optional={"unembed.weight"} if tied else set())
    return cfg, family, tied


def _check_tensors(
    path: Path,
    stored: dict[str, tuple[tuple[int, ...], str]],
    cfg: DecoderConfig,
    family: Family,
    optional: set[str],
) -> None:
    """Raises a ValueError unless a file's names, shapes and types are those of ``cfg``."""
    for name in stored:
        if name.partition(".")[0] not in family.roots:
            inside = re.search(rf"(?<=\.)({'|'.join(family.roots)})\.", name)
            what = (
                "of a wrapped model (by torch.compile or DataParallel); save the one inside, whose "
                f"weight is called {name[inside.start() :]}"
                if inside
                else f"which no {family.architecture} has; save the whole model, output layer too"
            )
            raise ValueError(f"{path} holds {name}, {what}")
    n_layers = len({at[1] for name in stored if (at := family.layer.match(name))})
    if n_layers != cfg.n_layers:  # before anything is made of that size
        raise ValueError(
            f"{path} has the weights of {n_layers} layers, config.json says {cfg.n_layers}; they "
            "don't belong together"
        )
    shapes, found = _stored_shapes(cfg, family), [family.our_name(name) for name in stored]
    for ours, (name, (shape, dtype)) in zip(found, stored.items()):
        if shape != shapes.get(ours):
            implied = f"shape {shapes[ours]}" if ours in shapes else "no such weight"
            raise ValueError(
                f"{path}: {name} has shape {shape}, config.json implies {implied}; they don't "
                "belong together"
            )
        if dtype not in _FLOATS:
            raise ValueError(
                f"{path}: {name} is of type {dtype}; only {', '.join(_FLOATS)} can be loaded"
            )
    if missing := shapes.keys() - set(found) - optional:
        raise ValueError(
            f"{path} is incomplete: {len(missing)} weights are missing, "
            f"{family.their_name(min(missing))} first; copy it again"
        )
    if len(found) > len(set(found)):
        twice = next(name for name in found if found.count(name) > 1)
        raise ValueError(
            f"{path} has {family.their_name(twice)} twice, under two names; delete one of them"
        )


def checkpoint_sha256(folder: Path, tensors: dict[str, str] | None = None) -> str:
    """Digest of a checkpoint, which names it in results: of config.json and the weight files, or of
    config.json and the digests of its ``tensors``, where these were computed already.
    """
    sharded = (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file()
    weights = list(weight_files(folder)) if sharded else [folder / WEIGHTS]
    digest = hashlib.sha256()
    for path in (folder / "config.json", *(weights if tensors is None else ())):
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path.name} in {folder}; copy the checkpoint again, or train it again"
            )
        with path.open("rb") as file:
            while part := file.read(2**24):
                digest.update(part)
    if tensors is not None:
        digest.update(json.dumps(tensors, sort_keys=True).encode())
    return digest.hexdigest()


def tensor_digests(folder: Path) -> dict[str, str]:
    """``tensor_file.digest_of`` every tensor in a step folder, by its name in the file.

    Raises:
        ValueError: a file is damaged, or a weight is not finite.
    """
    digests: dict[str, str] = {}
    for path, file in open_files(folder):
        of_file: dict[str, str] = {}
        for name in file.keys():  # noqa: SIM118, not a dict
            tensor = file.get_tensor(name)
            if not any(family.buffers.fullmatch(name) for family in FAMILIES.values()):
                _finite(path, name, tensor)
            of_file[name] = digest_of(tensor)
        check_digests(path, of_file, file.metadata() or {})
        digests |= of_file
    return digests


@cache
def _stored_shapes(cfg: DecoderConfig, family: Family) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that a file of this config holds, by our names."""
    with torch.device("meta"):
        weights = HookedDecoder(cfg).state_dict()
    weights = {name: x for name, x in weights.items() if not name.endswith(cfg.absent)}
    if family.separate:
        weights = apart(weights, cfg.n_heads, cfg.n_key_value_heads)
    return {name: family.stored_shape(name, tuple(x.shape)) for name, x in weights.items()}


def _finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    """``tensor`` in fp32, after a check that it is finite."""
    if not is_finite(tensor):
        raise ValueError(
            f"{path}: {name} holds NaN or numbers that fp32 can't hold; use another step, or train "
            "this one again"
        )
    return tensor.to(torch.float32)
