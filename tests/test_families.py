"""Folders that transformers saved of every family: the same logits, and patching, paths and
estimates as hooks by hand do them, with grouped keys and norms of queries and keys.
"""

import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hooks import bridge_around
from test_interventions import cells_of, compare
from transformers import AutoConfig, AutoModelForCausalLM

from interp.model import hf_config
from interp.model.checkpoint_io import check_checkpoint, read_checkpoint, write_checkpoint
from interp.model.families import FAMILIES
from interp.patching import patch_sites
from interp.patching.sites import SITES

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4]])
SMALL = dict(
    vocab_size=13, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=16,
)  # fmt: skip
GROUPED = ("llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2")


def saved(folder, family, **changes):
    """A folder as transformers saves it, with weights so large that every detail matters."""
    torch.manual_seed(0)
    own_keys = {} if family == "gpt_neox" else {"num_key_value_heads": 4}
    config = AutoConfig.for_model(
        family, **(SMALL | own_keys | {"initializer_range": 0.4} | changes)
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data.normal_(std=0.3)
        elif weight.ndim == 1:
            weight.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return folder


def rewrite(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def theirs(folder, dtype):
    """The model of transformers, whose norms compute in fp32 whatever its type: in float64 they are
    written out here.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    for norm in model.modules() if dtype == torch.float64 else ():
        if hasattr(norm, "variance_epsilon"):
            norm.forward = partial(_rms_norm, norm.weight, norm.variance_epsilon)
        elif type(norm).__name__ == "OlmoLayerNorm":
            norm.forward = lambda x: (
                (x - x.mean(-1, keepdim=True))
                * (x.var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt()
            )
    return model


def _rms_norm(weight, eps, x):
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


@torch.no_grad()
def difference(folder, dtype, tokens=TOKENS):
    """Largest, between our logits and those of transformers, ÷ the largest logit."""
    logits = theirs(folder, dtype)(tokens).logits
    ours = read_checkpoint(folder).to(dtype)(tokens)
    return float((ours - logits).abs().max() / logits.abs().max())


ROPE = st.sampled_from([
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4},
    {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4, "rope_theta": 1e4},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3, "beta_fast": 8.0,
     "original_max_position_embeddings": 8, "rope_theta": 1e4},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8, "rope_theta": 500.0},
])  # fmt: skip
SHARED = {
    "num_hidden_layers": st.integers(1, 3),
    "rope_parameters": ROPE,
    "tie_word_embeddings": st.booleans(),
}
HEADS = {
    "num_attention_heads": st.sampled_from([2, 4]),
    "num_key_value_heads": st.sampled_from([1, 2]),
}
EPS = {"rms_norm_eps": st.sampled_from([1e-6, 1e-2])}
WIDTH = {"head_dim": st.sampled_from([4, 8])}
BIASED = {"attention_bias": st.booleans()}
DRAWN = {
    "llama": SHARED | HEADS | EPS | WIDTH | BIASED | {"mlp_bias": st.booleans()},
    "mistral": SHARED | HEADS | EPS | WIDTH | {"sliding_window": st.sampled_from([None, 11, 4096])},
    "qwen2": SHARED | HEADS | EPS | {"use_sliding_window": st.booleans(),
                                     "sliding_window": st.just(11),
                                     "max_window_layers": st.just(1)},
    "qwen3": SHARED | HEADS | EPS | WIDTH | BIASED,
    "olmo": SHARED | HEADS | BIASED,
    "olmo2": SHARED | HEADS | EPS,
    "gpt_neox": {
        "num_attention_heads": st.just(2),
        "num_hidden_layers": st.integers(1, 3),
        "rope_parameters": ROPE.map(lambda rope: rope | {"partial_rotary_factor": 0.5}),
        "use_parallel_residual": st.booleans(),
        "attention_bias": st.booleans(),
    },
}  # fmt: skip


@pytest.mark.parametrize("family", DRAWN)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_logits_are_those_of_transformers(tmp_path_factory, family, data):
    shape = data.draw(st.fixed_dictionaries(DRAWN[family]))
    folder = saved(tmp_path_factory.mktemp(family), family, **shape)
    assert difference(folder, torch.float64) < 1e-10
    assert difference(folder, torch.float32) < 1e-5


@pytest.mark.parametrize("family", GROUPED)
def test_every_key_that_transformers_writes_is_known_with_its_default(family):
    theirs, of = AutoConfig.for_model(family).to_dict(), FAMILIES[family]
    read = {**of.sizes, **of.others}
    assert theirs.keys() <= {*read, *of.unread, *hf_config.WITHOUT_EFFECT}
    filled = {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": None}
    for key, default in read.items():
        assert theirs[key] == default or theirs[key] == filled[key], key


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu'; only silu, swish, gelu"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_att"),
        ("llama", {"logits_scaling": 2.0}, "key 'logits_scaling' .* is unknown for llama"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "has rope_type 'longrope', and"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "factor of rope_parameters is None"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2, "beta_fast": 3}},
         "key 'beta_fast', which is unknown for rope_type 'linear'"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 2}, "layer_types is .*; only full_att"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1 can be"),
        ("olmo", {"clip_qkv": 8.0}, "clip_qkv is 8.0; only null"),
        ("olmo2", {"attention_bias": True}, "attention_bias is True; only false"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0; only null, or a whole number"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(tmp_path, family, changes, message):
    rewrite(saved(tmp_path, family), **changes)
    with pytest.raises(ValueError, match=message):
        check_checkpoint(tmp_path)


def test_prompts_longer_than_a_sliding_window_are_refused(tmp_path):
    model = read_checkpoint(saved(tmp_path, "mistral", sliding_window=10))
    with pytest.raises(ValueError, match="got 11 tokens, the model takes at most n_ctx = 10"):
        model(TOKENS)


@pytest.mark.parametrize("family", GROUPED)
def test_a_model_of_another_shape_is_not_written_as_gpt_neox(tmp_path, family):
    model = read_checkpoint(saved(tmp_path / "one", family))
    with pytest.raises(ValueError, match="only models of GPT-NeoX's shape can be written, and thi"):
        write_checkpoint(model, tmp_path / "two", dtype=torch.float32)


SHAPES = {
    "llama": dict(num_key_value_heads=2, head_dim=6),
    "qwen2": dict(num_key_value_heads=1),
    "qwen3": dict(num_key_value_heads=2, head_dim=8),
    "olmo": {},
    "olmo2": dict(num_key_value_heads=2),
}


@pytest.fixture(scope="module", params=SHAPES)
def model(request, suite, tmp_path_factory):
    d_vocab = suite.tokenizer.get_vocab_size()
    shape = dict(vocab_size=d_vocab, num_hidden_layers=3, max_position_embeddings=40)
    shape |= SHAPES[request.param] | {"intermediate_size": 32}
    return read_checkpoint(saved(tmp_path_factory.mktemp("f"), request.param, **shape)).double()


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("site", SITES)
def test_patching_is_what_hooks_on_a_whole_forward_pass_give(model, suite, site, window):
    few = suite.facts(4, seed=3)
    results = patch_sites(model, few, sites=[site], direction="noising", window=window, n_neurons=8)
    rng, cells = np.random.default_rng(0), cells_of(site, model, results[site])
    chosen = [(cells[i], int(rng.integers(len(few)))) for i in rng.permutation(len(cells))[:12]]
    assert compare(model, few, site, results, chosen, "noising", window) > 1e-3


BRIDGED = ("resid_pre", "attn_out", "mlp_out", "mlp_post", "z", "q", "k", "v", "pattern")


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2"])
def test_a_bridge_around_the_same_folder_gives_the_same_results(tmp_path, suite, family):
    d_vocab = suite.tokenizer.get_vocab_size()
    shape = dict(num_hidden_layers=2, vocab_size=d_vocab, max_position_embeddings=40)
    folder, few = saved(tmp_path, family, **SHAPES[family], **shape), suite.facts(4, seed=3)
    bridge = bridge_around(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    how = {"sites": BRIDGED, "n_neurons": 10, "direction": "noising"}
    ours, theirs = (patch_sites(x, few, **how) for x in (read_checkpoint(folder), bridge))
    for site in BRIDGED:
        moved = abs(ours[site].patched - ours[site].clean)
        np.testing.assert_allclose(ours[site].patched, theirs[site].patched, atol=2e-4)
        assert float(moved.max()) > 0.02, site
