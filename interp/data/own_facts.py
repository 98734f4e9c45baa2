"""Facts of one's own, with any Hugging Face tokenizer: from a file to a ``FactSet``.

Each prompt needs a twin, aligned with it token by token, whose answer begins with another token. A
row that has none of its own gets the prompt of its template with the subject of another row of the
same relation, if both subjects have as many tokens.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer

from interp.data.fact_rows import FactRow, Prompt, UnusableRows, listed, read_rows
from interp.data.facts import PROMPT_ROLES, FactSet, padded
from interp.data.prompt_tokens import OwnTokenizer, PromptTokens
from interp.data.token_ids import NO_TOKEN
from interp.fields import LARGEST_SEED, argument


@dataclass(frozen=True)
class _Aligned:
    """A row, its twin, and the tokens of both."""

    row: FactRow
    twin: Prompt
    twin_answer: str
    clean: PromptTokens
    corrupted: PromptTokens


def read_facts(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    n: int | None = None,
    relations: Sequence[str] = (),
    seed: int = 0,
) -> FactSet:
    """Facts from a file of the user's own, in the tokens of any tokenizer.

    The file is a CSV with the columns prompt, subject, answer and, if wanted, relation,
    counterfactual_prompt or counterfactual_subject, and counterfactual_answer; or JSON of a
    published set (see ``fact_rows``). ``{subject}`` in a prompt stands for the subject.

    Args:
        n: at most so many, spread evenly over the relations; by default all.
        relations: those that are asked for; by default all.
        seed: decides which are taken, and who is whose twin.

    Returns:
        Facts whose ``texts`` also have ``row`` (its number in the file), ``subject``,
        ``corrupted_subject`` and ``bos``, the special tokens that the tokenizer puts before each
        prompt (empty if none).

    Raises:
        FileNotFoundError, ValueError: no such file; a column, key or word is not understood; rows
            that give their twin are not aligned with it, all of which are listed; no row has a
            twin. Rows for which no twin is found, and those of a published set that can't be used,
            are left out with a warning that lists them.
    """
    path = Path(argument("path", path, str, is_path=True))
    n = argument("n", n, int | None, least=1)
    relations = argument("relations", relations, tuple[str, ...])
    rng = np.random.default_rng([argument("seed", seed, int, least=0, most=LARGEST_SEED), 10])
    rows, reasons = read_rows(path)
    rows = _of_relations(path, rows, relations)
    n_rows, given = len(rows) + len(reasons), OwnTokenizer(tokenizer)
    tokens, unusable = _tokenized(given, rows)
    rows, reasons = [row for row in rows if row.number in tokens], reasons | unusable
    aligned, misaligned = _with_given_twins(given, rows, tokens)
    reasons |= misaligned
    if reasons and path.suffix != ".json":  # a table of one's own can be corrected
        raise UnusableRows(path, dict(sorted(reasons.items())), n_rows)
    groups = _by_group(rows)
    found: list[_Aligned] = []
    for row in _in_turn(groups, rng):
        if n is not None and len(found) == n:
            break
        try:
            pair = aligned.get(row.number) or _find_twin(given, row, groups, tokens, rng)
            found.append(pair)
        except ValueError as error:
            reasons[row.number] = str(error)
    if not found:
        raise UnusableRows(path, reasons, n_rows)
    if reasons:
        left = listed(dict(sorted(reasons.items())), n_rows)
        warnings.warn(f"{path}: {len(found)} facts are taken; {left}", stacklevel=1)
    return _fact_set(sorted(found, key=lambda pair: pair.row.number))


def _of_relations(path: Path, rows: list[FactRow], relations: Sequence[str]) -> list[FactRow]:
    there = dict.fromkeys(row.relation for row in rows if row.relation)
    for relation in relations:
        if relation not in there:
            raise ValueError(
                f"{path} has no fact of the relation {relation!r}; it has "
                f"{', '.join(there) or 'no relations'}"
            )
    return [row for row in rows if not relations or row.relation in relations]


def _tokenized(
    tokenizer: OwnTokenizer, rows: list[FactRow]
) -> tuple[dict[int, PromptTokens], dict[int, str]]:
    """Tokens by row number, and why a row has none."""
    tokens, reasons = {}, {}
    for row in rows:
        try:
            tokens[row.number] = tokenizer.tokens(row.prompt, row.answer)
        except ValueError as error:
            reasons[row.number] = str(error)
    return tokens, reasons


def _with_given_twins(
    tokenizer: OwnTokenizer, rows: list[FactRow], tokens: dict[int, PromptTokens]
) -> tuple[dict[int, _Aligned], dict[int, str]]:
    """By row number: rows that give their own twin, and why a twin can't be used."""
    aligned, reasons = {}, {}
    for row in rows:
        if row.twin is None:
            continue
        try:
            aligned[row.number] = _aligned(
                tokenizer, row, tokens[row.number], row.twin, row.twin_answer
            )
        except ValueError as error:
            reasons[row.number] = str(error)
    return aligned, reasons


