"""All that localization asks of one checkpoint, by name, so that each can be stored and reused."""

from collections.abc import Sequence

import xarray as xr

from interp.data.facts import FactSet
from interp.localization.attention_to_names import attention
from interp.localization.component_ablation import needs
from interp.localization.logit_attribution import direct_attribution
from interp.localization.probes import probe, read_off
from interp.localization.roles import readable_gain
from interp.model.decoder import HookedDecoder

QUESTIONS = ("needs", "readings", "attention", "direct", "probes")


def localize(
    model: HookedDecoder,
    facts: FactSet,
    people: FactSet,
    *,
    questions: Sequence[str] = QUESTIONS,
    seed: int = 0,
    max_memory: float = 2.0,
) -> dict[str, xr.Dataset]:
    """Answers to ``questions``.

    ``needs``: ``jobs.needs``. ``readings``: ``gain`` (layer, role, fact) of ``jobs.readable_gain``,
    and of ``memory.read_off`` ``accuracy`` (labels, reader, layer, site, role, of) and means of
    ``logit`` and ``rank`` over all facts. ``probes``: ``accuracy`` (labels, layer, site, role, of)
    of ``memory.probe`` on ``people``. ``attention`` and ``direct``: those functions. ``of`` is an
    attribute or "all"; ``n`` (of) the number of facts behind an accuracy.
    """
    answers = {}
    for question in questions:
        if question == "needs":
            answers[question] = needs(model, facts, max_memory=max_memory)
        elif question == "readings":
            read = read_off(model, facts, seed=seed)
            means = {x: read[x].mean("fact") for x in ("logit", "rank")}
            answers[question] = _accuracy(read).assign(gain=readable_gain(read), **means)
        elif question == "attention":
            answers[question] = attention(model, facts)
        elif question == "direct":
            answers[question] = direct_attribution(model, facts)
        elif question == "probes":
            answers[question] = _accuracy(probe(model, people, seed=seed))
        else:
            raise ValueError(f"no question {question!r}; there are {', '.join(QUESTIONS)}")
    return answers


def _accuracy(read: xr.Dataset) -> xr.Dataset:
    """Means over all facts, and over those of each attribute."""
    attributes = list(dict.fromkeys(read.attribute.values))
    parts = [read.correct, *(read.correct[..., read.attribute == name] for name in attributes)]
    return xr.Dataset(
        {
            "accuracy": xr.concat(
                [part.mean("fact").drop_vars("attribute", errors="ignore") for part in parts],
                dim="of",
            ).transpose(..., "of"),
            "n": ("of", [part.sizes["fact"] for part in parts]),
        },
        {"of": ["all", *attributes]},
        {"score": "correlational", "units": "share of facts"},
    )
