"""Which components do which job of factual recall: causes, read-outs, edits, roles."""

from interp.localization.checkpoint import localize
from interp.localization.edit import edit_facts
from interp.localization.jobs import needs, readable_gain, roles
from interp.localization.memory import probe, read_off

__all__ = ["edit_facts", "localize", "needs", "probe", "read_off", "readable_gain", "roles"]
