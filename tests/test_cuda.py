"""The same numbers on a GPU as on the CPU, where there is one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.patching import patch
from interp.results.sweep import patch_suite
from interp.suite import load_suite
from interp.training.loop import train

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_out"])
def test_patching_is_the_same_on_a_gpu(suite, facts, site, direction):
    here, there = (
        patch(suite.load(30, device=device), facts, site=site, direction=direction)
        for device in ("cpu", "cuda")
    )
    for name in ("patched", "clean", "corrupted"):
        np.testing.assert_allclose(there[name], here[name], atol=1e-4)


def test_a_sweep_is_the_same_on_a_gpu(suite, facts):
    here, there = (
        patch_suite(suite, facts, sites=["z"], steps=[0, 30], device=device)
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there["z"].patched, here["z"].patched, atol=1e-4)


def test_logits_are_the_same_on_a_gpu(suite, facts):
    with torch.inference_mode():
        here, there = (
            suite.load(30, device=device)(facts.clean.to(device)) for device in ("cpu", "cuda")
        )
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=1e-4)


def test_a_few_steps_of_training_are_the_same_on_a_gpu(config, tmp_path):
    asked = replace(config, precision="fp32", n_steps=10)
    here, there = (
        load_suite(train(replace(asked, device=device), tmp_path / device)).metrics
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there.loss, here.loss, rtol=1e-3)


def test_training_in_bf16_learns_on_a_gpu(config, tmp_path):
    asked = replace(config, precision="bf16", device="cuda")
    loss = load_suite(train(asked, tmp_path / "run")).metrics.query("attribute == 'average'").loss
    assert np.isfinite(loss).all() and loss.iloc[-1] < loss.iloc[0] - 1
