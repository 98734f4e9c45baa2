"""Prompts with token roles: a fact's sentence up to its value, and its token-aligned counterfactual
prompt (the corrupted twin).

The twin is the same sentence with another person's name in it, every part of the name changed or
one, so clean and corrupted differ at name tokens only. The other person's value must begin with
another token, or their logits could not tell the runs apart. Prompts of one's own need neither
roles nor twins (``from_tokens``); what then can't be asked is refused when it is asked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.data.facts_in_words import fact_html, facts_html, in_words, summary
from interp.data.token_ids import NO_TOKEN, answers_of, named_roles, prompts_of
from interp.fields import argument

PROMPT_ROLES = ("bos", "context", "name_first", "name_middle", "name_last", "cue", "final")
"""``context``: tokens of earlier sentences. ``cue``: template text. ``final``: the position that
predicts the first value token.
"""
TEXT_COLUMNS = (
    "person",
    "corrupted_person",
    "attribute",
    "clean_prompt",
    "corrupted_prompt",
    "answer",
    "corrupted_answer",
)


@dataclass(frozen=True)
class Fact:
    """One fact, without padding."""

    clean: Int[Tensor, " pos"]
    """Token ids up to just before the value, from ``<bos>``."""
    corrupted: Int[Tensor, " pos"] | None
    answer: Int[Tensor, " value_token"]
    """Token ids of the right value on the clean prompt."""
    corrupted_answer: Int[Tensor, " other_token"] | None
    roles: tuple[str, ...]
    """Of each position; empty for facts without roles."""
    text: dict[str, object]
    """person, corrupted_person, attribute, clean_prompt, corrupted_prompt, answer,
    corrupted_answer, for reading.
    """

    def __repr__(self) -> str:
        return f"Fact({in_words(self.text)})"

    def _repr_html_(self) -> str:
        return fact_html(self.text, len(self.clean))


@dataclass(frozen=True)
class FactSet:
    """Facts side by side; prompts are padded on the right with 0, answers with −1.

    Raises:
        ValueError: lengths, token ids or roles that can't be; the message names the fact.
    """

    clean: Int[Tensor, "fact pos"]
    corrupted: Int[Tensor, "fact pos"] | None
    """None without twins: then there is nothing to patch from, and ablations only are possible."""
    lengths: Int[Tensor, " fact"]
    roles: Int[Tensor, "fact pos"]
    """Index into ``role_names``; −1 for a pad, and everywhere for facts without roles."""
    answers: Int[Tensor, "fact value_token"]
    corrupted_answers: Int[Tensor, "fact other_token"] | None
    """None: then ``logit_diff`` is NaN."""
    texts: pd.DataFrame
    """A row a fact: person, corrupted_person, attribute, clean_prompt, corrupted_prompt, answer,
    corrupted_answer.
    """
    role_names: tuple[str, ...] = PROMPT_ROLES
    """In the order in which results have them."""
    vocabulary: str = ""
    """Digest of the vocabulary that the token ids are of; empty if unknown."""

    def __post_init__(self) -> None:
        _check(self)

    def __repr__(self) -> str:
        return f"FactSet({summary(self.texts, self.lengths.tolist())})"

    def _repr_html_(self) -> str:
        return facts_html(self.texts, self.lengths.tolist())

    @property
    def has_roles(self) -> bool:
        return bool((self.roles >= 0).any())

    def __len__(self) -> int:
        return len(self.lengths)

    def batches(self, size: int) -> "Iterator[FactSet]":
        """At most ``size`` facts at a time, in their order."""
        return (self[i : i + size] for i in range(0, len(self), size))

    def __iter__(self) -> Iterator[Fact]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Fact: ...
    @overload
    def __getitem__(self, index: "slice | Sequence[int]") -> "FactSet": ...
    def __getitem__(self, index):
        if isinstance(index, (int, np.integer)):
            return self._fact(int(index))
        at = np.arange(len(self))[index if isinstance(index, slice) else _places(index, len(self))]
        n_pos = int(self.lengths[at].max()) if len(at) else 0
        corrupted, others = self.corrupted, self.corrupted_answers
        return FactSet(
            self.clean[at, :n_pos],
            None if corrupted is None else corrupted[at, :n_pos],
            self.lengths[at],
            self.roles[at, :n_pos],
            self.answers[at],
            None if others is None else others[at],
            self.texts.iloc[at].reset_index(drop=True),
            self.role_names,
            self.vocabulary,
        )

    def _fact(self, index: int) -> Fact:
        n, roles = self.lengths[index], self.roles[index]
        answer = self.answers[index]
        others = None if self.corrupted_answers is None else self.corrupted_answers[index]
        return Fact(
            clean=self.clean[index, :n],
            corrupted=None if self.corrupted is None else self.corrupted[index, :n],
            answer=answer[answer != NO_TOKEN],
            corrupted_answer=None if others is None else others[others != NO_TOKEN],
            roles=tuple(self.role_names[i] for i in roles[:n] if i != NO_TOKEN),
            text=self.texts.iloc[index].to_dict(),
        )


def from_tokens(
    clean: Tensor | np.ndarray | Sequence[Sequence[int]],
    corrupted: Tensor | np.ndarray | Sequence[Sequence[int]] | None = None,
    *,
    answers: Tensor | np.ndarray | Sequence,
    corrupted_answers: Tensor | np.ndarray | Sequence | None = None,
    roles: Sequence[str] | Sequence[Sequence[str]] | None = None,
    lengths: Tensor | np.ndarray | Sequence[int] | None = None,
) -> FactSet:
    """Facts from the user's own token ids, for any model; nothing is added to the prompts, not even
    ``<bos>``.

    Args:
        clean: a table of token ids, or a list of prompts of any lengths.
        corrupted: the twins, of the same lengths; without them only ablations are possible.
        answers: the token that follows each clean prompt, or a list of the tokens of each value.
        corrupted_answers: the same for the twins; without them ``logit_diff`` is NaN.
        roles: a name for each position, for all prompts alike or a list of names a prompt; any
            names. Without them patch ``by="pos"``.
        lengths: tokens of each prompt, where ``clean`` is a table that is padded on the right.

    Raises:
        ValueError: they don't fit together; the message names the fact.
    """
    prompts = prompts_of(clean, lengths, "clean")
    others = None if corrupted is None else prompts_of(corrupted, lengths, "corrupted")
    if others is not None:
        _check_aligned(prompts, others)
    names, named = named_roles(roles, [len(prompt) for prompt in prompts])
    if names and set(names) <= set(PROMPT_ROLES):
        named = [[PROMPT_ROLES.index(names[i]) for i in row] for row in named]
        names = PROMPT_ROLES
    right = answers_of(answers, len(prompts), "answers")
    wrong = None
    if corrupted_answers is not None:
        wrong = answers_of(corrupted_answers, len(prompts), "corrupted_answers")
    texts = {"person": -1, "corrupted_person": -1, "attribute": ""}
    for column, rows in (
        ("clean_prompt", prompts),
        ("corrupted_prompt", others),
        ("answer", right),
        ("corrupted_answer", wrong),
    ):
        texts[column] = "" if rows is None else [" ".join(map(str, row)) for row in rows]
    return FactSet(
        padded(prompts, 0),
        None if others is None else padded(others, 0),
        torch.tensor([len(prompt) for prompt in prompts]),
        padded(named, NO_TOKEN),
        padded(right, NO_TOKEN),
        None if wrong is None else padded(wrong, NO_TOKEN),
        pd.DataFrame(texts, index=range(len(prompts))),
        names,
    )


def _check_aligned(prompts: list[list[int]], others: list[list[int]]) -> None:
    if len(prompts) != len(others):
        raise ValueError(f"{len(prompts)} clean prompts and {len(others)} corrupted; give one each")
    for i, (one, two) in enumerate(zip(prompts, others)):
        if len(one) != len(two):
            raise ValueError(
                f"fact {i} has a clean prompt of {len(one)} tokens and a corrupted one of "
                f"{len(two)}; they must be aligned token by token"
            )
        if one == two:
            raise ValueError(f"fact {i} has a corrupted prompt like its clean one; change it")


def role_masks(facts: FactSet) -> Bool[Tensor, "role fact pos"]:
    """Which positions of each prompt have each of ``facts.role_names``."""
    return torch.stack([facts.roles == i for i in range(len(facts.role_names))])


def padded(rows: Sequence[Sequence[int] | np.ndarray], pad: int) -> Int[Tensor, "row column"]:
    table = torch.full((len(rows), max(map(len, rows), default=0)), pad)
    for out, row in zip(table, rows):
        out[: len(row)] = torch.as_tensor(np.asarray(row))
    return table


def check_vocabulary(facts: FactSet, vocabulary: str, reader: str) -> None:
    """Raises a ValueError where ``facts`` are known to use another vocabulary."""
    if facts.vocabulary and vocabulary and facts.vocabulary != vocabulary:
        raise ValueError(
            f"the facts are of another vocabulary than {reader}; sample them with suite.facts() of "
            "its own run"
        )


def check_tokens(facts: FactSet, n_vocab: int, n_ctx: int) -> None:
    """Raises a ValueError where a model with ``d_vocab`` tokens and ``n_ctx`` positions cannot read
    ``facts``.
    """
    tables = {"clean": facts.clean, "corrupted": facts.corrupted, "answers": facts.answers}
    for name, table in (tables | {"corrupted_answers": facts.corrupted_answers}).items():
        if table is None:
            continue
        for fact, place in (table >= n_vocab).nonzero()[:1].tolist():
            raise ValueError(
                f"fact {fact} has token id {int(table[fact, place])} among its {name}, the model "
                f"has {n_vocab} tokens; use facts of the model's own vocabulary"
            )
    n_tokens = facts.lengths + (facts.answers != NO_TOKEN).sum(1) - 1
    for fact in (n_tokens > n_ctx).nonzero()[:1, 0].tolist():
        raise ValueError(
            f"fact {fact} has {int(n_tokens[fact])} tokens with its value, the model takes at most "
            f"{n_ctx}, its positions or its sliding window; shorten it"
        )


def _check(facts: FactSet) -> None:
    """Raises a ValueError unless the parts of a fact set agree."""
    for name, value in vars(facts).items():
        if isinstance(value, Tensor) and value.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} is of type {value.dtype}; give token ids as int64")
    argument("texts", facts.texts, pd.DataFrame)
    n, n_pos = facts.clean.shape
    for name in ("corrupted", "lengths", "roles", "answers", "corrupted_answers", "texts"):
        table = getattr(facts, name)
        if table is not None and len(table) != n:
            raise ValueError(f"{name} has {len(table)} facts, clean has {n}; give each fact a row")
    for name in ("corrupted", "roles"):
        table = getattr(facts, name)
        if table is not None and table.shape[1] != n_pos:
            raise ValueError(
                f"{name} is {table.shape[1]} tokens wide, clean {n_pos}; pad them to one width"
            )
    if missing := [column for column in TEXT_COLUMNS if column not in facts.texts]:
        raise ValueError(f"texts has no column {missing[0]}; it needs {', '.join(TEXT_COLUMNS)}")
    names = facts.role_names
    if len(set(names)) < len(names) or any(not x or "+" in x or x == "all" for x in names):
        raise ValueError(
            f"role_names are {names}; name each role once, not 'all' and without '+', which make "
            "groups of roles"
        )
    inside = torch.arange(n_pos) < facts.lengths[:, None]
    _refuse(
        (facts.lengths < 1) | (facts.lengths > n_pos),
        f"has a prompt length that is not from 1 to {n_pos}, the width of the table",
    )
    for name in ("clean", "corrupted"):
        table = getattr(facts, name)
        if table is not None:
            _refuse((inside & (table < 0)).any(1), f"has a negative token id in its {name} prompt")
    for name in ("answers", "corrupted_answers"):
        table = getattr(facts, name)
        if table is not None:
            there = table >= 0
            gaps = (~there[:, :-1] & there[:, 1:]).any(1) | (table < NO_TOKEN).any(1)
            _refuse(~there.any(1) | gaps, f"has no token, a gap or a negative id in its {name}")
    if facts.corrupted_answers is not None:
        same = facts.answers[:, :1] == facts.corrupted_answers[:, :1]
        _refuse(same.any(1), "has two answers that begin with the same token")
    known = (facts.roles >= 0) & (facts.roles < len(names))
    if facts.has_roles:
        _refuse(
            (known != inside).any(1),
            f"has a position without one of the {len(names)} role_names, or a pad with one",
        )


def _refuse(wrong: Bool[Tensor, " fact"], what: str) -> None:
    for fact in wrong.nonzero()[:1, 0].tolist():
        raise ValueError(f"fact {fact} {what}; correct or leave out that fact")


def _places(index: object, n: int) -> np.ndarray:
    places = np.asarray(index)
    if places.dtype == bool and places.shape != (n,):
        raise ValueError(f"a mask of {places.size} entries can't choose among {n} facts; give {n}")
    if not places.size:
        return places.astype(int)
    if places.ndim != 1 or places.dtype.kind not in "iub":
        raise ValueError(f"facts can be chosen by whole numbers or a mask, got {index!r}")
    return places
