"""Which components do which job of factual recall: causes, read-outs, edits, roles."""

from interp.localization.component_ablation import needs
from interp.localization.fact_editing import edit_facts
from interp.localization.localize import localize
from interp.localization.probes import probe, read_off
from interp.localization.roles import readable_gain, roles

__all__ = ["edit_facts", "localize", "needs", "probe", "read_off", "readable_gain", "roles"]
