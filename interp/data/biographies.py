"""Biographies as tokens with their roles, built for a whole batch at once.

Every piece of text that can occur (a template's part before the name, a name, a value, ...) is
tokenized once and laid end to end in one array. A biography is a list of pieces; a batch of them is
one gather from that array.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Int8
from tokenizers import Tokenizer

from interp.config import ATTRIBUTES
from interp.data.population import DATE, NAME_PARTS
from interp.data.template_sets import TemplateSet, built_in_templates, template_order
from interp.data.tokenizer import BOS, build_tokenizer, encode

ROLES = ("bos", "name_first", "name_middle", "name_last", "cue", "value", "punctuation")
NO_ATTRIBUTE = NO_PIECE = -1


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
    template_order: Int8[np.ndarray, "person attribute slot"]
    """A permutation of the templates for each person and attribute, as ``template_sets`` draws it:
    of the 25 built-in ones the last 5 are for evaluation.
    """
    templates: dict[str, TemplateSet]
    """By attribute, in the order of columns."""
    date_column: int | None
    """The attribute whose values are day, month and year, drawn independently."""
    weights: Float[np.ndarray, " person"] | None
    """How often each person is sampled relative to others, where a user's CSV says so."""

    @property
    def attributes(self) -> tuple[str, ...]:
        return tuple(self.templates)

    @property
    def n_train(self) -> Int[np.ndarray, " attribute"]:
        """How many training templates each person has."""
        return np.array([one.n_train for one in self.templates.values()])

    @property
    def n_evaluation(self) -> Int[np.ndarray, " attribute"]:
        """How many evaluation templates each person has."""
        return np.array([one.n_evaluation for one in self.templates.values()])


@dataclass(frozen=True)
class Biographies:
    """Tokens of a batch end to end, without pads; row i holds ``lengths[i]`` of them."""

    tokens: Int[np.ndarray, " token"]
    roles: Int8[np.ndarray, " token"]
    """Index into ``ROLES``."""
    attributes: Int8[np.ndarray, " token"]
    """Index into ``attribute_names`` of the sentence the token is in; −1 for ``<bos>``."""
    lengths: Int[np.ndarray, " batch"]
    people: Int[np.ndarray, " batch"]
    attribute_names: tuple[str, ...] = ATTRIBUTES


def tokenizer_for(
    people: pd.DataFrame, templates: dict[str, TemplateSet] | None = None
) -> Tokenizer:
    """Tokenizer that knows every template word and every name and value of ``people``."""
    sets = templates or built_in_templates()
    sentences = (text.format(name="", value="") for one in sets.values() for text in one.texts)
    words = (text for column in (*NAME_PARTS, *sets) for text in people[column].unique())
    return build_tokenizer([*sentences, *words])


def lay_out(
    people: pd.DataFrame,
    tokenizer: Tokenizer,
    *,
    seed: int,
    templates: dict[str, TemplateSet] | None = None,
) -> Texts:
    """The text pieces of a population's biographies; ``seed`` decides each person's training and
    evaluation templates. ``templates``: those of the attributes of a user's own people.
    """
    sets = templates or built_in_templates()
    pieces = _Pieces(tokenizer)
    bos = pieces.add_tokens([tokenizer.token_to_id(BOS)], [ROLES.index("bos")])
    parts = [[_split(text) for text in one.texts] for one in sets.values()]
    before, after, end = (
        _rectangular([pieces.add([text[i] for text in texts], "cue") for texts in parts])
        for i in range(3)
    )
    name = _names(people, pieces)
    value = np.stack([_values(people[attribute], pieces) for attribute in sets], 1)
    order = template_order(sets, len(people), np.random.default_rng([seed, 1]))
    return Texts(
        *pieces.arrays(),
        bos,
        before,
        after,
        end,
        name,
        value,
        order,
        sets,
        date_column=None if templates else list(sets).index(DATE),
        weights=people.weight.to_numpy(float) if "weight" in people else None,
    )


def _rectangular(rows: list[list[int]]) -> Int[np.ndarray, "attribute template"]:
    """An attribute with fewer templates than others has no piece there: ``NO_PIECE``."""
    table = np.full((len(rows), max(map(len, rows))), NO_PIECE)
    for row, pieces in zip(table, rows):
        row[: len(pieces)] = pieces
    return table


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
        attribute_names=texts.attributes,
    )


def check_lengths(texts: Texts, told: Sequence[str], n_ctx: int) -> None:
    """Raises a ValueError where a biography that tells of the attributes ``told`` can have more
    than ``n_ctx`` tokens.
    """
    columns = [texts.attributes.index(name) for name in told]
    longest = 1
    for column in columns:
        parts = (texts.before_name, texts.after_name, texts.after_value)
        template = sum(texts.length[part[column][part[column] >= 0]] for part in parts).max()
        longest += template + texts.length[texts.value[:, column]]
    longest = longest + len(columns) * texts.length[texts.name]
    if (most := longest.max()) > n_ctx:
        raise ValueError(
            f"a biography of {len(columns)} attributes can have {most} tokens (of person "
            f"{longest.argmax()}), the model takes at most {n_ctx}; use fewer attributes, or "
            "shorter templates and values"
        )


def evaluation_templates(
    texts: Texts, people: Int[np.ndarray, " batch"], rng: np.random.Generator
) -> np.ndarray:
    """One of each person's evaluation templates for each attribute, ``person attribute``."""
    last = texts.template_order.shape[2] - 1
    return _pick_templates(texts, people, last - _drawn(texts.n_evaluation, len(people), rng))


def training_templates(
    texts: Texts,
    people: Int[np.ndarray, " batch"],
    n_train_templates: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """One of each person's first ``n_train_templates`` training templates for each attribute,
    ``person attribute``; of all of them where an attribute has fewer.
    """
    n = np.minimum(texts.n_train, n_train_templates)
    return _pick_templates(texts, people, _drawn(n, len(people), rng))


def _drawn(
    n: Int[np.ndarray, " attribute"], n_people: int, rng: np.random.Generator
) -> Int[np.ndarray, "person attribute"]:
    """Numbers from 0 to n − 1."""
    return rng.integers(n, size=(n_people, len(n)))


def _pick_templates(texts: Texts, people: np.ndarray, pick: np.ndarray) -> np.ndarray:
    columns = np.arange(len(texts.attributes))
    return texts.template_order[people[:, None], columns, pick].astype(int)


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
