"""Attention to shared keys, against attention of each row to keys of its own."""

import pytest
import torch
from torch.testing import assert_close

from interp.model.attention import attend
from interp.model.block import silent
from interp.patching.shared_keys import attend_shared

N_FACTS, N_POS, N_HEADS, D_HEAD = 5, 7, 3, 4


@pytest.mark.parametrize("n_window", [1, 2, 5, N_POS])
@pytest.mark.parametrize("fact", [[0, 0, 1, 1, 4, 4], [4, 1, 4, 4, 2, 1, 4], [3]])
def test_equals_attention_of_rows_with_keys_of_their_own(n_window, fact):
    torch.manual_seed(0)
    fact, sizes = torch.tensor(fact), (N_HEADS, D_HEAD)
    base_k, base_v = torch.randn(2, N_FACTS, N_POS, *sizes, dtype=torch.float64)
    q = torch.randn(len(fact), *sizes, dtype=torch.float64)
    k, v = torch.randn(2, len(fact), n_window, *sizes, dtype=torch.float64)
    last = torch.tensor([6, 5, 6, 4, 6])[fact].clamp(min=n_window - 1)  # the rest is padding
    window = last[:, None] - n_window + 1 + torch.arange(n_window)
    dest = (last - 1).maximum(window[:, 0])  # does not see the last of its window
    own = [x[fact].clone() for x in (base_k, base_v)]
    for x, new in zip(own, (k, v)):
        x[torch.arange(len(fact))[:, None], window] = new
    expected = attend(q[:, None], *own, dest[:, None], silent)[:, 0]
    found = attend_shared(q, k, v, base_k, base_v, fact, window, dest)
    assert_close(found, expected, atol=1e-12, rtol=0)  # of order 1, in float64
