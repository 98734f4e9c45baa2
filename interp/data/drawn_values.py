"""Biographies of people who have no values of their own: these are drawn for every biography.

Each attribute's value is that of a random training person, and so are, independently, day, month
and year of the birth date. The distribution is the one whose entropy ``no_knowledge_baseline`` is,
so that this is the loss of the best answer to a name that nothing is known of.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from interp.config import ATTRIBUTES
from interp.data.biographies import ROLES, Biographies, Texts

_DATE_TOKENS = 3
"""Day, month and year, one word each."""


def with_other_values(
    texts: Texts,
    people: Int[np.ndarray, " batch"],
    rows: Bool[np.ndarray, " batch"],
    n_people: int,
    rng: np.random.Generator,
) -> Texts:
    """Texts with one person per row: names and templates of ``people``, and their values, but in
    ``rows`` values of random people among the first ``n_people``, each attribute's of another.
    """
    columns = np.arange(len(ATTRIBUTES))
    drawn = texts.value[rng.integers(n_people, size=(len(people), len(columns))), columns]
    return replace(
        texts,
        name=texts.name[people],
        value=np.where(rows[:, None], drawn, texts.value[people]),
        template_order=texts.template_order[people],
    )


def with_other_dates(
    batch: Biographies,
    texts: Texts,
    rows: Bool[np.ndarray, " batch"],
    n_people: int,
    rng: np.random.Generator,
) -> Biographies:
    """The batch with other birth dates in ``rows``: day, month and year are each that of a random
    one of the first ``n_people``.
    """
    column = ATTRIBUTES.index("birth_date")
    in_rows = np.repeat(rows, batch.lengths)
    is_date = (batch.attributes == column) & (batch.roles == ROLES.index("value"))
    start = texts.start[texts.value[:n_people, column]]
    person = rng.integers(n_people, size=(int(rows.sum()), _DATE_TOKENS))
    tokens = batch.tokens.copy()
    tokens[in_rows & is_date] = texts.tokens[start[person] + np.arange(_DATE_TOKENS)].ravel()
    return replace(batch, tokens=tokens)
