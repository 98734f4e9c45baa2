"""Work that several processes or machines share: executors of schedulers, and what is missing."""


class PiecesMissing(Exception):
    """A report of ``--status`` with pieces that are still to be computed."""


class TaskEnded(Exception):
    """What a task says at its end, where the rest of a study is left to others."""