def _aligned(
    tokenizer: OwnTokenizer, row: FactRow, clean: PromptTokens, twin: Prompt, answer: str
) -> _Aligned:
    """The row with this twin.

    Raises:
        ValueError: they can't be compared token by token.
    """
    corrupted = tokenizer.tokens(twin, answer)
    if len(clean.prompt) != len(corrupted.prompt):
        raise ValueError(
            f"{clean.shown} has {len(clean.prompt)} tokens, its twin {corrupted.shown} "
            f"{len(corrupted.prompt)}; they must be aligned"
        )
    if clean.prompt == corrupted.prompt:
        raise ValueError(f"the two prompts are the same, {row.prompt.text!r}; change the one")
    if twin.subject and clean.roles != corrupted.roles:
        raise ValueError(
            f"the subject has other places in {clean.shown} than in its twin {corrupted.shown}; "
            "they must be aligned"
        )
    if clean.answer[0] == corrupted.answer[0]:
        raise ValueError(
            f"the answers {row.answer!r} and {answer!r} begin with the same token, so that their "
            "logits can't tell the prompts apart; give another"
        )
    return _Aligned(row, twin, answer, clean, corrupted)


def _by_group(rows: list[FactRow]) -> dict[str, list[FactRow]]:
    groups: dict[str, list[FactRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def _in_turn(groups: dict[str, list[FactRow]], rng: np.random.Generator) -> Iterator[FactRow]:
    """The rows of each group in random order, groups in turn."""
    shuffled = [[rows[i] for i in rng.permutation(len(rows))] for rows in groups.values()]
    for turn in zip_longest(*shuffled):
        yield from (row for row in turn if row is not None)


def _find_twin(
    tokenizer: OwnTokenizer,
    row: FactRow,
    groups: dict[str, list[FactRow]],
    tokens: dict[int, PromptTokens],
    rng: np.random.Generator,
) -> _Aligned:
    """The row with the subject of another of its group in its prompt.

    Raises:
        ValueError: none is aligned with it.
    """
    clean, others = tokens[row.number], groups[row.group]
    fits = [
        other
        for other in others
        if tokens[other.number].n_subject == clean.n_subject
        and tokens[other.number].answer[0] != clean.answer[0]
        and other.prompt.subject != row.prompt.subject
    ]
    for i in rng.permutation(len(fits)):
        try:
            twin = row.prompt.about(fits[i].prompt.subject)
            return _aligned(tokenizer, row, clean, twin, fits[i].answer)
        except ValueError:  # in this template its tokens are others; the next may fit
            continue
    subject = "token" if clean.n_subject == 1 else "tokens"
    raise ValueError(
        f"no twin: none of the {len(others) - 1} others of {row.group!r} has a subject of "
        f"{clean.n_subject} {subject}, as {row.prompt.subject!r} in {clean.shown}, and another "
        "answer"
    )


def _fact_set(pairs: list[_Aligned]) -> FactSet:
    texts = pd.DataFrame(
        {
            "person": -1,
            "corrupted_person": -1,
            "attribute": pair.row.relation,
            "clean_prompt": pair.row.prompt.text,
            "corrupted_prompt": pair.twin.text,
            "answer": pair.row.answer,
            "corrupted_answer": pair.twin_answer,
            "row": pair.row.number,
            "subject": pair.row.prompt.subject,
            "corrupted_subject": pair.twin.subject,
            "bos": pair.clean.leading,
        }
        for pair in pairs
    )
    roles = [[PROMPT_ROLES.index(role) for role in pair.clean.roles] for pair in pairs]
    return FactSet(
        clean=padded([pair.clean.prompt for pair in pairs], 0),
        corrupted=padded([pair.corrupted.prompt for pair in pairs], 0),
        lengths=torch.tensor([len(pair.clean.prompt) for pair in pairs]),
        roles=padded(roles, NO_TOKEN),
        answers=padded([pair.clean.answer for pair in pairs], NO_TOKEN),
        corrupted_answers=padded([pair.corrupted.answer for pair in pairs], NO_TOKEN),
        texts=texts,
    )
