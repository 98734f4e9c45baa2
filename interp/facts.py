"""Prompts that know what their tokens are: a fact's sentence up to its value, and its token-aligned
corrupted twin.

The twin is the same sentence with another person's name in it, every part of the name changed or
one, so clean and corrupted differ at name tokens only. The other person's value must begin with
another token, or their logits could not tell the runs apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from torch import Tensor

from interp.bios.tokenizer import BOS, encode

PROMPT_ROLES = ("bos", "context", "name_first", "name_middle", "name_last", "cue", "final")
"""``context``: tokens of earlier sentences. ``cue``: template text. ``final``: the position that
predicts the first value token.
"""
NO_TOKEN = -1
CSV_COLUMNS = ("clean_prompt", "corrupted_prompt", "name", "answer", "corrupted_answer")


@dataclass(frozen=True)
class Fact:
    """One fact, without pads."""

    clean: Int[Tensor, " pos"]
    """Token ids up to just before the value, from ``<bos>``."""
    corrupted: Int[Tensor, " pos"]
    answer: Int[Tensor, " value_token"]
    """Token ids of the right value on the clean prompt."""
    corrupted_answer: Int[Tensor, " other_token"]
    roles: tuple[str, ...]
    """Of each position."""
    text: dict[str, object]
    """person, corrupted_person, attribute, clean_prompt, corrupted_prompt, answer,
    corrupted_answer, for reading.
    """


@dataclass(frozen=True)
class FactSet:
    """Facts side by side; prompts are padded on the right with 0, answers with −1."""

    clean: Int[Tensor, "fact pos"]
    corrupted: Int[Tensor, "fact pos"]
    lengths: Int[Tensor, " fact"]
    roles: Int[Tensor, "fact pos"]
    """Index into ``PROMPT_ROLES``; −1 for a pad."""
    answers: Int[Tensor, "fact value_token"]
    corrupted_answers: Int[Tensor, "fact other_token"]
    texts: pd.DataFrame
    """A row a fact: person, corrupted_person, attribute, clean_prompt, corrupted_prompt, answer,
    corrupted_answer.
    """

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Fact]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Fact: ...
    @overload
    def __getitem__(self, index: "slice | Sequence[int]") -> "FactSet": ...
    def __getitem__(self, index):
        if isinstance(index, (int, np.integer)):
            n = self.lengths[index]
            return Fact(
                clean=self.clean[index, :n],
                corrupted=self.corrupted[index, :n],
                answer=self.answers[index][self.answers[index] != NO_TOKEN],
                corrupted_answer=self.corrupted_answers[index][
                    self.corrupted_answers[index] != NO_TOKEN
                ],
                roles=tuple(PROMPT_ROLES[i] for i in self.roles[index, :n]),
                text=self.texts.iloc[index].to_dict(),
            )
        at = torch.arange(len(self))[index] if isinstance(index, slice) else torch.as_tensor(index)
        n_pos = int(self.lengths[at].max()) if len(at) else 0
        return FactSet(
            self.clean[at, :n_pos],
            self.corrupted[at, :n_pos],
            self.lengths[at],
            self.roles[at, :n_pos],
            self.answers[at],
            self.corrupted_answers[at],
            self.texts.iloc[at.numpy()].reset_index(drop=True),
        )


def read_facts(path: str | Path, tokenizer: Tokenizer) -> FactSet:
    """Facts from a CSV of one's own prompts, with columns clean_prompt, corrupted_prompt, name,
    answer, corrupted_answer (and attribute).

    ``name`` is the name as it stands in the clean prompt: its first word, its last, and what is
    between them get their roles.

    Raises:
        ValueError: no CSV there; a column is missing, a word is unknown, or a row's prompts differ
            in their number of tokens.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} can't be read as a CSV ({error}); see that it is one") from None
    if missing := [column for column in CSV_COLUMNS if column not in table]:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}; it needs {', '.join(CSV_COLUMNS)}"
        )
    if table.empty:
        raise ValueError(f"{path} holds no rows; write one row a fact")
    ids = {column: encode(tokenizer, table[column].tolist()) for column in CSV_COLUMNS}
    bos = tokenizer.token_to_id(BOS)
    roles = []
    for row, (clean, corrupted, name) in enumerate(
        zip(ids["clean_prompt"], ids["corrupted_prompt"], ids["name"])
    ):
        if len(clean) != len(corrupted):
            raise ValueError(
                f"{path}, row {row + 1}: clean_prompt has {len(clean)} tokens, corrupted_prompt "
                f"{len(corrupted)} "
                f"({table.clean_prompt[row]!r}, {table.corrupted_prompt[row]!r}); they must be "
                "aligned"
            )
        first, other = ids["answer"][row], ids["corrupted_answer"][row]
        if not first or not other or first[0] == other[0]:
            raise ValueError(
                f"{path}, row {row + 1}: the answers {table.answer[row]!r} and "
                f"{table.corrupted_answer[row]!r} must begin with different words"
            )
        roles.append(_roles_around(clean, name, f"{path}, row {row + 1}: {table.name[row]!r}"))
    texts = table.assign(attribute=table.get("attribute", ""), person=-1, corrupted_person=-1)
    return FactSet(
        clean=padded([[bos, *tokens] for tokens in ids["clean_prompt"]], 0),
        corrupted=padded([[bos, *tokens] for tokens in ids["corrupted_prompt"]], 0),
        lengths=torch.tensor([len(tokens) + 1 for tokens in ids["clean_prompt"]]),
        roles=padded(roles, NO_TOKEN),
        answers=padded(ids["answer"], NO_TOKEN),
        corrupted_answers=padded(ids["corrupted_answer"], NO_TOKEN),
        texts=texts,
    )


def role_masks(facts: FactSet) -> Bool[Tensor, "role fact pos"]:
    """Which positions of each prompt have each of ``PROMPT_ROLES``."""
    return torch.stack([facts.roles == i for i in range(len(PROMPT_ROLES))])


def _roles_around(tokens: list[int], name: list[int], where: str) -> list[int]:
    places = [i for i in range(len(tokens)) if tokens[i : i + len(name)] == name]
    if not name or not places:
        raise ValueError(
            f"{where} does not stand in the clean prompt; write the name as it stands there"
        )
    start, end = places[-1] + 1, places[-1] + 1 + len(name)
    if end > len(tokens):
        raise ValueError(
            f"{where} ends the prompt; at least one word must come between the name and the value"
        )
    roles = [PROMPT_ROLES.index("cue")] * (len(tokens) + 1)
    roles[start:end] = [PROMPT_ROLES.index("name_middle")] * len(name)
    roles[start], roles[end - 1] = PROMPT_ROLES.index("name_first"), PROMPT_ROLES.index("name_last")
    roles[0], roles[-1] = PROMPT_ROLES.index("bos"), PROMPT_ROLES.index("final")
    return roles


def padded(rows: Sequence[Sequence[int] | np.ndarray], pad: int) -> Int[Tensor, "row column"]:
    table = torch.full((len(rows), max(map(len, rows))), pad)
    for out, row in zip(table, rows):
        out[: len(row)] = torch.as_tensor(np.asarray(row))
    return table
