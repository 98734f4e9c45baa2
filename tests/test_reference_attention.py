"""Training with a reference's attention patterns, against hooks in float64."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from interp.data.batches import evaluation_set, training_batch
from interp.model.decoder import DecoderConfig, HookedDecoder, initialise
from interp.training.evaluation import evaluate
from interp.training.loop import make_step, train
from interp.training.optimizer import make_trainee
from interp.training.packing import next_tokens, to_ragged
from interp.training.reference_attention import patched_hidden
from interp.training.run_folder import read_config


@pytest.fixture(scope="module")
def batch(suite, config):
    return evaluation_set(suite.texts, config, "held-out")


def wide_model(suite, seed, *, parallel=False):
    shape = DecoderConfig(3, 4, 32, 64, suite.tokenizer.get_vocab_size(), parallel=parallel)
    model = HookedDecoder(shape)
    initialise(model, std=0.3, seed=seed)
    return model.double()


def hooked_logits(model, reference, row):
    """By TransformerLens hooks: every pattern replaced by the reference's."""
    with torch.no_grad():
        _, cache = reference.run_with_cache(row)
    hooks = [
        (f"blocks.{layer}.attn.hook_pattern", lambda x, hook: cache[hook.name])
        for layer in range(model.cfg.n_layers)
    ]
    return model.run_with_hooks(row, fwd_hooks=hooks)[0]


@pytest.mark.parametrize("parallel", [False, True])
def test_states_and_gradients_are_those_of_hooks_that_replace_every_pattern(suite, batch, parallel):
    model, reference = (wide_model(suite, seed, parallel=parallel) for seed in (0, 1))
    tokens, ragged = to_ragged(batch, model.cfg, "cpu")
    target, has_next = (torch.from_numpy(x) for x in next_tokens(batch))
    edges = [0, *batch.lengths.cumsum()]
    rows = [tokens[a:b][None] for a, b in pairwise(edges)]
    ways = []
    for logits in (
        model.unembed(patched_hidden(model, reference, tokens, ragged)),
        torch.cat([hooked_logits(model, reference, row) for row in rows]),
    ):
        model.zero_grad()
        losses = F.cross_entropy(logits, target, reduction="none") * has_next
        (losses.sum() / has_next.sum()).backward()
        ways.append((logits.detach(), {k: p.grad.clone() for k, p in model.named_parameters()}))
    assert (ways[0][0] - ways[1][0]).abs().max() < 1e-9
    for name, gradient in ways[0][1].items():
        torch.testing.assert_close(gradient, ways[1][1][name], atol=1e-10, rtol=1e-8, msg=name)
    assert all(p.grad is None for p in reference.parameters())
    own = model.unembed(model.hidden(tokens, ragged))
    assert (own - ways[0][0]).abs().max() > 0.1  # without patching it is another function


def test_by_its_own_patterns_a_model_is_itself_and_learns_no_queries_and_keys(suite, batch):
    model = wide_model(suite, 0)
    tokens, ragged = to_ragged(batch, model.cfg, "cpu")
    states = patched_hidden(model, model, tokens, ragged)
    assert (states - model.hidden(tokens, ragged)).abs().max() < 1e-12
    states.square().sum().backward()
    gradient = model.blocks[1].attn.qkv.weight.grad.unflatten(0, (4, 3, 8))
    assert (gradient[:, :2] == 0).all() and (gradient[:, 2] != 0).any()


def patched(config, run, **changes):
    return replace(config, reference=str(run), reference_step=30, **changes)


def test_a_run_is_patched_from_its_start_step_on_with_a_fresh_optimizer(run, config, tmp_path):
    fp32 = replace(config, precision="fp32")
    out = train(patched(fp32, run, start_step=10), tmp_path / "run")
    from interp.suite import load_suite

    suite, reference = load_suite(out), load_suite(run).load(30)
    before = load_suite(train(fp32, tmp_path / "plain"))
    assert suite.sha256(10) == before.sha256(10)  # until then nothing is different
    assert suite.sha256(20) != before.sha256(20)
    trainee = make_trainee(fp32, suite.tokenizer.get_vocab_size())
    trainee.model.load_state_dict(before.load(10).state_dict())
    trainee.step = 10
    step = make_step(fp32, trainee, reference)
    for i in range(10, 20):
        step(training_batch(suite.texts, fp32, i))
    for name, weight in suite.load(20).state_dict().items():
        torch.testing.assert_close(weight, trainee.model.state_dict()[name], msg=name)
    table = evaluate(
        suite.load(20), evaluation_set(suite.texts, fp32, "train"), reference=reference
    ).set_index("attribute")
    stored = suite.metrics.query("step == 20 and split == 'train'").set_index("attribute")
    assert stored.loss["average"] == pytest.approx(table.loss["average"], rel=1e-5)


@pytest.mark.parametrize("stopped", [15, 25])  # gone on with from 10, where patching starts, and 20
def test_a_stopped_run_goes_on_with_the_reference(run, config, tmp_path, stopped):
    asked = patched(config, run, start_step=10)

    class Stop(Exception):
        pass

    def stop(step, loss):
        if step == stopped:
            raise Stop

    with pytest.raises(Stop):
        train(asked, tmp_path / "a", on_step=stop)
    train(asked, tmp_path / "a", resume=True)
    train(asked, tmp_path / "b")
    for name in ("step-000010", "step-000020", "step-000030"):
        a, b = ((tmp_path / x / name / "model.safetensors").read_bytes() for x in "ab")
        assert a == b
    assert read_config(tmp_path / "a") == read_config(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference_step": 15}, "no checkpoint at reference_step 15; there are 0, 10, 20, 30"),
        ({"n_layers": 2}, "has n_layers 3, this run 2; its patterns don't fit"),
        ({"seed": 5}, "has other tokens than this run; train it with the same seed and pools"),
        ({"reference": "nosuch"}, "no run.json in nosuch"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused_before_the_run_is_begun(
    run, config, tmp_path, changes, message
):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(replace(patched(config, run), **changes), tmp_path / "run")
    train(replace(config, n_steps=1), tmp_path / "run")  # nothing was begun there
