"""Biographies as tokens with their roles, built for a whole batch at once.

Every piece of text that can occur (a template's part before the name, a name, a value, ...) is
tokenized once and laid end to end in one array. A biography is a list of pieces; a batch of them is
one gather from that array.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int, Int8
from tokenizers import Tokenizer

from interp.config import ATTRIBUTES, N_EVALUATION_TEMPLATES, N_TEMPLATES
from interp.data.population import NAME_PARTS, templates
from interp.data.tokenizer import BOS, build_tokenizer, encode

ROLES = ("bos", "name_first", "name_middle", "name_last", "cue", "value", "punctuation")
NO_ATTRIBUTE = -1


@dataclass(frozen=True)
class Texts:
    """Tokens and roles of every piece of text, and the pieces of each template, name and value."""

    tokens: Int[np.ndarray, " piece_token"]
    roles: Int8[np.ndarray, " piece_token"]
    start: Int[np.ndarray, " piece"]
    length: Int[np.ndarray, " piece"]
    bos: int
    before_name: Int[np.ndarray, "attribute template"]
    after_name: Int[np.ndarray, "attribute template"]
    after_value: Int[np.ndarray, "attribute template"]
    name: Int[np.ndarray, " person"]
    value: Int[np.ndarray, "person attribute"]
    template_order: Int8[np.ndarray, "person attribute template"]
    """A permutation of the 25 templates for each person and attribute; the last 5 are for
    evaluation.
    """


@dataclass(frozen=True)
class Biographies:
    """Tokens of a batch end to end, without pads; row i holds ``lengths[i]`` of them."""

    tokens: Int[np.ndarray, " token"]
    roles: Int8[np.ndarray, " token"]
    """Index into ``ROLES``."""
    attributes: Int8[np.ndarray, " token"]
    """Index into ``ATTRIBUTES`` of the sentence the token is in; −1 for ``<bos>``."""
    lengths: Int[np.ndarray, " batch"]
    people: Int[np.ndarray, " batch"]


def tokenizer_for(people: pd.DataFrame) -> Tokenizer:
    """Tokenizer that knows every template word and every name and value of ``people``."""
    sentences = (text.format(name="", value="") for texts in templates().values() for text in texts)
    words = (text for column in (*NAME_PARTS, *ATTRIBUTES) for text in people[column].unique())
    return build_tokenizer([*sentences, *words])


def lay_out(people: pd.DataFrame, tokenizer: Tokenizer, *, seed: int) -> Texts:
    """The text pieces of a population's biographies; ``seed`` decides each person's training and
    evaluation templates.
    """
    pieces = _Pieces(tokenizer)
    bos = pieces.add_tokens([tokenizer.token_to_id(BOS)], [ROLES.index("bos")])
    parts = [[_split(text) for text in templates()[attribute]] for attribute in ATTRIBUTES]
    before, after, end = (
        np.array([pieces.add([text[i] for text in texts], "cue") for texts in parts])
        for i in range(3)
    )
    name = _names(people, pieces)
    value = np.stack([_values(people[attribute], pieces) for attribute in ATTRIBUTES], 1)
    rng = np.random.default_rng([seed, 1])
    order = np.broadcast_to(np.arange(N_TEMPLATES, dtype=np.int8), (*value.shape, N_TEMPLATES))
    tokens, roles, start, length = pieces.arrays()
    return Texts(
        tokens,
        roles,
        start,
        length,
        bos,
        before,
        after,
        end,
        name,
        value,
        rng.permuted(order, axis=2),
    )


def write_biographies(
    texts: Texts,
    people: Int[np.ndarray, " batch"],
    attributes: Int[np.ndarray, "batch sentence"],
    template: Int[np.ndarray, "batch sentence"],
) -> Biographies:
    """One biography per row: ``<bos>``, then one sentence per attribute in the given order and
    templates.
    """
    sentence = np.stack(
        [
            texts.before_name[attributes, template],
            np.broadcast_to(texts.name[people][:, None], attributes.shape),
            texts.after_name[attributes, template],
            texts.value[people[:, None], attributes],
            texts.after_value[attributes, template],
        ],
        axis=2,
    )
    n, _, n_pieces = sentence.shape
    piece = np.concatenate((np.full((n, 1), texts.bos), sentence.reshape(n, -1)), 1)
    of_attribute = np.concatenate(
        (np.full((n, 1), NO_ATTRIBUTE), np.repeat(attributes, n_pieces, 1)), 1
    )
    length = texts.length[piece]
    flat = length.ravel()
    end = np.cumsum(flat)
    source = np.arange(end[-1]) + np.repeat(texts.start[piece].ravel() - (end - flat), flat)
    return Biographies(
        tokens=texts.tokens[source],
        roles=texts.roles[source],
        attributes=np.repeat(of_attribute.ravel().astype(np.int8), flat),
        lengths=length.sum(1),
        people=people,
    )


def evaluation_templates(
    texts: Texts, people: Int[np.ndarray, " batch"], rng: np.random.Generator
) -> np.ndarray:
    """One of each person's evaluation templates for each attribute, ``person attribute``, in
    ``ATTRIBUTES`` order.
    """
    pick = (
        N_TEMPLATES - 1 - rng.integers(N_EVALUATION_TEMPLATES, size=(len(people), len(ATTRIBUTES)))
    )
    return _pick_templates(texts, people, pick)


def training_templates(
    texts: Texts,
    people: Int[np.ndarray, " batch"],
    n_train_templates: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """One of each person's first ``n_train_templates`` training templates for each attribute,
    ``person attribute``.
    """
    return _pick_templates(
        texts, people, rng.integers(n_train_templates, size=(len(people), len(ATTRIBUTES)))
    )


def _pick_templates(texts: Texts, people: np.ndarray, pick: np.ndarray) -> np.ndarray:
    return texts.template_order[people[:, None], np.arange(len(ATTRIBUTES)), pick].astype(int)


def _split(template: str) -> tuple[str, str, str]:
    before, rest = template.split("{name}")
    after, end = rest.split("{value}")
    return before, after, end


def _names(people: pd.DataFrame, pieces: "_Pieces") -> np.ndarray:
    by_part = [encode(pieces.tokenizer, people[part].tolist()) for part in NAME_PARTS]
    roles = [ROLES.index(f"name_{part}") for part in NAME_PARTS]
    name_pieces = []
    for words in zip(*by_part):
        tokens = [token for word in words for token in word]
        of_part = [role for role, word in zip(roles, words) for _ in word]
        name_pieces.append(pieces.add_tokens(tokens, of_part))
    return np.array(name_pieces)


def _values(column: pd.Series, pieces: "_Pieces") -> np.ndarray:
    code, unique = pd.factorize(column)
    return np.array(pieces.add(unique.tolist(), "value"))[code]


class _Pieces:
    """Grows the arrays of ``Texts``."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.roles: list[int] = []
        self.lengths: list[int] = []
        self.marks = {
            i for word, i in tokenizer.get_vocab().items() if not any(map(str.isalnum, word))
        }

    def add(self, texts: list[str], role: str) -> list[int]:
        """Numbers of the new pieces; in a cue, punctuation marks have a role of their own."""
        marks, of_mark = (self.marks, ROLES.index("punctuation")) if role == "cue" else (set(), 0)
        return [
            self.add_tokens(ids, [of_mark if i in marks else ROLES.index(role) for i in ids])
            for ids in encode(self.tokenizer, texts)
        ]

    def add_tokens(self, ids: list[int], roles: list[int]) -> int:
        self.tokens += ids
        self.roles += roles
        self.lengths.append(len(ids))
        return len(self.lengths) - 1

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        length = np.array(self.lengths)
        return (
            np.array(self.tokens),
            np.array(self.roles, np.int8),
            np.cumsum(length) - length,
            length,
        )
