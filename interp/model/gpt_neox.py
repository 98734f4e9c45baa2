"""GPT-NeoX and Pythia, whose layout a ``HookedDecoder`` has; our own checkpoints are of it too."""

import re
from math import nextafter
from pathlib import Path

from interp.fields import shortened
from interp.model.decoder import DecoderConfig
from interp.model.hf_config import INSTEAD, Family, check_heads, check_key, number
from interp.model.rotary_config import BESIDE, ROTARY_KEYS, rotary_of

_FIXED = (
    *("rotary_scaling", "learned_positions", "norm", "norm_after", "qk_norm", "n_grouped"),
    *("head_width", "activation", "gated"),
)
"""Fields that have their default in every GPT-NeoX model that is written."""
_BESIDE = ("rotary_emb_base", "rotary_pct")
"""Keys of the rotary base and share in older files."""


def neox_config(cfg: DecoderConfig) -> dict:
    """The config.json that is read as ``cfg``."""
    plain = DecoderConfig(1, 1, 2, 1, 1)
    for name in _FIXED:
        if getattr(cfg, name) != getattr(plain, name):
            raise ValueError(
                f"only models of GPT-NeoX's shape can be written, and this one has {name} "
                f"{getattr(cfg, name)}; keep it in its own folder"
            )
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
        "rotary_pct": _share(cfg.n_rotary, cfg.d_head),
        "rotary_emb_base": cfg.rotary_base,
        "use_parallel_residual": cfg.parallel,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }


def _share(n_rotary: int, d_head: int) -> float:
    """A value of ``rotary_pct`` from which ``int(d_head · share)`` gives ``n_rotary`` again."""
    share = n_rotary / d_head
    return share if int(d_head * share) == n_rotary else nextafter(share, 1)


def _shape(values: dict, given: dict, path: Path) -> dict:
    eps, act, n_ctx = (
        values[x] for x in ("layer_norm_eps", "hidden_act", "max_position_embeddings")
    )
    theta, share, scaling = rotary_of(given, n_ctx, path, _BESIDE, default_share=0.25)
    for key, used in zip(BESIDE, (theta, share)):
        if given.get(key, used) != used:
            raise ValueError(
                f"{path}: key {key!r} (here {shortened(given[key])}) does not count for gpt_neox, "
                f"where the other rotary keys say {shortened(used)}; make them agree"
            )
    check_key(path, "layer_norm_eps", eps, number(eps) and 0 <= eps < 1, "a number from 0 to 1")
    check_key(path, "hidden_act", act, act == "gelu", "gelu", INSTEAD)
    tied = values["tie_word_embeddings"]
    check_key(path, "tie_word_embeddings", True, not tied, "false", INSTEAD)
    d_model, n_heads = values["hidden_size"], values["num_attention_heads"]
    check_heads(path, d_model, n_heads, ("hidden_size", "num_attention_heads"))
    n_rotary = int(d_model // n_heads * share)
    return {
        "n_layers": values["num_hidden_layers"],
        "n_heads": n_heads,
        "d_model": d_model,
        "d_mlp": values["intermediate_size"],
        "d_vocab": values["vocab_size"],
        "n_ctx": n_ctx,
        "parallel": values["use_parallel_residual"],
        "rotary_dim": n_rotary if n_rotary < d_model // n_heads else None,
        "rotary_base": float(theta),
        "rotary_scaling": scaling,
        "ln_eps": float(eps),
        "absent": () if values["attention_bias"] else ("attn.qkv.bias", "attn.out.bias"),
    }


GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    sizes={
        "vocab_size": 50_432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24_576,
        "max_position_embeddings": 2048,
    },
    others={
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    unread=frozenset((*ROTARY_KEYS, *_BESIDE)),
    shape=_shape,
    roots=("gpt_neox", "embed_out", "lm_head"),
    layer=re.compile(r"gpt_neox\.layers\.([0-9]+)\."),
    buffers=re.compile(
        r"gpt_neox\.layers\.[0-9]+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
    ),
    names=(
        ("unembed.", "lm_head."),
        ("unembed.", "embed_out."),
        ("embed.", "gpt_neox.embed_in."),
        ("blocks.", "gpt_neox.layers."),
        ("ln1.", "input_layernorm."),
        ("ln2.", "post_attention_layernorm."),
        ("attn.qkv.", "attention.query_key_value."),
        ("attn.out.", "attention.dense."),
        ("mlp.up.", "mlp.dense_h_to_4h."),
        ("mlp.down.", "mlp.dense_4h_to_h."),
        ("ln_final.", "gpt_neox.final_layer_norm."),
    ),
)
