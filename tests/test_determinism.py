"""Deterministic algorithms are asked for on a GPU alone, and settings are restored."""

import os

import pytest
import torch
from torch.utils import deterministic

from interp.training.determinism import deterministic_algorithms


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
    )


@pytest.fixture(params=[(False, False, True), (True, True, False)])
def before(request):
    """Settings that a user may have made."""
    untouched = settings()
    _set(request.param)
    yield request.param
    _set(untouched)


def _set(chosen):
    torch.use_deterministic_algorithms(chosen[0], warn_only=chosen[1])
    deterministic.fill_uninitialized_memory = chosen[2]


def test_on_a_gpu_torch_is_asked_for_deterministic_algorithms(before):
    with pytest.raises(KeyboardInterrupt), deterministic_algorithms("cuda:0"):
        assert settings() == (True, False, False)
        raise KeyboardInterrupt
    assert settings() == before


def test_on_a_cpu_nothing_changes(before):
    with deterministic_algorithms("cpu"):
        assert settings() == before
    assert settings() == before


def test_cublas_has_been_told_before_torch_is_used():
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
