"""What comes in from outside: checkpoint folders, their configs, models.

Each is used, known not to matter, or refused by name; what is not understood is never left out
silently. A fact set checks itself (``interp.facts``), a training configuration too
(``interp.config``).
"""
