"""Prompts that know what their tokens are: a fact's sentence up to its value, and its token-aligned
corrupted twin.

The twin is the same sentence with another person's name in it, every part of the name changed or
one, so clean and corrupted differ at name tokens only. The other person's value must begin with
another token, or their logits could not tell the runs apart.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from torch import Tensor

from interp.bios.population import NAME_PARTS, templates
from interp.bios.text import ROLES, Texts, evaluation_templates, write_biographies
from interp.bios.tokenizer import BOS, encode
from interp.config import ATTRIBUTES, Corruption, check_choice

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
            ``held-out`` person's, with no part of the name in common; or that of a training person
            who differs in the first, middle or last name alone (``swap-first``, ``swap-middle``,
            ``swap-last``). Facts without such a person are passed over.
        n_context: sentences on other attributes of the same person before the one that asks; the
            twin keeps their values.
        length: keep to prompts of exactly so many tokens, so that positions can be compared.

    Raises:
        ValueError: unknown attribute or corruption; too few people, or none fit to be a twin.
    """
    for attribute in attributes:
        if attribute not in ATTRIBUTES:
            raise ValueError(f"no attribute {attribute!r}; there are {', '.join(ATTRIBUTES)}")
    check_choice("corruption", corruption, Corruption)
    if not 0 <= n_context < len(ATTRIBUTES):
        raise ValueError(
            f"n_context is {n_context}; there are at most {len(ATTRIBUTES) - 1} other sentences"
        )
    rng = np.random.default_rng([seed, 4])
    asked = _ask(people, texts, attributes, n_context, rng)
    if length is not None:
        asked = asked[asked.length == length]
    chosen, twins = _spread(people, texts, asked, n, attributes, corruption, length, rng)
    return _build(people, texts, chosen, twins)


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
    people: pd.DataFrame,
    texts: Texts,
    asked: pd.DataFrame,
    n: int,
    attributes: Sequence[str],
    corruption: Corruption,
    length: int | None,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, np.ndarray]:
    """The first facts of each attribute that have a twin, attributes in turn, and their twins."""
    if n < 1 or not attributes:
        raise ValueError(
            f"asked for {n} facts on {len(attributes)} attributes; ask for 1 or more of each"
        )
    fitting = _twins(people, texts, corruption)
    queues = [iter(table.index) for _, table in asked.groupby("attribute")]
    chosen: dict[int, int] = {}
    while queues and len(chosen) < n:
        for queue in list(queues):
            for row in queue:
                fits = fitting(int(asked.person[row]), int(asked.attribute[row]))
                if len(fits):
                    chosen[row] = int(rng.choice(fits))
                    break
            else:
                queues.remove(queue)
            if len(chosen) == n:
                break
    if len(chosen) < n:
        which = "" if length is None else f" with prompts of {length} tokens"
        raise ValueError(
            f"asked for {n} facts, the run has {len(chosen)} on {', '.join(attributes)}{which} "
            f"with a {corruption} twin, whose value begins with another word; ask for fewer, use "
            "another corruption or a larger population"
        )
    twins = pd.Series(chosen)
    table = asked.loc[twins.index].sort_values("attribute", kind="stable")
    return table, twins[table.index].to_numpy()


def _twins(
    people: pd.DataFrame, texts: Texts, corruption: str
) -> Callable[[int, int], Int[np.ndarray, " person"]]:
    """Who fits to be the twin of a person, asked for an attribute."""
    eligible = (people.split == ("held-out" if corruption == "held-out" else "train")).to_numpy()
    parts = [pd.factorize(people[part])[0] for part in NAME_PARTS]
    first_token = texts.tokens[texts.start[texts.value]]
    part_roles = [ROLES.index(f"name_{part}") for part in NAME_PARTS]
    shape = np.stack(
        [np.add.reduceat(texts.roles == role, texts.start)[texts.name] for role in part_roles], 1
    )
    kept = corruption.startswith("swap-")

    def fitting(person: int, attribute: int) -> Int[np.ndarray, " person"]:
        fits = (
            eligible
            & (first_token[:, attribute] != first_token[person, attribute])
            & (shape == shape[person]).all(1)
        )
        for name, part in zip(NAME_PARTS, parts):
            same = kept and corruption != f"swap-{name}"
            fits &= (part == part[person]) == same
        return np.flatnonzero(fits)

    return fitting


