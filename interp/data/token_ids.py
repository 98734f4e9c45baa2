"""Users' token ids, given as tensors, arrays or lists, as lists of whole numbers."""

import numpy as np

from interp.fields import shortened

NO_TOKEN = -1


def prompts_of(given: object, lengths: object, name: str) -> list[list[int]]:
    """Each prompt's own tokens, without the padding beyond ``lengths``.

    Raises:
        ValueError: these are no whole numbers, or lengths don't fit; the message names the fact.
    """
    rows = [_ids(row, f"{name} prompt {i}") for i, row in enumerate(_listed(given, name))]
    if lengths is None:
        return rows
    ends = _ids(lengths, "lengths")
    if len(ends) != len(rows):
        raise ValueError(f"lengths has {len(ends)} entries, {name} has {len(rows)}; give one each")
    for i, (row, end) in enumerate(zip(rows, ends)):
        if not 1 <= end <= len(row):
            raise ValueError(
                f"fact {i} has length {end}, its {name} prompt {len(row)} tokens; give 1 up to that"
            )
    return [row[:end] for row, end in zip(rows, ends)]


def answers_of(given: object, n: int, name: str) -> list[list[int]]:
    """Each fact's answer tokens; a single token may be given without a list."""
    rows = [
        _ids(row if np.ndim(row) else [row], f"{name} {i}")
        for i, row in enumerate(_listed(given, name))
    ]
    if len(rows) != n:
        raise ValueError(f"{name} has {len(rows)} entries for {n} prompts; give one each")
    return [row[: len(row) - _n_pads(row)] for row in rows]


def _n_pads(row: list[int]) -> int:
    return next((i for i, token in enumerate(reversed(row)) if token != NO_TOKEN), len(row))


def _listed(given: object, name: str) -> list:
    rows = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(rows, (list, tuple)) or not rows:
        raise ValueError(f"{name} is {shortened(given)}; give token ids, a row a fact")
    return list(rows)


def _ids(row: object, where: str) -> list[int]:
    row = row.tolist() if hasattr(row, "tolist") else row
    if isinstance(row, (list, tuple)):
        row = [x.tolist() if hasattr(x, "tolist") else x for x in row]
    if not isinstance(row, (list, tuple)) or not all(
        isinstance(x, int) and not isinstance(x, bool) and abs(x) < 2**63 for x in row
    ):
        raise ValueError(f"{where} is {shortened(row)}; give a list of token ids")
    return [int(x) for x in row]


def named_roles(roles: object, lengths: list[int]) -> tuple[tuple[str, ...], list[list[int]]]:
    """The names in order of appearance, and each position's number among them."""
    if roles is None:
        return (), [[NO_TOKEN] * n for n in lengths]
    roles = roles.tolist() if hasattr(roles, "tolist") else roles
    listed = isinstance(roles, (list, tuple))
    if listed and all(isinstance(name, str) for name in roles):
        roles = [roles] * len(lengths)
    if not listed or not all(
        isinstance(row, (list, tuple)) and all(isinstance(x, str) for x in row) for row in roles
    ):
        raise ValueError(f"roles is {shortened(roles)}; give a list of names, or one a prompt")
    if [len(row) for row in roles] != lengths:
        raise ValueError(
            f"roles name {[len(row) for row in roles][:5]} positions of prompts of {lengths[:5]} "
            "tokens; give a name for each position"
        )
    names = tuple(dict.fromkeys(name for row in roles for name in row))
    return names, [[names.index(name) for name in row] for row in roles]
