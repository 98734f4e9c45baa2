"""The questions that localization asks of every checkpoint, by name, so that each answer can be
stored and reused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import xarray as xr

from interp.data.facts import FactSet
from interp.localization.attention_to_names import attention
from interp.localization.component_ablation import needs
from interp.localization.logit_attribution import direct_attribution
from interp.localization.mechanisms import readable_gain
from interp.localization.probes import probe, read_off
from interp.model.decoder import HookedDecoder


@dataclass(frozen=True)
class Asked:
    """The model, the facts and the options of a question."""

    model: HookedDecoder
    facts: FactSet
    people: FactSet | None
    """Facts that probes are fitted on; None where there is no population."""
    seed: int
    max_memory: float


def checkpoint_answers(
    model: HookedDecoder,
    facts: FactSet,
    people: FactSet | None = None,
    *,
    questions: Sequence[str] = (),
    seed: int = 0,
    max_memory: float = 2.0,
) -> dict[str, xr.Dataset]:
    """Answers to ``questions``, by default to ``asked_of`` these people."""
    if unknown := [question for question in questions if question not in QUESTIONS]:
        raise ValueError(f"no question {unknown[0]!r}; there are {', '.join(QUESTIONS)}")
    asked = Asked(model, facts, people, seed, max_memory)
    return {question: QUESTIONS[question](asked) for question in questions or asked_of(people)}


def _needs(asked: Asked) -> xr.Dataset:
    """``component_ablation.needs``."""
    return needs(asked.model, asked.facts, max_memory=asked.max_memory)


def _readings(asked: Asked) -> xr.Dataset:
    """``gain`` (layer, role, fact) from ``mechanisms.readable_gain``; ``accuracy`` (labels, reader,
    layer, site, role, of) from ``probes.read_off``, and means of ``logit`` and ``rank`` over all
    facts.
    """
    read = read_off(asked.model, asked.facts, seed=asked.seed)
    means = {x: read[x].mean("fact") for x in ("logit", "rank")}
    return _accuracy(read).assign(gain=readable_gain(read), **means)


def _attention(asked: Asked) -> xr.Dataset:
    """``attention_to_names.attention``."""
    return attention(asked.model, asked.facts)


def _direct(asked: Asked) -> xr.Dataset:
    """``logit_attribution.direct_attribution``."""
    return direct_attribution(asked.model, asked.facts)


def _probes(asked: Asked) -> xr.Dataset:
    """``accuracy`` (labels, layer, site, role, of) of ``probes.probe`` on ``people``."""
    if asked.people is None:
        raise ValueError("a probe needs people to be fitted on; give facts on many as people")
    return _accuracy(probe(asked.model, asked.people, seed=asked.seed))


QUESTIONS: dict[str, Callable[[Asked], xr.Dataset]] = {
    "needs": _needs,
    "readings": _readings,
    "attention": _attention,
    "direct": _direct,
    "probes": _probes,
}


def asked_of(people: FactSet | None) -> list[str]:
    """The questions that can be asked: without people to fit them on, no probes."""
    return [question for question in QUESTIONS if question != "probes" or people is not None]


def _accuracy(read: xr.Dataset) -> xr.Dataset:
    """``accuracy``: means over all facts and over those of each attribute (of: ``all`` or an
    attribute); ``n`` (of): the number of facts.
    """
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
