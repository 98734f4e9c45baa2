"""The same call on other people's models: equal to our engine, and to hooks written by hand."""

import numpy as np
import pytest
import torch
from oracle import random_model
from test_interventions import EDGES, N_NEURONS, cells_of, compare
from torch import nn
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from interp.checkpoints import write_checkpoint
from interp.config import SITES
from interp.model import HookedDecoder
from interp.patching import patch, patch_sites


def bridge_around(hf_model):
    return build_bridge_from_module(
        hf_model.eval(), architecture=type(hf_model).__name__, hf_config=hf_model.config
    ).eval()


@pytest.fixture(scope="module")
def ours(suite):
    return random_model(suite).float()


@pytest.fixture(scope="module")
def bridge(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridge") / "step"
    write_checkpoint(ours, folder, dtype=torch.float32)
    return bridge_around(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


@pytest.fixture(scope="module", params=["grouped queries", "parallel", "learned positions"])
def foreign(request, suite):
    shape = dict(vocab_size=suite.tokenizer.get_vocab_size(), initializer_range=0.4)
    torch.manual_seed(0)
    if request.param == "learned positions":
        return bridge_around(GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=4, **shape)))
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    if request.param == "parallel":
        config = GPTNeoXConfig(use_parallel_residual=True, **sizes, **shape)
        return bridge_around(GPTNeoXForCausalLM(config))
    config = LlamaConfig(num_key_value_heads=2, **sizes, **shape)
    return bridge_around(LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def few(suite):
    return suite.facts(5, seed=3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"direction": "noising", "window": 2},
        {"replacement": "noise", "noise_draws": 2},
        {"direction": "noising", "replacement": "mean"},
        {"direction": "noising", "replacement": "zero"},
        {"direction": "noising", "replacement": "resample", "groups": ("all", "name_last+final")},
    ],
    ids=str,
)
def test_a_bridge_around_the_same_checkpoint_gives_the_same_results(ours, bridge, few, options):
    sites = [s for s in SITES if "knockout" not in s or options.get("direction") == "noising"]
    if options.get("replacement") in ("mean", "resample"):
        sites = [s for s in sites if s not in ("pattern", "edge")]
    fast = patch_sites(ours, few, sites=sites, n_neurons=8, **options)
    slow = patch_sites(bridge, few, sites=sites, n_neurons=8, **options)
    for site in sites:
        assert fast[site].patched.dims == slow[site].patched.dims
        for name in fast[site].data_vars:
            np.testing.assert_allclose(
                fast[site][name], slow[site][name], atol=5e-5, err_msg=f"{site} {name}"
            )
    assert float(abs(slow["z"].patched - slow["z"].corrupted).max()) > 1e-2


def test_zeros_are_pasted_in_the_models_own_precision(ours, few, monkeypatch):
    double = HookedDecoder(ours.cfg)
    double.load_state_dict(ours.state_dict())
    options = {"site": "pattern", "direction": "noising", "replacement": "zero"}
    fast = patch(double.eval().double(), few, **options)
    monkeypatch.setattr("interp.patching.batch.HookedDecoder", type(None))
    np.testing.assert_allclose(fast.patched, patch(double, few, **options).patched, atol=1e-6)


def test_our_model_by_hooks_gives_the_same_results(ours, few, monkeypatch):
    fast = patch_sites(ours, few, sites=["z", "pattern"])
    monkeypatch.setattr("interp.patching.batch.HookedDecoder", type(None))
    slow = patch_sites(ours, few, sites=["z", "pattern"])
    for site, result in fast.items():
        np.testing.assert_allclose(result.patched, slow[site].patched, atol=2e-5)


@pytest.mark.parametrize("site", SITES)
def test_other_architectures_give_what_hooks_written_by_hand_do(foreign, few, site):
    if site == "resid_mid" and site not in str(foreign.hook_dict.keys()):
        with pytest.raises(ValueError, match="no site 'resid_mid' in this TransformerBridge"):
            patch(foreign, few, site=site)
        return
    options = {"direction": "noising", "window": 2, "n_neurons": N_NEURONS}
    max_memory = 1e-2 if site in EDGES else 1e-3
    results = patch_sites(foreign, few, sites=[site], max_memory=max_memory, **options)
    rng = np.random.default_rng(0)
    cells = cells_of(site, foreign, results[site])
    if site in ("k", "v"):
        n_key_heads = foreign.cfg.n_key_value_heads or foreign.cfg.n_heads
        assert results[site].sizes["head"] == n_key_heads
        cells = [cell for cell in cells if cell[2] < n_key_heads]
    chosen = [(cells[i], int(rng.integers(len(few)))) for i in rng.permutation(len(cells))[:16]]
    with torch.no_grad():
        assert compare(foreign, few, site, results, chosen, "noising", 2, atol=5e-5) > 1e-3


class Deaf(nn.Module):
    """An MLP whose output goes through its hook, and on without what the hook returned."""

    def __init__(self, mlp, hook):
        super().__init__()
        self.mlp, self.hook = mlp, [hook]

    def forward(self, x):
        out = self.mlp(x)
        self.hook[0](out)
        return out


def test_a_model_that_does_not_listen_to_its_hook_is_refused(ours, few, monkeypatch):
    deaf = HookedDecoder(ours.cfg)
    deaf.load_state_dict(ours.state_dict())
    block = deaf.eval().blocks[1]  # the others listen
    block.mlp, block.hook_mlp_out = Deaf(block.mlp, block.hook_mlp_out), nn.Identity()
    monkeypatch.setattr("interp.patching.batch.HookedDecoder", type(None))
    assert float(abs(patch(deaf, few, site="z").patched).max()) > 0
    with pytest.raises(ValueError, match=r"depends on what its hook 'blocks\.1\.hook_mlp"):
        patch(deaf, few, site="mlp_out")


def test_a_hook_that_is_never_called_stops_the_sweep(bridge, few, monkeypatch):
    monkeypatch.setattr(bridge, "run_with_hooks", lambda tokens, fwd_hooks: bridge(tokens))
    with pytest.raises(RuntimeError, match=r"hook blocks\.0\.hook_mlp_out was never"):
        patch(bridge, few, site="mlp_out")


def test_paths_and_training_mode_are_refused(bridge, few):
    with pytest.raises(ValueError, match="path 'z-q' needs a HookedDecoder, got a Transformer"):
        patch(bridge, few, site="z-q")
    bridge.train()
    try:
        with pytest.raises(ValueError, match="the model is in training mode"):
            patch(bridge, few, site="z")
    finally:
        bridge.eval()
