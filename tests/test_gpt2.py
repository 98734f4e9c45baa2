"""GPT-2 folders that transformers saved: the same logits, and patching as hooks by hand do it."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_interventions import cells_of, compare
from transformers import GPT2Config, GPT2LMHeadModel

from interp.localization.logit_attribution import direct_attribution
from interp.model import hf_config
from interp.model.checkpoint_io import check_checkpoint, read_checkpoint, write_checkpoint
from interp.model.gpt2 import GPT2
from interp.patching import patch, patch_sites
from interp.patching.sites import SITES

SMALL = dict(vocab_size=13, n_embd=16, n_layer=2, n_head=2, n_positions=16)
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def saved(folder, **changes):
    """A folder as transformers saves it, with weights so large that every detail matters."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**(SMALL | {"initializer_range": 0.5} | changes)))
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def rewrite(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@torch.no_grad()
def difference(folder, dtype=torch.float32):
    """Largest, between our logits and those of transformers on the same folder."""
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=dtype).eval()
    ours = read_checkpoint(folder).to(dtype)
    return float((ours(TOKENS) - theirs(TOKENS).logits).abs().max())


@settings(max_examples=25, deadline=None)
@given(
    shape=st.fixed_dictionaries({
        "n_layer": st.integers(1, 3),
        "n_head": st.sampled_from([1, 2, 4]),
        "n_inner": st.sampled_from([None, 20]),
        "n_positions": st.sampled_from([8, 30]),
        "activation_function": st.sampled_from(["gelu_new", "gelu", "gelu_pytorch_tanh"]),
        "layer_norm_epsilon": st.sampled_from([1e-5, 1e-3]),
        "tie_word_embeddings": st.booleans(),
        "reorder_and_upcast_attn": st.booleans(),
    })
)  # fmt: skip
def test_logits_are_those_of_transformers(tmp_path_factory, shape):
    folder = saved(tmp_path_factory.mktemp("gpt2"), **shape)
    assert difference(folder, torch.float64) < 1e-10  # logits reach 20
    assert difference(folder) < 1e-5 * 20


def test_older_files_have_no_prefix_and_tables_beside_the_weights(tmp_path):
    path = saved(tmp_path) / "model.safetensors"
    weights = {name.removeprefix("transformer."): x for name, x in load_file(path).items()}
    weights["h.0.attn.bias"] = torch.ones(16, 16).tril()[None, None]
    weights["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, path, {"format": "pt"})
    assert difference(tmp_path, torch.float64) < 1e-10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True; onl"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False; only true"),
        ({"activation_function": "relu"}, "activation_function is 'relu'; only gelu_new, gelu_py"),
        ({"n_inner": 0}, "n_inner is 0; only a whole number"),
        ({"n_head": 3}, "n_embd 16 is not a multiple of n_head 3"),
        ({"rotary_pct": 1.0}, "key 'rotary_pct' .* is unknown for gpt2"),
        ({"n_layer": 3}, "has the weights of 2 layers, config.json says 3"),
        ({"tie_word_embeddings": False}, "incomplete: 1 weights are missing, lm_head.weight first"),
        ({"architectures": ["GPT2Model"]}, "architectures is .*only the list"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, changes, message):
    rewrite(saved(tmp_path), **changes)
    with pytest.raises(ValueError, match=message):
        check_checkpoint(tmp_path)


def test_an_output_layer_that_is_not_the_embedding_is_refused_where_they_are_tied(tmp_path):
    rewrite(saved(tmp_path, tie_word_embeddings=False), tie_word_embeddings=True)
    with pytest.raises(ValueError, match="has an output layer that is not the embedding"):
        read_checkpoint(tmp_path)


def test_every_key_that_transformers_writes_is_known_with_its_default():
    theirs, read = GPT2Config(), {**GPT2.sizes, **GPT2.others}
    assert {key: getattr(theirs, key) for key in read} == read
    assert theirs.to_dict().keys() <= {*read, *GPT2.unread, *hf_config.WITHOUT_EFFECT}


@pytest.fixture(scope="module")
def model(suite, tmp_path_factory):
    d_vocab = suite.tokenizer.get_vocab_size()
    shape = dict(vocab_size=d_vocab, n_layer=3, n_head=4, n_positions=40, n_inner=32)
    return read_checkpoint(saved(tmp_path_factory.mktemp("wide"), **shape)).double()


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("site", SITES)
def test_patching_is_what_hooks_on_a_whole_forward_pass_give(model, suite, site, window):
    few = suite.facts(4, seed=3)
    results = patch_sites(model, few, sites=[site], direction="noising", window=window, n_neurons=8)
    rng, cells = np.random.default_rng(0), cells_of(site, model, results[site])
    chosen = [(cells[i], int(rng.integers(len(few)))) for i in rng.permutation(len(cells))[:12]]
    assert compare(model, few, site, results, chosen, "noising", window) > 1e-3


def test_queries_and_keys_are_not_rotated(model, facts):
    for plain, rotated in (("q", "rot_q"), ("k", "rot_k")):
        pair = [patch(model, facts, site=site).patched for site in (plain, rotated)]
        np.testing.assert_allclose(*pair, atol=1e-12)


def test_embeddings_are_patched_without_their_positions(model, facts):
    """The mean embedding of a role is added to the position where it is pasted."""
    result = patch(model, facts, site="embed", direction="noising", replacement="mean")
    fact, rows = facts[0], [f.clean[f.roles.index("final")] for f in facts]
    mean, final = model.embed.weight[torch.stack(rows)].mean(0), len(fact.clean) - 1

    def paste(x, hook):
        x = x.clone()
        x[:, final] = mean
        return x

    tokens = torch.cat((fact.clean, fact.answer[:-1]))[None]
    logits = model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", paste)])[0, final]
    theirs = (logits[fact.answer[0]] - logits[fact.corrupted_answer[0]]).item()
    assert float(result.patched.sel(role="final")[0, 0]) == pytest.approx(theirs, abs=1e-6)


def test_a_path_through_all_later_nodes_is_what_patching_gives(model, facts):
    """In the last layer a head reaches the logits directly, and through that layer's MLP."""
    whole = patch(model, facts, site="mlp_out", direction="noising").patched.isel(layer=-1)
    path = patch(model, facts, site="mlp_out-logits", direction="noising").patched.isel(layer=-1)
    np.testing.assert_allclose(path, whole, atol=1e-6)


def test_what_components_write_adds_up_to_the_logit_difference(model, facts):
    parts = direct_attribution(model, facts)
    total = parts.embed + parts["head"].sum(("layer", "head")) + parts.constant
    total = total + (parts.attn_bias + parts.mlp).sum("layer")
    np.testing.assert_allclose(total, parts.logit_diff, atol=1e-9)


def test_a_gpt2_is_not_written_as_a_gpt_neox(model, tmp_path):
    with pytest.raises(ValueError, match="only models of GPT-NeoX's shape can be written"):
        write_checkpoint(model, tmp_path / "step", dtype=torch.float32)
    assert not list(tmp_path.iterdir())


def test_every_hook_has_a_batch_axis(tmp_path):
    model, shapes = read_checkpoint(saved(tmp_path / "m")), {}
    hooks = [(lambda name: True, lambda x, hook: shapes.update({hook.name: x.shape[0]}))]
    model.run_with_hooks(TOKENS, fwd_hooks=hooks)
    assert "hook_pos_embed" in shapes and set(shapes.values()) == {len(TOKENS)}
