"""Counting the operations of matrix products."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class FlopCount:
    """Floating-point operations of matrix products; a multiplication and an addition are two."""

    total: int = 0


_counting: ContextVar[FlopCount | None] = ContextVar("counting", default=None)


@contextmanager
def count_flops() -> Iterator[FlopCount]:
    """Counts what is multiplied inside the ``with`` block, in this thread."""
    count = FlopCount()
    token = _counting.set(count)
    try:
        yield count
    finally:
        _counting.reset(token)


def add_flops(n: int) -> None:
    if (count := _counting.get()) is not None:
        count.total += n
