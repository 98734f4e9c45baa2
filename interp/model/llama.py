"""Llama and the families of its shape: Mistral, Qwen2, Qwen3, OLMo and OLMo-2. Their blocks have
rotary positions, gated MLPs, and queries, keys and values in matrices of their own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from interp.model.hf_config import INSTEAD, Family, check_key, number, whole
from interp.model.rotary_config import BESIDE, ROTARY_KEYS, rotary_of

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_ATTENTION_BIASES, _MLP_BIASES = (
    ("attn.qkv.bias", "attn.out.bias"),
    ("mlp.up.bias", "mlp.gate.bias"),
)
_NORMS = tuple(f"{norm}.{x}" for norm in ("ln1", "ln2", "ln_final") for x in ("weight", "bias"))
_SIZES: dict[str, int | None] = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
}
_OTHERS = {"hidden_act": "silu", "tie_word_embeddings": False, "rms_norm_eps": 1e-6}
_NAMES = (
    ("unembed.", "lm_head."),
    ("embed.", "model.embed_tokens."),
    ("blocks.", "model.layers."),
    ("ln1.", "input_layernorm."),
    ("ln2.", "post_attention_layernorm."),
    ("attn.q.", "self_attn.q_proj."),
    ("attn.k.", "self_attn.k_proj."),
    ("attn.v.", "self_attn.v_proj."),
    ("attn.out.", "self_attn.o_proj."),
    ("attn.q_norm.", "self_attn.q_norm."),
    ("attn.k_norm.", "self_attn.k_norm."),
    ("mlp.gate.", "mlp.gate_proj."),
    ("mlp.up.", "mlp.up_proj."),
    ("mlp.down.", "mlp.down_proj."),
    ("ln_final.", "model.norm."),
)
_NAMES_AFTER = (
    *_NAMES[:3],
    ("ln1_post.", "post_attention_layernorm."),
    ("ln2_post.", "post_feedforward_layernorm."),
    *_NAMES[5:],
)
"""Where norms come after attention and MLP."""


@dataclass(frozen=True)
class _Kind:
    """What a family of this shape has that Llama has not."""

    fields: Mapping[str, object] = field(default_factory=dict)
    """Of its ``DecoderConfig``."""
    biases: tuple[str, ...] = ()
    """Ends of names of biases that it always has."""
    no_norm_weights: bool = False


def _shape(kind: _Kind, values: dict, given: dict, path: Path) -> dict:
    eps, act = values.get("rms_norm_eps", 1e-5), values["hidden_act"]
    check_key(path, "rms_norm_eps", eps, number(eps) and 0 <= eps < 1, "a number from 0 to 1")
    fine = isinstance(act, str) and act in _ACTIVATIONS
    check_key(path, "hidden_act", act, fine, ", ".join(_ACTIVATIONS), INSTEAD)
    clip = values.get("clip_qkv")
    check_key(path, "clip_qkv", clip, clip is None, "null", INSTEAD)
    if kind.fields.get("norm_after"):
        biased = values["attention_bias"]
        check_key(path, "attention_bias", biased, not biased, "false", INSTEAD)
    d_model, n_heads = values["hidden_size"], values["num_attention_heads"]
    n_groups, width = values["num_key_value_heads"] or n_heads, values.get("head_dim")
    if n_heads % n_groups:
        raise ValueError(
            f"{path}: num_key_value_heads {n_groups} does not divide num_attention_heads "
            f"{n_heads}; correct them"
        )
    if width is None and d_model % n_heads:
        raise ValueError(
            f"{path}: hidden_size {d_model} is not a multiple of num_attention_heads {n_heads} (a "
            "key that is left out has transformers' default); correct them"
        )
    n_ctx = values["max_position_embeddings"]
    theta, share, scaling = rotary_of(given, n_ctx, path, BESIDE, default_share=1.0)
    check_key(path, "partial_rotary_factor", share, share == 1, "1", INSTEAD)
    d_head = width or d_model // n_heads
    return {
        "n_layers": values["num_hidden_layers"],
        "n_heads": n_heads,
        "n_grouped": n_heads // n_groups,
        "head_width": None if d_head * n_heads == d_model else d_head,
        "d_model": d_model,
        "d_mlp": values["intermediate_size"],
        "d_vocab": values["vocab_size"],
        "n_ctx": _longest(values, given, path),
        "rotary_base": float(theta),
        "rotary_scaling": scaling,
        "ln_eps": float(eps),
        "norm": "rms",
        "activation": _ACTIVATIONS[act],
        "gated": True,
        "absent": _absent(kind, values),
    } | kind.fields


def _absent(kind: _Kind, values: dict) -> tuple[str, ...]:
    """Ends of names of weights that the file lacks."""
    absent = () if values.get("attention_bias") else _ATTENTION_BIASES
    absent += () if values.get("mlp_bias") else (*_MLP_BIASES, "mlp.down.bias")
    absent += _NORMS if kind.no_norm_weights else ()
    return tuple(x for x in absent if x not in kind.biases)


def _longest(values: dict, given: dict, path: Path) -> int:
    """The longest prompt that is computed right: a sliding window hides tokens from longer ones."""
    longest, window = values["max_position_embeddings"], values.get("sliding_window")
    if not values.get("use_sliding_window", True):
        window = None
    fine = window is None or whole(window)
    check_key(path, "sliding_window", window, fine, "null, or a whole number from 1 on")
    types = given.get("layer_types") or []
    known = isinstance(types, list) and {*map(str, types)} <= {
        "full_attention",
        "sliding_attention",
    }
    wanted = "full_attention and sliding_attention"
    check_key(path, "layer_types", types, known, wanted, INSTEAD)
    if "sliding_attention" in types and window is None:
        raise ValueError(
            f"{path}: layer_types has sliding_attention, and sliding_window is not in use; make "
            "them agree"
        )
    return longest if window is None else min(longest, window)


def _family(
    model_type: str, architecture: str, kind: _Kind, *, sizes: dict | None = None, **others: object
) -> Family:
    """A family with these keys beside Llama's, and their defaults."""
    all_others = {key: x for key, x in (_OTHERS | others).items() if x is not _NONE}
    return Family(
        model_type=model_type,
        architecture=architecture,
        sizes=_SIZES | (sizes or {}),
        others=all_others,
        unread=frozenset((*ROTARY_KEYS, "pretraining_tp", "layer_types", "max_window_layers")),
        shape=partial(_shape, kind),
        roots=("model", "lm_head"),
        layer=re.compile(r"model\.layers\.([0-9]+)\."),
        buffers=re.compile(r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq"),
        names=_NAMES_AFTER if kind.fields.get("norm_after") else _NAMES,
        separate=True,
    )


_NONE = object()
"""A key that a family does not have."""
_WINDOW = {"use_sliding_window": False, "sliding_window": 4096}
LLAMA_LIKE = (
    _family(
        "llama", "LlamaForCausalLM", _Kind(), sizes={"head_dim": None}, attention_bias=False,
        mlp_bias=False,
    ),
    _family(
        "mistral", "MistralForCausalLM", _Kind(),
        sizes={"intermediate_size": 14_336, "num_key_value_heads": 8, "head_dim": None,
               "max_position_embeddings": 131_072},
        sliding_window=4096,
    ),
    _family(
        "qwen2", "Qwen2ForCausalLM", _Kind(biases=("attn.qkv.bias",)),
        sizes={"vocab_size": 151_936, "intermediate_size": 22_016, "num_key_value_heads": 32,
               "max_position_embeddings": 32_768},
        **_WINDOW,
    ),
    _family(
        "qwen3", "Qwen3ForCausalLM", _Kind({"qk_norm": "head"}),
        sizes={"vocab_size": 151_936, "intermediate_size": 22_016, "num_key_value_heads": 32,
               "head_dim": 128, "max_position_embeddings": 32_768},
        attention_bias=False, **_WINDOW,
    ),
    _family(
        "olmo", "OlmoForCausalLM", _Kind({"norm": "layer"}, no_norm_weights=True),
        sizes={"vocab_size": 50_304}, attention_bias=False, clip_qkv=None, rms_norm_eps=_NONE,
    ),
    _family(
        "olmo2", "Olmo2ForCausalLM", _Kind({"norm_after": True, "qk_norm": "all"}),
        sizes={"vocab_size": 50_304}, rms_norm_eps=1e-5, attention_bias=False,
    ),
)  # fmt: skip
