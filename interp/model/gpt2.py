"""GPT-2: learned positions, transposed weights (Conv1D), q, k and v one after the other."""

import re
from pathlib import Path

from einops import rearrange
from torch import Tensor

from interp.model.decoder import DecoderConfig
from interp.model.hf_config import INSTEAD, Family, check_heads, check_key, number

_GELU = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
_CONV1D = ("attn.qkv.weight", "attn.out.weight", "mlp.up.weight", "mlp.down.weight")
"""Ends of our names of weights that are stored as (in, out)."""


def _shape(values: dict, given: dict, path: Path) -> dict:
    eps, act = values["layer_norm_epsilon"], values["activation_function"]
    fine = number(eps) and 0 <= eps < 1
    check_key(path, "layer_norm_epsilon", eps, fine, "a number from 0 to 1")
    fine = isinstance(act, str) and act in _GELU
    check_key(path, "activation_function", act, fine, ", ".join(_GELU), INSTEAD)
    for key, wanted in _ONLY.items():
        check_key(path, key, values[key], values[key] is wanted, str(wanted).lower(), INSTEAD)
    check_heads(path, values["n_embd"], values["n_head"], ("n_embd", "n_head"))
    return {
        "n_layers": values["n_layer"],
        "n_heads": values["n_head"],
        "d_model": values["n_embd"],
        "d_mlp": values["n_inner"] or 4 * values["n_embd"],
        "d_vocab": values["vocab_size"],
        "n_ctx": values["n_positions"],
        "ln_eps": float(eps),
        "learned_positions": True,
        "activation": _GELU[act],
    }


def _to_ours(name: str, weight: Tensor, cfg: DecoderConfig) -> Tensor:
    weight = weight.mT.contiguous() if name.endswith(_CONV1D) else weight
    if ".attn.qkv." not in name:
        return weight
    return rearrange(weight, "(qkv head d) ... -> (head qkv d) ...", qkv=3, head=cfg.n_heads)


_ONLY = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
"""Keys that may have one value only, their default."""

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    sizes={
        "vocab_size": 50_257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "n_positions": 1024,
    },
    others={
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        **_ONLY,
    },
    unread=frozenset(
        (
            *("n_ctx", "resid_pdrop", "embd_pdrop", "attn_pdrop", "reorder_and_upcast_attn"),
            *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
            "summary_first_dropout",
        )
    ),
    shape=_shape,
    roots=("transformer", "h", "wte", "wpe", "ln_f", "lm_head"),
    layer=re.compile(r"(?:transformer\.)?h\.([0-9]+)\."),
    buffers=re.compile(r"(transformer\.)?h\.[0-9]+\.attn\.(bias|masked_bias)"),
    names=(
        ("blocks.", "transformer.h."),
        ("blocks.", "h."),
        ("embed.", "transformer.wte."),
        ("embed.", "wte."),
        ("pos_embed.", "transformer.wpe."),
        ("pos_embed.", "wpe."),
        ("ln_final.", "transformer.ln_f."),
        ("ln_final.", "ln_f."),
        ("ln1.", "ln_1."),
        ("ln2.", "ln_2."),
        ("attn.qkv.", "attn.c_attn."),
        ("attn.out.", "attn.c_proj."),
        ("mlp.up.", "mlp.c_fc."),
        ("mlp.down.", "mlp.c_proj."),
        ("unembed.", "lm_head."),
    ),
    to_ours=_to_ours,
    stored_shape=lambda name, shape: shape[::-1] if name.endswith(_CONV1D) else shape,
)
