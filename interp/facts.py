"""Prompts that know what their tokens are: a fact's sentence up to its value, and its token-aligned
corrupted twin.

The twin is the same sentence with another person's name in it, every part of the name changed, so
clean and corrupted differ at name tokens only. The other person's value must begin with another
token, or their logits could not tell the runs apart.
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

from interp.bios.population import NAME_PARTS
from interp.bios.text import ROLES, Texts, evaluation_templates, write_biographies
from interp.bios.tokenizer import BOS, encode
from interp.config import ATTRIBUTES, Corruption

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


def draw_facts(
    people: pd.DataFrame,
    texts: Texts,
    tokenizer: Tokenizer,
    *,
    n: int,
    attributes: Sequence[str],
    seed: int,
    corruption: Corruption = "swap",
    n_context: int = 0,
    length: int | None = None,
) -> FactSet:
    """``n`` facts on training people, spread evenly over ``attributes``, in evaluation templates.

    Args:
        corruption: whose name the twin holds: another training person's (``swap``) or a
            ``held-out`` person's.
        n_context: sentences on other attributes of the same person before the one that asks; the
            twin keeps their values.
        length: keep to prompts of exactly so many tokens, so that positions can be compared.

    Raises:
        ValueError: unknown attribute; too few people, or none fit to be a twin.
    """
    for attribute in attributes:
        if attribute not in ATTRIBUTES:
            raise ValueError(f"no attribute {attribute!r}; there are {', '.join(ATTRIBUTES)}")
    if not 0 <= n_context < len(ATTRIBUTES):
        raise ValueError(
            f"n_context is {n_context}; there are at most {len(ATTRIBUTES) - 1} other sentences"
        )
    rng = np.random.default_rng([seed, 4])
    asked = _ask(people, texts, attributes, n_context, rng)
    if length is not None:
        asked = asked[asked.length == length]
    chosen = _spread(asked, n, attributes, length)
    twins = _twins(people, texts, chosen, corruption, rng)
    return _build(people, texts, tokenizer, chosen, twins)


def read_facts(path: str | Path, tokenizer: Tokenizer) -> FactSet:
    """Facts from a CSV of one's own prompts, with columns clean_prompt, corrupted_prompt, name,
    answer, corrupted_answer (and attribute).

    ``name`` is the name as it stands in the clean prompt: its first word, its last, and what is
    between them get their roles.

    Raises:
        ValueError: a column is missing, a word is unknown, or a row's prompts differ in their
            number of tokens.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
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
        roles.append(_roles_around(clean, name, f"{path}, row {row + 1}: {table.name[row]!r}"))
    texts = table.assign(attribute=table.get("attribute", ""), person=-1, corrupted_person=-1)
    return FactSet(
        clean=_padded([[bos, *tokens] for tokens in ids["clean_prompt"]], 0),
        corrupted=_padded([[bos, *tokens] for tokens in ids["corrupted_prompt"]], 0),
        lengths=torch.tensor([len(tokens) + 1 for tokens in ids["clean_prompt"]]),
        roles=_padded(roles, NO_TOKEN),
        answers=_padded(ids["answer"], NO_TOKEN),
        corrupted_answers=_padded(ids["corrupted_answer"], NO_TOKEN),
        texts=texts,
    )


def role_masks(facts: FactSet) -> Bool[Tensor, "role fact pos"]:
    """Which positions of each prompt have each of ``PROMPT_ROLES``."""
    return torch.stack([facts.roles == i for i in range(len(PROMPT_ROLES))])


