"""Sweeps that take turns on one batch of prompts."""

import itertools

import numpy as np
import pytest
import torch
from oracle import random_model

from interp.patching.activations import prompts
from interp.patching.intervention import Intervention, grid_of
from interp.patching.packed_weights import pack
from interp.patching.recompute import Recompute, item_size
from interp.patching.tensor_ops import padded_index

SITES = ["resid_pre", "k"]


@pytest.fixture(scope="module")
def wide(suite):
    return random_model(suite)


@pytest.fixture(scope="module")
def few(suite):
    return suite.facts(3, seed=3)


def sweeps(runs, few, **options):
    """One sweep each way on the same batch, not yet begun."""
    grid, _ = grid_of(few, Intervention(**options))
    clean, corrupted = (runs.run(given, {"k"}) for given in prompts(few, "cpu"))
    ends = [(corrupted, clean), (clean, corrupted)]
    return [runs.sweep(SITES, grid, *pair) for pair in ends]


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("options", [{}, {"window": 2}], ids=str)
def test_two_sweeps_in_turns_give_what_they_give_one_after_the_other(wide, few, options, n_threads):
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        check_turns(wide, few, options)
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)


def check_turns(wide, few, options):
    given = prompts(few, "cpu")[0]
    runs = Recompute(pack(wide, given.tokens.shape[1]), max_bytes=1e6)
    expected = [list(sweep) for sweep in sweeps(runs, few, **options)]
    turns = list(itertools.zip_longest(*sweeps(runs, few, **options)))
    assert len(turns) > 4
    for got, wanted in zip(zip(*turns), expected):
        got = [portion for portion in got if portion is not None]
        assert len(got) == len(wanted)
        for (rows, scores), (same_rows, same_scores) in zip(got, wanted):
            for column, same in zip(vars(rows).values(), vars(same_rows).values()):
                np.testing.assert_array_equal(column, same)
            np.testing.assert_array_equal(scores, same_scores)


def test_portions_that_are_computed_side_by_side_share_the_memory(wide, few):
    given = prompts(few, "cpu")[0]
    token, row = item_size(wide.cfg, given.tokens.shape[1], int(given.n_value.max()))
    fact, n_window = np.arange(64) % len(few), np.full(64, 4)
    n_values = given.n_value.numpy()
    size = pack(wide, 8).embedding.element_size() * (4 * token + row)
    for n_threads in (1, 2):
        packed = pack(wide, given.tokens.shape[1])
        runs = Recompute(packed, max_bytes=16.5 * size, n_threads=n_threads)
        portions = list(runs._portions(fact, n_window, n_values, given))
        assert [len(x) for x in portions] == [16 // n_threads] * 4 * n_threads
        together = fact[np.concatenate(portions)]
        assert (np.diff(together) != 0).sum() == len(few) - 1  # those of a fact side by side


def test_products_have_few_numbers_of_rows():
    sizes = {len(padded_index(np.arange(n))) for n in range(1, 4097)}
    assert len(sizes) <= 16 + 8 * 8  # eight for each doubling from 16 on
    for n in (1, 8, 9, 100, 129, 4000):
        index = padded_index(np.arange(n))
        np.testing.assert_array_equal(index[:n], np.arange(n))
        assert len(set(index[n:])) == len(index) - n <= n / 8  # none gets more than one more
    assert len(padded_index(np.arange(4096))) == 4096
