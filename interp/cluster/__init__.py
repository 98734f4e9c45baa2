"""Work that several processes or machines share: executors of schedulers, and what is missing."""


class PiecesMissing(Exception):
    """A report of ``--status`` with pieces that are still to be computed."""
