"""Which components implement which mechanism of factual recall: ablations, read-outs, edits.

The functions here take one model and facts: ``needs`` (ablations), ``attention``, ``read_off`` and
``probe`` (what can be decoded where), ``direct_attribution``, ``written`` (single neurons),
``edit_facts`` (ROME); ``mechanisms`` names components by one rule from ``needs`` and
``readable_gain``. ``interp.localize`` asks all checkpoints of a run and returns a
``Localization``.
"""

from interp.localization.answer_confidence import answer_confidence
from interp.localization.attention_statistics import attention_statistics
from interp.localization.attention_to_names import attention
from interp.localization.checkpoint_answers import checkpoint_answers
from interp.localization.component_ablation import needs
from interp.localization.fact_editing import edit_facts
from interp.localization.formation import (
    Localization,
    borderline_components,
    leaders,
    mechanism_curves,
    named_components,
)
from interp.localization.logit_attribution import copying, direct_attribution, final_directions
from interp.localization.mechanisms import by_attribute, mechanisms, readable_gain
from interp.localization.neurons import effective_number, gini, sharing, top_neurons, written
from interp.localization.probes import probe, read_off
from interp.localization.transplants import transplants

__all__ = [
    "Localization",
    "answer_confidence",
    "attention",
    "attention_statistics",
    "borderline_components",
    "by_attribute",
    "checkpoint_answers",
    "copying",
    "direct_attribution",
    "edit_facts",
    "effective_number",
    "final_directions",
    "gini",
    "leaders",
    "mechanism_curves",
    "mechanisms",
    "named_components",
    "needs",
    "probe",
    "read_off",
    "readable_gain",
    "sharing",
    "top_neurons",
    "transplants",
    "written",
]


def __dir__() -> list[str]:
    """The functions, not the modules that they are in."""
    return __all__
