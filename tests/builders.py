"""Hand-made populations and patching results that several tests share."""

import re

import numpy as np
import pandas as pd
import xarray as xr

from interp.config import ATTRIBUTES
from interp.data.biographies import NO_ATTRIBUTE, ROLES, Biographies
from interp.data.population import templates
from interp.results.store import join_steps

LABELS = ("name_first", "name_last", "final")


def hand_written_people() -> pd.DataFrame:
    """Four people, the last held out; names and values have several words, and punctuation."""
    columns = ["split", "first", "middle", "last", *ATTRIBUTES]
    rows = [
        ["train", "Mary-Ann", "Lee", "Garcia", "14 March 1987", "Port-au-Prince",
         "University of California, Berkeley", "Nursing", "AT&T", "Rome"],
        ["train", "Otto", "Van Dyke", "O'Brien", "31 February 1900", "Rome",
         "Rome", "Media (Arts)", "Johnson & Johnson", "Port-au-Prince"],
        ["train", "Ida", "May", "Smith", "1 May 2001", "St. Louis",
         "MIT", "Law", "3M", "St. Louis"],
        ["held-out", "Zoe", "Fay", "De La Cruz", "2 June 1999", "Rome",
         "MIT", "Law", "3M", "Oslo"],
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns).assign(id=range(len(rows)))


def sentence(person: pd.Series, attribute: str, template: int) -> str:
    return templates()[attribute][template].format(
        name=f"{person['first']} {person['middle']} {person['last']}", value=person[attribute]
    )


def words(text: str) -> list[str]:
    """What the tokenizer should make of ``text``, by another route."""
    return re.findall(r"\w+|[^\w\s]", text)


def tokens_by_row(biographies: Biographies) -> list[pd.DataFrame]:
    """A table a biography: token, role and attribute, in words."""
    table = pd.DataFrame({
        "token": biographies.tokens,
        "role": [ROLES[i] for i in biographies.roles],
        "attribute": ["" if i == NO_ATTRIBUTE else ATTRIBUTES[i] for i in biographies.attributes],
    })  # fmt: skip
    edges = np.cumsum(biographies.lengths)
    return [table[end - n : end] for n, end in zip(biographies.lengths, edges)]


def one_result(
    patched: np.ndarray,
    clean: list[float] | np.ndarray,
    corrupted: list[float] | np.ndarray,
    *,
    site: str = "attn_out",
    direction: str = "denoising",
    prompt: str = "Ann Lee was born on",
) -> xr.Dataset:
    """A result as ``interp.patch`` returns it; ``patched`` is (layer, head for z, role, fact).

    The other metrics are logit_diff − 10 and − 20.
    """
    patched = np.asarray(patched, np.float32)
    n = patched.shape[-1]
    dims = ("layer", "head", "role", "fact") if site == "z" else ("layer", "role", "fact")
    variables = {}
    for suffix, shift in (("", 0), ("_first_logprob", 10), ("_value_logprob", 20)):
        variables[f"patched{suffix}"] = (dims, patched - np.float32(shift))
        variables[f"clean{suffix}"] = ("fact", np.asarray(clean, np.float32) - shift)
        variables[f"corrupted{suffix}"] = ("fact", np.asarray(corrupted, np.float32) - shift)
    coords = {"layer": np.arange(patched.shape[0]), "role": list(LABELS[: patched.shape[-2]])}
    if site == "z":
        coords["head"] = np.arange(patched.shape[1])
    texts = {
        "attribute": ["major", "company"] * n,
        "clean_prompt": [f"{prompt} {i}" for i in range(n)],
        "corrupted_prompt": [f"Zoë {i}" for i in range(n)],
        "answer": ["Law"] * n,
        "corrupted_answer": ["3M"] * n,
    }
    coords |= {name: ("fact", np.array(text[:n], object)) for name, text in texts.items()}
    coords |= {"person": ("fact", np.arange(n)), "corrupted_person": ("fact", np.arange(n) + 1)}
    return xr.Dataset(variables, coords, {"site": site, "by": "role", "direction": direction})


def result_with_shares(
    shares: np.ndarray, *, gap: float = 6.0, n: int = 40, seed: int = 0, **options
) -> xr.Dataset:
    """Each cell recovers its share; clean − corrupted has mean ``gap`` and deviation 1."""
    rng = np.random.default_rng(seed)
    corrupted = rng.normal(-3, 1, n)
    spread = rng.normal(size=n)
    differences = gap + (spread - spread.mean()) / spread.std(ddof=1)
    share = np.asarray(shares)[..., None] + rng.normal(0, 0.02, (*np.shape(shares), n))
    return one_result(
        corrupted + share * differences, corrupted + differences, corrupted, **options
    )


def sweep(shares: np.ndarray, gaps: dict[int, float], **options) -> xr.Dataset:
    """Results at several steps as one; ``gaps`` says at which, and how far the runs are apart."""
    return join_steps({
        step: result_with_shares(shares, gap=gap, **options) for step, gap in gaps.items()
    })  # fmt: skip
