"""Biographies of people who have no values of their own: these are drawn for every biography.

Each attribute's value is that of a random training person, and so are, independently, day, month
and year of a synthetic birth date. The distribution is the one whose entropy
``no_knowledge_baseline`` is, so that this is the loss of the best answer to a name that nothing is
known of.
"""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

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
    columns = np.arange(len(texts.attributes))
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
    one of the first ``n_people``. The batch as it is where dates have no such parts.
    """
    column = texts.date_column
    if column is None:
        return batch
    in_rows = np.repeat(rows, batch.lengths)
    is_date = (batch.attributes == column) & (batch.roles == ROLES.index("value"))
    start = texts.start[texts.value[:n_people, column]]
    person = rng.integers(n_people, size=(int(rows.sum()), _DATE_TOKENS))
    tokens = batch.tokens.copy()
    tokens[in_rows & is_date] = texts.tokens[start[person] + np.arange(_DATE_TOKENS)].ravel()
    return replace(batch, tokens=tokens)


def prior_confidence(texts: Texts, n_people: int) -> float:
    """The mean maximum probability, as ``evaluate`` takes it, of a model that answers with the
    frequencies of values among the first ``n_people``: mean over attributes of the mean over value
    tokens, each given the tokens before it; of a date, each part for itself.
    """
    means = []
    for column in range(len(texts.attributes)):
        values = [_tokens(texts, piece) for piece in texts.value[:n_people, column].tolist()]
        dated = column == texts.date_column
        seen = defaultdict(Counter)
        for value in values:
            for place, token in enumerate(value):
                seen[place if dated else value[:place]][token] += 1
        likeliest = [
            max(after.values()) / after.total()
            for value in values
            for place in range(len(value))
            for after in [seen[place if dated else value[:place]]]
        ]
        means.append(np.mean(likeliest))
    return float(np.mean(means))


def _tokens(texts: Texts, piece: int) -> tuple[int, ...]:
    start = texts.start[piece]
    return tuple(texts.tokens[start : start + texts.length[piece]].tolist())
