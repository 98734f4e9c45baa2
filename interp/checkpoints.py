"""A checkpoint on disk is an ordinary Hugging Face GPT-NeoX folder: ``config.json`` and
``model.safetensors``.

``HookedDecoder`` keeps GPT-NeoX's own weight shapes, so the format is a renaming, and Pythia's
folders load as well.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from interp.files import write_bytes, write_json
from interp.model import DecoderConfig, HookedDecoder

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
        write_bytes(temporary / "model.safetensors", save(weights, metadata={"format": "pt"}))
        write_json(temporary / "config.json", _neox_config(model.cfg))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_checkpoint(folder: Path, *, device: str = "cpu") -> HookedDecoder:
    """The model of a step folder, in fp32 and evaluation mode.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the weights are damaged, incomplete, of other shapes than the configuration
            says, or not finite.
    """
    cfg = read_shape(folder, device)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"no model.safetensors in {folder}; copy the checkpoint again, or train it again"
        )
    with torch.device("meta"):
        model = HookedDecoder(cfg)
    expected = {
        _neox_name(name): (name, weight.shape) for name, weight in model.state_dict().items()
    }
    weights = {}
    for name, tensor in _tensors(path).items():
        name = name.replace("lm_head.", "embed_out.")
        if name not in expected and name.endswith(
            (".attention.bias", ".masked_bias", ".rotary_emb.inv_freq")
        ):
            continue  # buffers of older GPT-NeoX files
        if name not in expected or tensor.shape != expected[name][1]:
            wanted = f"shape {tuple(expected[name][1])}" if name in expected else "no such weight"
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, config.json implies {wanted}; "
                "they don't belong together"
            )
        if not tensor.isfinite().all():
            raise ValueError(
                f"{path}: {name} holds NaN or infinite numbers; use another step, or train this "
                "one again"
            )
        weights[expected[name][0]] = tensor.to(device, torch.float32)
    if missing := expected.keys() - {_neox_name(name) for name in weights}:
        raise ValueError(
            f"{path} is incomplete: {len(missing)} weights are missing, {min(missing)} first; "
            "copy it again"
        )
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


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


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}); copy it again, or train this step again"
        ) from None


def _neox_name(name: str) -> str:
    if name == "embed.weight":
        return "gpt_neox.embed_in.weight"
    for ours, theirs in _RENAMES:
        name = name.replace(ours, theirs)
    return name


def _neox_config(cfg: DecoderConfig) -> dict:
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "dtype": "float32",  # to compute in; the file may hold bfloat16
        "vocab_size": cfg.d_vocab,
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "intermediate_size": cfg.d_mlp,
        "max_position_embeddings": cfg.n_ctx,
        "hidden_act": "gelu",
        "layer_norm_eps": cfg.ln_eps,
        "rotary_pct": cfg.n_rotary / cfg.d_head,
        "rotary_emb_base": cfg.rotary_base,
        "use_parallel_residual": cfg.parallel,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }


def read_shape(folder: Path, device: str = "cpu") -> DecoderConfig:
    """Shape of the model in a step folder, without its weights."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no config.json in {folder}; give a step folder of a run, or a GPT-NeoX folder"
        )
    try:
        neox = json.loads(path.read_text())
        if (neox["model_type"], neox["hidden_act"], neox.get("tie_word_embeddings", False)) != (
            "gpt_neox",
            "gelu",
            False,
        ):
            raise ValueError(
                f"{path}: only gpt_neox with hidden_act gelu and an untied head can be loaded"
            )
        rope = neox.get("rope_parameters") or {}
        d_head = neox["hidden_size"] // neox["num_attention_heads"]
        share = rope.get("partial_rotary_factor", neox.get("rotary_pct", 0.25))
        n_rotary = int(d_head * share)
        return DecoderConfig(
            n_layers=neox["num_hidden_layers"],
            n_heads=neox["num_attention_heads"],
            d_model=neox["hidden_size"],
            d_mlp=neox["intermediate_size"],
            d_vocab=neox["vocab_size"],
            n_ctx=neox["max_position_embeddings"],
            parallel=neox.get("use_parallel_residual", True),
            rotary_dim=n_rotary if n_rotary < d_head else None,
            rotary_base=rope.get("rope_theta", neox.get("rotary_emb_base", 10_000)),
            ln_eps=neox["layer_norm_eps"],
            device=device,
        )
    except (KeyError, TypeError, ZeroDivisionError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}); copy it again") from None