def _ask(
    people: pd.DataFrame,
    texts: Texts,
    attributes: Sequence[str],
    n_context: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Every (training person, attribute) in random order, with templates, sentence order and prompt
    length.
    """
    trained = np.flatnonzero(people.split == "train")
    person, attribute = (
        x.ravel()
        for x in np.meshgrid(trained, [ATTRIBUTES.index(a) for a in attributes], indexing="ij")
    )
    shuffled = rng.permutation(len(person))
    person, attribute = person[shuffled], attribute[shuffled]
    template = evaluation_templates(texts, person, rng)
    others = rng.permuted(np.broadcast_to(np.arange(len(ATTRIBUTES)), template.shape), axis=1)
    others = (
        np.stack([row[row != a][:n_context] for row, a in zip(others, attribute)])
        if len(person)
        else others
    )
    order = np.concatenate((others, attribute[:, None]), 1)
    in_order = np.take_along_axis(template, order, 1)
    whole = write_biographies(texts, person, order, in_order).lengths
    end = (
        texts.length[texts.value[person, attribute]]
        + texts.length[texts.after_value[attribute, in_order[:, -1]]]
    )
    return pd.DataFrame(
        {
            "person": person,
            "attribute": attribute,
            "order": list(order),
            "template": list(in_order),
            "length": whole - end,
        }
    )


def _spread(
    asked: pd.DataFrame, n: int, attributes: Sequence[str], length: int | None
) -> pd.DataFrame:
    """The first facts of each attribute, as evenly as ``n`` allows, attribute by attribute."""
    which = "" if length is None else f" with prompts of {length} tokens"
    if n < 1 or not attributes:
        raise ValueError(
            f"asked for {n} facts on {len(attributes)} attributes; ask for 1 or more of each"
        )
    if n > len(asked):
        raise ValueError(
            f"asked for {n} facts, the run has {len(asked)} on {', '.join(attributes)}{which}; "
            "ask for fewer"
        )
    turn = asked.groupby("attribute").cumcount()
    return asked.loc[turn.sort_values(kind="stable").index[:n]].sort_values(
        "attribute", kind="stable"
    )


def _twins(
    people: pd.DataFrame,
    texts: Texts,
    chosen: pd.DataFrame,
    corruption: str,
    rng: np.random.Generator,
) -> np.ndarray:
    eligible = (people.split == ("train" if corruption == "swap" else "held-out")).to_numpy()
    parts = [pd.factorize(people[part])[0] for part in NAME_PARTS]
    first_token = texts.tokens[texts.start[texts.value]]
    part_roles = [ROLES.index(f"name_{part}") for part in NAME_PARTS]
    shape = np.stack(
        [np.add.reduceat(texts.roles == role, texts.start)[texts.name] for role in part_roles], 1
    )
    twins = []
    for person, attribute in zip(chosen.person, chosen.attribute):
        fits = (
            eligible
            & (first_token[:, attribute] != first_token[person, attribute])
            & (shape == shape[person]).all(1)
        )
        for part in parts:
            fits &= part != part[person]
        if not fits.any():
            raise ValueError(
                f"no {corruption} twin for {' '.join(people.loc[person, list(NAME_PARTS)])} "
                f"({ATTRIBUTES[attribute]}): nobody "
                "differs in every name part and in the value's first word; use another "
                "--corruption or a larger population"
            )
        twins.append(rng.choice(np.flatnonzero(fits)))
    return np.array(twins)


def _build(
    people: pd.DataFrame,
    texts: Texts,
    tokenizer: Tokenizer,
    chosen: pd.DataFrame,
    twins: np.ndarray,
) -> FactSet:
    person, attribute = chosen.person.to_numpy(), chosen.attribute.to_numpy()
    order, template = np.stack(chosen.order), np.stack(chosen.template)
    whole = write_biographies(texts, person, order, template)
    starts = np.cumsum(whole.lengths) - whole.lengths
    names = {part: ROLES.index(f"name_{part}") for part in NAME_PARTS}
    clean, corrupted, roles, answers, other_answers = [], [], [], [], []
    for i, (start, length) in enumerate(zip(starts, chosen.length)):
        tokens, role = (x[start : start + length].copy() for x in (whole.tokens, whole.roles))
        other = tokens.copy()
        name = np.isin(role, list(names.values()))
        twin = _piece(texts, int(texts.name[twins[i]]))
        other[name] = np.tile(twin, name.sum() // len(twin))
        in_sentence = (
            np.arange(length)
            > np.flatnonzero(whole.attributes[start : start + length] != attribute[i])[-1]
        )
        prompt_role = np.full(length, PROMPT_ROLES.index("cue"))
        for part, number in names.items():
            prompt_role[role == number] = PROMPT_ROLES.index(f"name_{part}")
        prompt_role[~in_sentence] = PROMPT_ROLES.index("context")
        prompt_role[0], prompt_role[-1] = PROMPT_ROLES.index("bos"), PROMPT_ROLES.index("final")
        clean.append(tokens), corrupted.append(other), roles.append(prompt_role)
        answers.append(_piece(texts, int(texts.value[person[i], attribute[i]])))
        other_answers.append(_piece(texts, int(texts.value[twins[i], attribute[i]])))
    names_of = [ATTRIBUTES[a] for a in attribute]
    table = pd.DataFrame(
        {
            "person": people.id.to_numpy()[person],
            "corrupted_person": people.id.to_numpy()[twins],
            "attribute": names_of,
            "clean_prompt": tokenizer.decode_batch([list(x) for x in clean]),
            "corrupted_prompt": tokenizer.decode_batch([list(x) for x in corrupted]),
            "answer": [people[a][p] for a, p in zip(names_of, person)],
            "corrupted_answer": [people[a][p] for a, p in zip(names_of, twins)],
        }
    )
    return FactSet(
        _padded(clean, 0),
        _padded(corrupted, 0),
        torch.tensor(chosen.length.to_numpy()),
        _padded(roles, NO_TOKEN),
        _padded(answers, NO_TOKEN),
        _padded(other_answers, NO_TOKEN),
        table,
    )


def _piece(texts: Texts, piece: int) -> np.ndarray:
    return texts.tokens[texts.start[piece] : texts.start[piece] + texts.length[piece]]


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


def _padded(rows: Sequence[Sequence[int] | np.ndarray], pad: int) -> Int[Tensor, "row column"]:
    table = torch.full((len(rows), max(map(len, rows))), pad)
    for out, row in zip(table, rows):
        out[: len(row)] = torch.as_tensor(np.asarray(row))
    return table
