"""Hugging Face's ``config.json`` of a GPT-NeoX model as a ``DecoderConfig``.

Every key is either read, known to leave the logits as they are, or refused by name. A key that is
left out counts as what ``transformers.GPTNeoXConfig`` takes for it.
"""

from math import nextafter
from pathlib import Path

from interp.fields import shortened
from interp.files import read_json
from interp.model.decoder import DecoderConfig

SIZES = {
    "vocab_size": 50_432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24_576,
    "max_position_embeddings": 2048,
}
"""Whole numbers from 1 on, and their defaults."""
OTHERS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "attention_bias": True,
    "tie_word_embeddings": False,
}
"""The other keys that are read, and their defaults."""
ROTARY = {"rope_theta": 10_000.0, "partial_rotary_factor": 0.25, "rope_type": "default"}
"""Keys of ``rope_parameters``, and their defaults; older files have the first two as
``rotary_emb_base`` and ``rotary_pct``, and the last as ``type``.
"""
WITHOUT_EFFECT = frozenset(
    """
    architectures model_type dtype torch_dtype transformers_version _name_or_path _commit_hash
    _attn_implementation attn_implementation _attn_implementation_autoset initializer_range
    use_cache gradient_checkpointing attention_dropout hidden_dropout classifier_dropout
    attention_probs_dropout_prob hidden_dropout_prob bos_token_id eos_token_id pad_token_id
    sep_token_id decoder_start_token_id tokenizer_class output_attentions output_hidden_states
    return_dict return_dict_in_generate output_scores problem_type id2label label2id num_labels
    finetuning_task task_specific_params prefix is_decoder is_encoder_decoder
    chunk_size_feed_forward tie_encoder_decoder torchscript tf_legacy_loss use_bfloat16 max_length
    min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty encoder_no_repeat_ngram_size
    no_repeat_ngram_size bad_words_ids num_return_sequences length_penalty forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens
    """.split()  # noqa: SIM905
)
"""Keys of training, of generation and of Hugging Face's own book-keeping: the logits in evaluation
are the same whatever they hold.
"""
_INSTEAD = "open others with TransformerLens's bridge, and give that to interp.patch"
_MOST = 2**24
"""Larger sizes are no model's."""


def read_decoder_config(path: Path, *, device: str = "cpu") -> DecoderConfig:
    """The ``DecoderConfig`` of a config.json.

    Raises:
        ValueError: the file is damaged; a key is unknown, or has a value that can't be or that
            ``HookedDecoder`` does not support. The message names it.
    """
    given = read_json(path)
    family = given.get("model_type")
    if family != "gpt_neox":
        raise ValueError(
            f"{path}: model_type is {family!r}, and only gpt_neox can be loaded; {_INSTEAD}"
        )
    classes = given.get("architectures") or []
    neox = isinstance(classes, list) and set(map(str, classes)) <= {"GPTNeoXForCausalLM"}
    _check(path, "architectures", classes, neox, "the list ['GPTNeoXForCausalLM']")
    rotary = _rotary(given, path)
    for key in given:
        if key not in {*SIZES, *OTHERS, *WITHOUT_EFFECT, *_ROTARY_KEYS}:
            raise ValueError(
                f"{path}: key {key!r} (here {shortened(given[key])}) is unknown for gpt_neox; it "
                "may change what the model computes, so delete it only if you know that it does not"
            )
    values = {**SIZES, **OTHERS, **{key: given[key] for key in (*SIZES, *OTHERS) if key in given}}
    for key in SIZES:
        _check(path, key, values[key], _whole(values[key]), f"a whole number from 1 to {_MOST}")
    for key in ("use_parallel_residual", "attention_bias", "tie_word_embeddings"):
        _check(path, key, values[key], isinstance(values[key], bool), "true or false")
    eps, (theta, share) = values["layer_norm_eps"], rotary
    for key, used in (("rope_theta", theta), ("partial_rotary_factor", share)):
        if given.get(key, used) != used:
            raise ValueError(
                f"{path}: key {key!r} (here {shortened(given[key])}) does not count for gpt_neox, "
                f"where the other rotary keys say {shortened(used)}; make them agree"
            )
    _check(path, "layer_norm_eps", eps, _number(eps) and 0 <= eps < 1, "a number from 0 to 1")
    _check(path, "the rotary base", theta, _number(theta) and theta > 0, "a number above 0")
    _check(path, "the rotary share", share, _number(share) and 0 < share <= 1, "a share up to 1")
    act = values["hidden_act"]
    _check(path, "hidden_act", act, act == "gelu", "gelu", _INSTEAD)
    _check(path, "tie_word_embeddings", True, not values["tie_word_embeddings"], "false", _INSTEAD)
    d_model, n_heads = values["hidden_size"], values["num_attention_heads"]
    if d_model % n_heads:
        raise ValueError(
            f"{path}: hidden_size {d_model} is not a multiple of num_attention_heads {n_heads} (a "
            "key that is left out has transformers' default); correct them"
        )
    d_head = d_model // n_heads
    n_rotary = int(d_head * share)
    try:
        return DecoderConfig(
            n_layers=values["num_hidden_layers"],
            n_heads=values["num_attention_heads"],
            d_model=values["hidden_size"],
            d_mlp=values["intermediate_size"],
            d_vocab=values["vocab_size"],
            n_ctx=values["max_position_embeddings"],
            parallel=values["use_parallel_residual"],
            rotary_dim=n_rotary if n_rotary < d_head else None,
            rotary_base=float(theta),
            ln_eps=float(eps),
            attention_bias=values["attention_bias"],
            device=device,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def neox_config(cfg: DecoderConfig) -> dict:
    """The config.json that ``read_decoder_config`` reads as ``cfg``."""
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


_ROTARY_KEYS = (
    *("rope_parameters", "rope_scaling", "rotary_emb_base", "rotary_pct"),
    *("rope_theta", "partial_rotary_factor"),  # which older transformers wrote beside them
)


def _rotary(given: dict, path: Path) -> tuple[object, object]:
    """Base of the rotary angles and rotated share of a head, by the precedence of
    ``GPTNeoXConfig``: ``rope_scaling`` if it holds anything, else ``rope_parameters``; what they
    leave out is taken from the older keys.
    """
    place = "rope_scaling" if given.get("rope_scaling") else "rope_parameters"
    inside = given.get(place) or {}
    _check(path, place, inside, isinstance(inside, dict), "an object, or null")
    kind = inside.get("rope_type", inside.get("type", "default"))
    if kind != "default":
        raise ValueError(
            f"{path}: {place} has rope_type {kind!r}, and only 'default' is supported; {_INSTEAD}"
        )
    if unknown := inside.keys() - {*ROTARY, "type"}:
        raise ValueError(
            f"{path}: {place} has the key {min(unknown)!r}, which is unknown for rope_type "
            "'default'; delete it only if you know that it changes nothing"
        )
    theta = inside.get("rope_theta", given.get("rotary_emb_base", ROTARY["rope_theta"]))
    older_share = given.get("rotary_pct", ROTARY["partial_rotary_factor"])
    return theta, inside.get("partial_rotary_factor", older_share)


def _check(path: Path, key: str, got: object, fine: bool, wanted: str, instead: str = "") -> None:
    if not fine:
        remedy = f"only {wanted} can be loaded" + (f"; {instead}" if instead else "")
        raise ValueError(f"{path}: {key} is {shortened(got)}; {remedy}")


def _whole(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MOST


def _number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300
