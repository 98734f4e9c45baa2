"""Which components implement which mechanism of factual recall: ablations, read-outs, edits."""

from interp.localization.component_ablation import needs
from interp.localization.fact_editing import edit_facts
from interp.localization.localize import localize
from interp.localization.mechanisms import mechanisms, readable_gain
from interp.localization.probes import probe, read_off

__all__ = ["edit_facts", "localize", "mechanisms", "needs", "probe", "read_off", "readable_gain"]
