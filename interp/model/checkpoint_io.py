"""A checkpoint on disk is an ordinary Hugging Face GPT-NeoX folder: ``config.json`` and
``model.safetensors``.

``HookedDecoder`` keeps GPT-NeoX's own weight shapes, so the format is a renaming, and Pythia's
folders load as well.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path

import torch
from torch import Tensor

from interp.files import write_bytes, write_json
from interp.model.checkpoint_folder import check_files
from interp.model.decoder import DecoderConfig, HookedDecoder
from interp.model.hf_config import neox_config, read_decoder_config
from interp.model.tensor_file import check_digests, digest_of, opened, read_tensors, to_bytes

_FLOATS = ("F64", "F32", "F16", "BF16")
_RENAMES = (  # ours, GPT-NeoX's
    ("blocks.", "gpt_neox.layers."),
    ("ln1.", "input_layernorm."),
    ("ln2.", "post_attention_layernorm."),
    ("attn.qkv.", "attention.query_key_value."),
    ("attn.out.", "attention.dense."),
    ("mlp.up.", "mlp.dense_h_to_4h."),
    ("mlp.down.", "mlp.dense_4h_to_h."),
    ("ln_final.", "gpt_neox.final_layer_norm."),
    ("unembed.", "embed_out."),
)


def write_checkpoint(model: HookedDecoder, folder: Path, *, dtype: torch.dtype) -> None:
    """Writes ``model`` to ``folder``, replacing what is there; a kill leaves no half-written folder
    under that name.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        weights = {
            _neox_name(name): weight.detach().to("cpu", dtype)
            for name, weight in model.state_dict().items()
        }
        write_bytes(temporary / "model.safetensors", to_bytes(weights, {"format": "pt"}))
        write_json(temporary / "config.json", neox_config(model.cfg))
        replaced = folder.with_name(f".{folder.name}.old.{os.getpid()}.tmp")
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
    cfg = check_checkpoint(folder, device=device)
    with torch.device("meta"):
        model = HookedDecoder(cfg)
    stored = _stored_shapes(cfg)
    weights = {
        name: torch.zeros(weight.shape, dtype=torch.float32, device=device)
        for name, weight in model.state_dict().items()
        if name not in stored
    }
    path = folder / "model.safetensors"
    for name, tensor in read_tensors(path).items():
        if not _is_old_buffer(name):
            weights[_our_name(name)] = _finite(path, name, tensor).to(device)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def check_checkpoint(folder: Path, *, device: str = "cpu") -> DecoderConfig:
    """The config of a step folder after its files, keys and the names, shapes and types of its
    weights were checked; reads no weights.

    Raises:
        FileNotFoundError, ValueError: as ``read_checkpoint``, but for values of weights.
    """
    check_files(folder)
    cfg = read_decoder_config(folder / "config.json", device=device)
    path = folder / "model.safetensors"
    with opened(path) as file:
        names = [name for name in file.keys() if not _is_old_buffer(name)]  # noqa: SIM118, not a dict
        slices = {name: file.get_slice(name) for name in names}
        stored = {name: (tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}
    _check_tensors(path, stored, cfg)
    return cfg


def _check_tensors(
    path: Path, stored: dict[str, tuple[tuple[int, ...], str]], cfg: DecoderConfig
) -> None:
    """Raises a ValueError unless a file's names, shapes and types are those of ``cfg``."""
    for name in stored:
        if not name.startswith(("gpt_neox.", "embed_out.", "lm_head.")):
            inside = re.search(r"(?<=\.)(gpt_neox|embed_out|lm_head)\.", name)
            what = (
                "of a wrapped model (by torch.compile or DataParallel); save the one inside, whose "
                f"weight is called {name[inside.start() :]}"
                if inside
                else "which no GPTNeoXForCausalLM has; save the whole model, its output layer too"
            )
            raise ValueError(f"{path} holds {name}, {what}")
    n_layers = len({_layer_of(name) for name in stored} - {None})
    if n_layers != cfg.n_layers:  # before anything is made of that size
        raise ValueError(
            f"{path} has the weights of {n_layers} layers, config.json says {cfg.n_layers}; they "
            "don't belong together"
        )
    shapes, found = _stored_shapes(cfg), [_our_name(name) for name in stored]
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
    if missing := shapes.keys() - set(found):
        raise ValueError(
            f"{path} is incomplete: {len(missing)} weights are missing, "
            f"{_neox_name(min(missing))} first; copy it again"
        )
    if len(found) > len(shapes):
        twice = next(name for name in found if found.count(name) > 1)
        raise ValueError(
            f"{path} has {_neox_name(twice)} twice, under two names; delete one of them"
        )


def checkpoint_sha256(folder: Path) -> str:
    """Digest of both files; it names the checkpoint in results."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"no {name} in {folder}; copy the checkpoint again, or train it again"
            )
        digest.update(path.read_bytes())
    return digest.hexdigest()


def tensor_digests(folder: Path) -> dict[str, str]:
    """``tensor_file.digest_of`` every tensor in a step folder, by its name in the file.

    Raises:
        ValueError: the file is damaged, or a weight is not finite.
    """
    digests, path = {}, folder / "model.safetensors"
    with opened(path) as file:
        for name in file.keys():  # noqa: SIM118, not a dict
            tensor = file.get_tensor(name)
            if not _is_old_buffer(name):
                _finite(path, name, tensor)
            digests[name] = digest_of(tensor)
        check_digests(path, digests, file.metadata() or {})
    return digests


def _stored_shapes(cfg: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that a file of this config holds, by our names."""
    with torch.device("meta"):
        weights = HookedDecoder(cfg).state_dict()
    return {
        name: tuple(weight.shape)
        for name, weight in weights.items()
        if cfg.attention_bias or not name.endswith(("attn.qkv.bias", "attn.out.bias"))
    }


def _finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    """``tensor`` in fp32, after a check that it is finite."""
    weight = tensor.to(torch.float32)
    if not weight.isfinite().all():
        raise ValueError(
            f"{path}: {name} holds NaN or numbers that fp32 can't hold; use another step, or train "
            "this one again"
        )
    return weight


def _is_old_buffer(name: str) -> bool:
    """Whether a tensor is a buffer of older GPT-NeoX files, which follows from the config."""
    buffers = r"attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
    return re.fullmatch(rf"gpt_neox\.layers\.[0-9]+\.{buffers}", name) is not None


def _layer_of(name: str) -> str | None:
    found = re.match(r"gpt_neox\.layers\.([0-9]+)\.", name)
    return found[1] if found else None


def _our_name(name: str) -> str:
    name = name.replace("lm_head.", "embed_out.").replace("gpt_neox.embed_in.", "embed.")
    for ours, theirs in _RENAMES:
        name = name.replace(theirs, ours)
    return name


def _neox_name(name: str) -> str:
    if name == "embed.weight":
        return "gpt_neox.embed_in.weight"
    for ours, theirs in _RENAMES:
        name = name.replace(ours, theirs)
    return name
