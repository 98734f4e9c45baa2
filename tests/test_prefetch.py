"""Prefetched items are those made one by one, each while the one before is in use; errors come out
where the item is asked for, and no thread is left.
"""

import threading
from dataclasses import replace

import pytest
import torch

from interp.suite import load_suite
from interp.training import loop
from interp.training.loop import train
from interp.training.prefetch import prefetched


def prefetch_threads():
    return [x for x in threading.enumerate() if x.name.startswith("prefetch")]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("steps", [range(3, 3), range(3, 4), range(3, 9)])
def test_items_are_those_of_the_steps_in_their_order(steps, ahead):
    with prefetched(lambda step: step**2, steps, ahead=ahead) as items:
        assert list(items) == [step**2 for step in steps]
    assert not prefetch_threads()


def test_the_next_is_made_while_the_present_one_is_used_and_no_further():
    made, second = [], threading.Event()

    def make(step: int) -> int:
        made.append(step)
        if step == 1:
            second.set()
        return step

    with prefetched(make, range(9), ahead=True) as items:
        assert next(items) == 0
        assert second.wait(10)  # without anybody asking for it
        assert made == [0, 1]


def test_without_it_an_item_is_made_when_it_is_asked_for():
    made = []
    with prefetched(lambda step: made.append(step), range(3), ahead=False) as items:
        assert not made
        next(items)
        assert made == [0] and not prefetch_threads()


def test_an_error_is_raised_where_the_item_is_asked_for():
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("no batch 2")
        return step

    with (
        pytest.raises(ValueError, match="no batch 2"),
        prefetched(make, range(9), ahead=True) as items,
    ):
        assert [next(items), next(items)] == [0, 1]
        next(items)
    assert not prefetch_threads()


def test_no_thread_is_left_where_the_user_fails():
    with pytest.raises(KeyboardInterrupt), prefetched(abs, range(9), ahead=True) as items:
        next(items)
        assert prefetch_threads()
        raise KeyboardInterrupt
    assert not prefetch_threads()


@pytest.fixture
def always_ahead(monkeypatch):
    """Training prefetches, as on a GPU; gives the steps of the batches that were made."""
    made, batch = [], loop.training_batch
    monkeypatch.setattr(
        loop, "prefetched", lambda make, steps, ahead: prefetched(make, steps, ahead=True)
    )
    monkeypatch.setattr(
        loop, "training_batch", lambda *given: made.append(given[-1]) or batch(*given)
    )
    return made


def test_a_resumed_run_with_prefetching_is_the_run_without(config, run, tmp_path, always_ahead):
    """``run`` was trained without. Weights agree bit by bit."""

    def stop(step: int, loss: torch.Tensor) -> None:
        if step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", on_step=stop)
    assert always_ahead == [*range(16)] and not prefetch_threads()
    always_ahead.clear()
    train(config, tmp_path / "run", resume=True)
    assert always_ahead == [*range(10, 30)] and not prefetch_threads()
    ours, theirs = (load_suite(x).load(30).state_dict() for x in (tmp_path / "run", run))
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name


def test_an_error_in_a_batch_ends_training_with_that_error(
    config, tmp_path, always_ahead, monkeypatch
):
    batch = loop.training_batch

    def fails(texts, config, step):
        if step == 3:
            raise MemoryError("of batch 3")
        return batch(texts, config, step)

    monkeypatch.setattr(loop, "training_batch", fails)
    taken = []
    with pytest.raises(MemoryError, match="of batch 3"):
        train(replace(config, n_steps=10), tmp_path / "run", on_step=lambda *x: taken.append(x[0]))
    assert taken == [1, 2, 3] and not prefetch_threads()
