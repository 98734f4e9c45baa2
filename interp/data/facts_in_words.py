"""Facts as a notebook shows them: counts and a few prompts, no token ids."""

from collections.abc import Mapping, Sequence

import pandas as pd

from interp.jupyter import html_table

N_SHOWN = 5
N_CHARACTERS = 120
"""Of a prompt; the rest is cut at its beginning, since the name and the question are at its end."""
_HEADS = ("attribute", "prompt", "answer", "corrupted prompt", "corrupted answer")
_COLUMNS = ("attribute", "clean_prompt", "answer", "corrupted_prompt", "corrupted_answer")
_NONE = "–"


def summary(texts: pd.DataFrame, lengths: Sequence[int]) -> str:
    """How many facts there are of each attribute, and how long their prompts are."""
    n = len(texts)
    counts = texts.attribute.value_counts(sort=False)
    named = ", ".join(f"{name} {count}" for name, count in counts.items() if name)
    facts = f"{n} fact{'s' * (n != 1)}" + (f": {named}" if named else "")
    return f"{facts}; {_tokens(lengths)}{_first(texts)}" if n else facts


def _first(texts: pd.DataFrame) -> str:
    """Of facts from a file, what the tokenizer puts before their prompts."""
    if "bos" not in texts:
        return ""
    return f", {texts.bos.iloc[0]} first" if texts.bos.iloc[0] else ", no special token first"


def _tokens(lengths: Sequence[int]) -> str:
    shortest, longest = min(lengths), max(lengths)
    span = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
    return f"prompt{'s' * (len(lengths) > 1)} of {span} tokens"


def facts_html(texts: pd.DataFrame, lengths: Sequence[int]) -> str:
    """The summary, and the first ``N_SHOWN`` facts with their corrupted prompts, as a table."""
    rows = [_row(text) for text in texts[:N_SHOWN].to_dict("records")]
    shown = f" The first {N_SHOWN}:" if len(texts) > N_SHOWN else ""
    return html_table(f"{summary(texts, lengths)}.{shown}", rows, heads=_HEADS)


def fact_html(text: Mapping[str, object], n_tokens: int) -> str:
    """One fact with its corrupted prompt, as a table."""
    return html_table(f"A fact; {_tokens([n_tokens])}.", [_row(text)], heads=_HEADS)


def in_words(text: Mapping[str, object]) -> str:
    """Prompt and answer of a fact, and of its corrupted prompt if there is one."""
    _, prompt, answer, corrupted, other = _row(text)
    clean = f"{prompt!r} → {answer!r}"
    return clean if corrupted == _NONE else f"{clean}; corrupted {corrupted!r} → {other!r}"


def _row(text: Mapping[str, object]) -> list[str]:
    return [_ending(str(text[column])) or _NONE for column in _COLUMNS]


def _ending(text: str) -> str:
    return text if len(text) <= N_CHARACTERS else f"…{text[-N_CHARACTERS:]}"
