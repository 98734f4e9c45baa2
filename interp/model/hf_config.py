"""Hugging Face's ``config.json`` as a ``DecoderConfig``: what all model families share.

Every key is either read by the family, known to leave the logits as they are, or refused by name. A
key that is left out counts as the default of the family's configuration class in transformers.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from interp.fields import shortened
from interp.model.decoder import DecoderConfig

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
INSTEAD = "open others with TransformerLens's bridge, and give that to interp.patch"
_MOST = 2**24
"""Larger sizes are no model's."""


@dataclass(frozen=True, eq=False)  # a family is itself alone, and so hashable
class Family:
    """A family of Hugging Face models that are loaded as a ``HookedDecoder``: the keys of their
    config.json, and the names and layout of their weights.
    """

    model_type: str
    architecture: str
    """The class that the weights must be saved from."""
    sizes: Mapping[str, int | None]
    """Keys of whole numbers from 1 on, and their defaults; with the default None it may be null."""
    others: Mapping[str, object]
    """The other keys that are read, and their defaults; ``tie_word_embeddings`` is one."""
    unread: frozenset[str]
    """Keys without effect beside ``WITHOUT_EFFECT``, and those that ``shape`` reads by itself."""
    shape: Callable[[dict, dict, Path], dict]
    """Fields of a ``DecoderConfig``, of the values of ``sizes`` and ``others``, of the whole file,
    and of its path for errors.
    """
    roots: tuple[str, ...]
    """What names of weights begin with."""
    layer: re.Pattern
    """Matches the beginning of a layer's names; group 1 is its number."""
    buffers: re.Pattern
    """Matches tensors that are no weights, because they follow from the config."""
    names: tuple[tuple[str, str], ...]
    """Parts of our names, and what stands for them in a file; applied in order."""
    to_ours: Callable[[str, Tensor, DecoderConfig], Tensor] = lambda name, weight, cfg: weight
    """A weight of a file, by our name, in the layout of a ``HookedDecoder``."""
    stored_shape: Callable[[str, tuple[int, ...]], tuple[int, ...]] = lambda name, shape: shape
    """Shape in a file of a weight that has the given one in a ``HookedDecoder``."""

    separate: bool = False
    """Queries, keys and values are stored apart, as ``attn.q``, ``attn.k`` and ``attn.v``."""

    def our_name(self, name: str) -> str:
        """The name in a ``HookedDecoder`` of a weight in a file."""
        for ours, theirs in self.names:
            name = re.sub(rf"(?<!\w){re.escape(theirs)}", ours, name)
        return name

    def their_name(self, name: str) -> str:
        """The name in a file of a weight in a ``HookedDecoder``."""
        for ours, theirs in reversed(self.names):
            name = re.sub(rf"(?<!\w){re.escape(ours)}", theirs, name)
        return name


def decoder_config(
    given: dict, path: Path, family: Family, *, device: str = "cpu"
) -> DecoderConfig:
    """The ``DecoderConfig`` of a config.json that holds ``given``.

    Raises:
        ValueError: a key is unknown, or has a value that can't be or that ``HookedDecoder`` does
            not support. The message names it.
    """
    kind, classes = family.model_type, given.get("architectures") or []
    right = isinstance(classes, list) and set(map(str, classes)) <= {family.architecture}
    check_key(path, "architectures", classes, right, f"the list ['{family.architecture}']")
    sizes, others = family.sizes, family.others
    for key in given:
        if key not in {*sizes, *others, *WITHOUT_EFFECT, *family.unread}:
            raise ValueError(
                f"{path}: key {key!r} (here {shortened(given[key])}) is unknown for {kind}; it "
                "may change what the model computes, so delete it only if you know that it does not"
            )
    values = {**sizes, **others, **{key: given[key] for key in (*sizes, *others) if key in given}}
    for key, default in sizes.items():
        fine = whole(values[key]) or (default is None and values[key] is None)
        check_key(path, key, values[key], fine, f"a whole number from 1 to {_MOST}")
    for key, default in others.items():
        if isinstance(default, bool):
            check_key(path, key, values[key], isinstance(values[key], bool), "true or false")
    try:
        return DecoderConfig(**family.shape(values, given, path), device=device)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from None


def family_of(given: dict, path: Path, families: Mapping[str, Family]) -> Family:
    """The family of a config.json that holds ``given``.

    Raises:
        ValueError: it is none of ``families``.
    """
    kind = given.get("model_type")
    if not isinstance(kind, str) or kind not in families:
        known = ", ".join(families)
        raise ValueError(
            f"{path}: model_type is {kind!r}, and only {known} can be loaded; {INSTEAD}"
        )
    return families[kind]


def check_key(
    path: Path, key: str, got: object, fine: bool, wanted: str, instead: str = ""
) -> None:
    """Raises a ValueError that names a key and the values that it may have, unless ``fine``."""
    if not fine:
        remedy = f"only {wanted} can be loaded" + (f"; {instead}" if instead else "")
        raise ValueError(f"{path}: {key} is {shortened(got)}; {remedy}")


def check_heads(path: Path, d_model: int, n_heads: int, keys: tuple[str, str]) -> None:
    """Raises a ValueError unless the heads share the width evenly."""
    if d_model % n_heads:
        raise ValueError(
            f"{path}: {keys[0]} {d_model} is not a multiple of {keys[1]} {n_heads} (a "
            "key that is left out has transformers' default); correct them"
        )


def whole(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MOST


def number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300