def _build(people: pd.DataFrame, texts: Texts, chosen: pd.DataFrame, twins: np.ndarray) -> FactSet:
    person, attribute = chosen.person.to_numpy(), chosen.attribute.to_numpy()
    whole = write_biographies(texts, person, np.stack(chosen.order), np.stack(chosen.template))
    starts = np.cumsum(whole.lengths) - whole.lengths
    name_roles = [ROLES.index(f"name_{part}") for part in NAME_PARTS]
    clean, corrupted, roles = [], [], []
    for i, (start, length) in enumerate(zip(starts, chosen.length)):
        prompt = slice(start, start + length)
        named = np.isin(whole.roles[prompt], name_roles)
        other = whole.tokens[prompt].copy()
        twin = _piece(texts, int(texts.name[twins[i]]))
        other[named] = np.tile(twin, named.sum() // len(twin))
        clean.append(whole.tokens[prompt])
        corrupted.append(other)
        roles.append(_prompt_roles(whole.roles[prompt], whole.attributes[prompt] == attribute[i]))
    return FactSet(
        clean=_padded(clean, 0),
        corrupted=_padded(corrupted, 0),
        lengths=torch.tensor(chosen.length.to_numpy()),
        roles=_padded(roles, NO_TOKEN),
        answers=_padded([_value(texts, p, a) for p, a in zip(person, attribute)], NO_TOKEN),
        corrupted_answers=_padded(
            [_value(texts, p, a) for p, a in zip(twins, attribute)], NO_TOKEN
        ),
        texts=_table(people, chosen, twins),
    )


def _prompt_roles(roles: np.ndarray, asks: np.ndarray) -> np.ndarray:
    """Roles in ``PROMPT_ROLES`` of a prompt whose last sentence is where ``asks`` is true."""
    prompt_roles = np.full(len(roles), PROMPT_ROLES.index("cue"))
    for part in NAME_PARTS:
        prompt_roles[roles == ROLES.index(f"name_{part}")] = PROMPT_ROLES.index(f"name_{part}")
    prompt_roles[~asks] = PROMPT_ROLES.index("context")
    prompt_roles[0], prompt_roles[-1] = PROMPT_ROLES.index("bos"), PROMPT_ROLES.index("final")
    return prompt_roles


def _table(people: pd.DataFrame, chosen: pd.DataFrame, twins: np.ndarray) -> pd.DataFrame:
    sentences = templates()
    names = people[list(NAME_PARTS)].agg(" ".join, axis=1)
    rows = []
    for person, twin, order, template in zip(chosen.person, twins, chosen.order, chosen.template):
        pairs = [(ATTRIBUTES[a], int(t)) for a, t in zip(order, template)]
        *before, (asked, number) = pairs
        context = [sentences[a][t].replace("{value}", people[a][person]) for a, t in before]
        prompt = " ".join([*context, sentences[asked][number].split("{value}")[0].rstrip()])
        rows.append(
            {
                "person": people.id[person],
                "corrupted_person": people.id[twin],
                "attribute": asked,
                "clean_prompt": prompt.replace("{name}", names[person]),
                "corrupted_prompt": prompt.replace("{name}", names[twin]),
                "answer": people[asked][person],
                "corrupted_answer": people[asked][twin],
            }
        )
    return pd.DataFrame(rows)


def _value(texts: Texts, person: np.integer, attribute: np.integer) -> np.ndarray:
    return _piece(texts, int(texts.value[person, attribute]))


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
