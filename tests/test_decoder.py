from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from interp.data.batches import training_batch
from interp.model.checkpoint_io import write_checkpoint
from interp.model.decoder import DecoderConfig, HookedDecoder, initialise
from interp.training.loop import make_step
from interp.training.optimizer import make_trainee


@pytest.fixture
def parallel_model() -> HookedDecoder:
    """Shaped like a small Pythia: parallel blocks, a quarter of each head rotated."""
    shape = DecoderConfig(2, 2, 32, 64, 50, parallel=True, rotary_dim=4)
    model = HookedDecoder(shape)
    initialise(model, std=0.3, seed=0)
    return model.eval()


def hugging_face_logits(model, folder, tokens):
    write_checkpoint(model, folder, dtype=torch.float32)
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits


def test_logits_are_those_of_hugging_face_reading_the_same_folder(model, facts, tmp_path):
    theirs = hugging_face_logits(model, tmp_path / "step", facts.clean)
    torch.testing.assert_close(model(facts.clean), theirs, atol=1e-5, rtol=1e-5)


def test_a_parallel_model_with_partial_rotary_agrees_with_hugging_face(parallel_model, tmp_path):
    tokens = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(0))
    theirs = hugging_face_logits(parallel_model, tmp_path / "step", tokens)
    torch.testing.assert_close(parallel_model(tokens), theirs, atol=1e-5, rtol=1e-5)


def test_a_wrong_rotary_share_would_be_noticed(parallel_model, tmp_path):
    tokens = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(0))
    theirs = hugging_face_logits(parallel_model, tmp_path / "step", tokens)
    full = HookedDecoder(DecoderConfig(2, 2, 32, 64, 50, parallel=True)).eval()
    full.load_state_dict(parallel_model.state_dict())
    assert (full(tokens) - theirs).abs().max() > 0.01


def test_every_hook_point_of_the_forward_pass_fires(model, facts):
    _, cache = model.run_with_cache(facts.clean)
    assert set(cache) == set(model.hook_dict)
    n, pos, heads = *facts.clean.shape, model.cfg.n_heads
    assert cache["blocks.1.attn.hook_q"].shape == (n, pos, heads, model.cfg.d_head)
    assert cache["blocks.1.attn.hook_pattern"].shape == (n, heads, pos, pos)
    assert cache["blocks.1.hook_resid_mid"].shape == (n, pos, model.cfg.d_model)


def test_a_parallel_model_has_no_resid_mid(parallel_model):
    assert not any("resid_mid" in name for name in parallel_model.hook_dict)


def test_the_residual_stream_is_the_sum_of_what_was_written(model, facts):
    _, cache = model.run_with_cache(facts.clean)
    written = cache["hook_embed"]
    for layer in range(model.cfg.n_layers):
        written = written + cache[f"blocks.{layer}.hook_attn_out"]
        written = written + cache[f"blocks.{layer}.hook_mlp_out"]
    torch.testing.assert_close(written, cache["blocks.2.hook_resid_post"], atol=1e-5, rtol=1e-5)


def test_hooked_layer_norm_equals_the_fused_one(model, facts):
    names = {"ln_final.hook_scale", "blocks.1.ln2.hook_normalized"}
    hooked, cache = model.run_with_cache(facts.clean, names_filter=lambda name: name in names)
    assert set(cache) == names
    torch.testing.assert_close(hooked, model(facts.clean), atol=1e-5, rtol=1e-5)


def test_attention_sees_no_later_token(model, facts):
    changed = facts.clean.clone()
    changed[:, 5] = (changed[:, 5] + 1) % model.cfg.d_vocab
    before, after = model(facts.clean)[:, :5], model(changed)[:, :5]
    torch.testing.assert_close(before, after, atol=0, rtol=0)


def test_initial_weights_are_a_function_of_the_seed():
    shape = DecoderConfig(2, 2, 16, 32, 20)
    first, again, other = (HookedDecoder(shape) for _ in range(3))
    for model, seed in ((first, 5), (again, 5), (other, 6)):
        initialise(model, std=0.02, seed=seed)
    assert torch.equal(first.embed.weight, again.embed.weight)
    assert not torch.equal(first.embed.weight, other.embed.weight)
    ratio = first.blocks[0].mlp.down.weight.std() / first.blocks[0].mlp.up.weight.std()
    assert 0.4 < ratio < 0.6


def test_a_shape_that_cannot_be_is_refused_with_its_numbers():
    with pytest.raises(ValueError, match="d_model 30 is not a multiple of n_heads 4"):
        DecoderConfig(1, 4, 30, 4, 4)
    with pytest.raises(ValueError, match="even number of dimensions up to 8, got 3"):
        DecoderConfig(1, 4, 32, 4, 4, rotary_dim=3)


def test_a_prompt_longer_than_the_model_allows_is_refused():
    model = HookedDecoder(DecoderConfig(1, 1, 4, 4, 4, n_ctx=3))
    with pytest.raises(ValueError, match="got 4 tokens, the model takes at most n_ctx = 3"):
        model(torch.zeros(1, 4, dtype=torch.long))


def test_what_is_removed_writes_nothing_and_is_never_learnt(suite, config):
    removed = ("L0H1", "L2-MLP")
    short = replace(config, removed=removed, weight_decay=0.1, precision="fp32")
    trainee = make_trainee(short, suite.tokenizer.get_vocab_size())
    step = make_step(short, trainee)
    for i in range(3):
        step(training_batch(suite.texts, short, i))
    tokens = suite.facts(4).clean
    _, cache = trainee.model.run_with_cache(tokens)
    z, mlp = cache["blocks.0.attn.hook_z"], cache["blocks.2.hook_mlp_out"]
    assert (z[:, :, 1] == 0).all() and (z[:, :, [0, 2, 3]] != 0).all()
    assert (mlp == mlp[0, 0]).all() and (mlp[0, 0] != 0).any()  # the bias, the same for all
    whole = make_trainee(config, suite.tokenizer.get_vocab_size()).model
    ours = trainee.model.blocks[1].mlp.up.weight
    assert (ours != whole.blocks[1].mlp.up.weight).any()


@pytest.mark.parametrize("name", ["L3H0", "L0H4", "L0MLP", "L3-MLP", "head 1"])
def test_what_can_not_be_removed_is_quoted(config, name):
    with pytest.raises(ValueError, match=f"removed has '{name}'; name heads as L0H0 to L2H3"):
        replace(config, removed=(name,))
