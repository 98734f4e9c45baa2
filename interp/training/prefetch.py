"""The next batch is made while the present one is used."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def prefetched(make: Callable[[int], T], steps: range, *, ahead: bool) -> Iterator[Iterator[T]]:
    """An iterator over ``make`` of each step, in their order.

    With ``ahead``, a thread makes the next while the caller uses the present one. An error there is
    raised when that step is asked for. The thread has ended when the context is left.
    """
    if not ahead:
        yield map(make, steps)
        return
    with ThreadPoolExecutor(1, "prefetch") as pool:

        def one_ahead() -> Iterator[T]:
            coming = None
            for step in steps:
                ready, coming = coming, pool.submit(make, step)
                if ready is not None:
                    yield ready.result()
            if coming is not None:
                yield coming.result()

        yield one_ahead()
