"""The same numbers on a GPU as on the CPU: on a real one where there is one (marker ``cuda``), and
everywhere on a simulated one, which finds operands on two devices and waits of the CPU.

Tolerances are of fp32 sums in another order: 1e-4 nats of logits of size 10.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated_gpu import simulated_gpu

from interp.attribution import (
    edge_effects,
    pattern_attribution,
    run_circuits,
    score_attribution,
    value_attribution,
)
from interp.attribution.circuits import everything
from interp.attribution.edges import graph_of
from interp.data.batches import evaluation_set, training_batch
from interp.data.facts import FactSet
from interp.localization.answer_confidence import mlp_activity
from interp.localization.attention_statistics import attention_statistics
from interp.localization.checkpoint_answers import QUESTIONS, checkpoint_answers
from interp.localization.fact_editing import edit_facts
from interp.localization.neurons import written
from interp.localization.transplants import transplants
from interp.model.gpu import free_bytes, tokens_that_fill
from interp.patching import patch, recompute
from interp.results.sweep import patch_suite
from interp.suite import load_suite
from interp.training import evaluation
from interp.training.evaluation import evaluate
from interp.training.finetune import finetune_config
from interp.training.loop import make_step, train
from interp.training.optimizer import make_trainee
from interp.training.packing import to_inputs

NoWaits = Callable[[], AbstractContextManager[None]]
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
CUDA = torch.device("cuda")


@pytest.fixture(params=["simulated", pytest.param("cuda", marks=pytest.mark.cuda)])
def gpu(request: pytest.FixtureRequest) -> Iterator[NoWaits]:
    """Makes ``cuda`` a device, and gives a context in which the CPU must not wait for it."""
    if request.param == "cuda":
        yield _no_waits
        return
    with simulated_gpu() as waits:

        @contextmanager
        def no_waits() -> Iterator[None]:
            waits.clear()
            yield
            assert not waits

        yield no_waits


@contextmanager
def _no_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def same(there, here) -> None:
    """All variables of two datasets agree."""
    assert set(there.data_vars) == set(here.data_vars) and here.sizes == there.sizes
    for name in here.data_vars:
        np.testing.assert_allclose(there[name], here[name], err_msg=name, **TOLERANCE)


@pytest.fixture
def pair(gpu, suite):
    """The last checkpoint, on the CPU and on the GPU."""
    return suite.load(30), suite.load(30, device="cuda")


@pytest.fixture
def few(facts: FactSet) -> FactSet:
    return facts[:6]


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(
    "site", ["resid_pre", "resid_mid", "z", "k", "v", "pattern", "mlp_out", "mlp_post", "edge",
             "knockout", "z-logits", "L0H2.z-q", "z-mlp_out-logits"]
)  # fmt: skip
def test_patching_is_the_same_on_a_gpu(pair, few, site, direction):
    if site == "knockout" and direction == "denoising":
        direction = "noising"
    here, there = (patch(model, few, site=site, direction=direction) for model in pair)
    same(there, here)


@pytest.mark.parametrize(
    "options", [{"replacement": "mean"}, {"replacement": "resample"}, {"replacement": "zero"},
                {"replacement": "noise"}, {"window": 3}, {"frozen": "mlp_out"}]
)  # fmt: skip
def test_ablations_and_windows_are_the_same_on_a_gpu(pair, few, options):
    site = "resid_pre" if "frozen" in options else "attn_out"
    noise = options.get("replacement") == "noise"
    options = options | {"direction": "denoising" if noise else "noising"}
    here, there = (patch(model, few, site=site, **options) for model in pair)
    same(there, here)


@pytest.mark.parametrize(
    ("method", "site"),
    [("atp", "z"), ("atp-star", "q"), ("relp", "mlp_out"), ("eap", "z-q"), ("eap-ig", "z-mlp_out"),
     ("relp", "mlp_out-logits"), ("eap-ig", "resid_pre")],
)  # fmt: skip
def test_estimates_from_gradients_are_the_same_on_a_gpu(pair, few, method, site):
    here, there = (patch(model, few, site=site, method=method) for model in pair)
    same(there, here)


def test_a_sweep_is_the_same_on_a_gpu(gpu, suite, few):
    here, there = (
        patch_suite(suite, few, sites=["z"], steps=[0, 30], device=device)
        for device in ("cpu", "cuda")
    )
    same(there["z"].to_dataset(), here["z"].to_dataset())


def test_logits_are_the_same_on_a_gpu(pair, facts):
    with torch.no_grad():
        here, there = (model(facts.clean.to(model.embed.weight.device)) for model in pair)
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), here, **TOLERANCE)


@pytest.mark.parametrize("question", QUESTIONS)
def test_localization_is_the_same_on_a_gpu(pair, suite, question):
    facts, people = suite.facts(72, seed=1, fewer=True), suite.facts(60, seed=2, fewer=True)
    here, there = (
        checkpoint_answers(model, facts, people, questions=[question])[question] for model in pair
    )
    same(there, here)


@pytest.mark.parametrize(
    "attribute",
    [score_attribution, value_attribution, pattern_attribution, edge_effects,
     lambda model, facts: written(model, facts, layer=1).to_dataset(name="effect"),
     lambda model, facts: mlp_activity(model, facts).to_dataset()],
    ids=["scores", "values", "patterns", "edges", "neurons", "mlp_activity"],
)  # fmt: skip
def test_attributions_are_the_same_on_a_gpu(pair, few, attribute):
    here, there = (attribute(model, few) for model in pair)
    same(there, here)


def test_circuits_are_the_same_on_a_gpu(pair, few):
    roles = [few.role_names[i] for i in few.roles.unique().tolist() if i >= 0]
    edges = everything(graph_of(pair[0].cfg), len(roles))
    edges = edges & (np.random.default_rng(0).random((3, *edges.shape)) < 0.5)
    here, there = (run_circuits(model, few, edges, roles) for model in pair)
    np.testing.assert_allclose(there, here, **TOLERANCE)


def test_edits_of_facts_are_the_same_on_a_gpu(pair, suite, few):
    options = {"layer": 1, "role": "final", "n_sentences": 2, "n_others": 2}
    here, there = (edit_facts(model, suite, few[:2], **options) for model in pair)
    same(there, here)


def test_attention_statistics_and_transplants_are_the_same_on_a_gpu(pair, suite, config):
    people = evaluation_set(suite.texts, config, "held-out")
    here, there = (attention_statistics(model, people) for model in pair)
    same(there, here)
    of_first = suite.load(0), suite.load(0, device="cuda")
    here, there = (
        transplants(before, after, ["mlp"], {"held-out": people})
        for before, after in zip(of_first, pair)
    )
    np.testing.assert_allclose(there.loss, here.loss, **TOLERANCE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_is_the_same_on_a_gpu(pair, suite, config, precision):
    """In bf16 within 0.5 % of a loss, 2⁻⁸ being the rounding of a logit."""
    people = evaluation_set(suite.texts, config, "train")
    close = TOLERANCE if precision == "fp32" else {"rtol": 5e-3, "atol": 5e-3}
    for reference in ((None, None), (suite.load(10), suite.load(10, device="cuda"))):
        here, there = (
            evaluate(model, people, reference=patterns, precision=precision)
            for model, patterns in zip(pair, reference)
        )
        np.testing.assert_allclose(there.loss, here.loss, **close)


def test_evaluation_reads_as_many_rows_as_a_gpu_has_memory_for(gpu, pair, suite, config):
    cfg, people = pair[0].cfg, evaluation_set(suite.texts, config, "train")
    rows = [evaluation._rows_at_once(cfg, people, n) for n in (1e4, 1e9, 8e9)]
    assert rows[0] == 1 and rows[2] == pytest.approx(8 * rows[1], rel=0.01)
    assert evaluation._rows_at_once(cfg, people, free_bytes(CUDA)) > 256
    assert evaluation._rows_at_once(cfg, people, free_bytes(torch.device("cpu"))) == 256


def test_a_gpu_takes_as_many_tokens_as_fill_it(gpu):
    n = torch.cuda.get_device_properties(CUDA).multi_processor_count
    assert recompute.tokens_at_once(CUDA) == tokens_that_fill(CUDA) == 512 * n
    assert recompute.tokens_at_once(torch.device("cpu")) == recompute.TOKENS_AT_ONCE


def test_the_limit_is_what_a_gpu_has_left_where_that_is_less(suite, few, monkeypatch):
    """With 30 kB free, facts go one by one."""
    seen = []
    chunks = recompute.Recompute.run
    monkeypatch.setattr(
        recompute.Recompute, "run",
        lambda self, given, names=(): seen.append(len(given.tokens)) or chunks(self, given, names),
    )  # fmt: skip
    for memory, rows in ((8e9, {2}), (3e4, {1})):
        with simulated_gpu(memory):
            patch(suite.load(30, device="cuda"), few[:2], site="z")
        assert set(seen) == rows
        seen.clear()


@pytest.mark.cuda
@pytest.mark.parametrize("max_memory", [0.05, 0.5])
def test_patching_keeps_to_its_memory(suite, facts, max_memory):
    model = suite.load(30, device="cuda")
    many = suite.facts(240, seed=0, fewer=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    patch(model, many, site="z", max_memory=max_memory)
    assert torch.cuda.max_memory_allocated() - before < max_memory * 1e9


def test_a_few_steps_of_training_are_the_same_on_a_gpu(gpu, config, tmp_path):
    asked = replace(config, precision="fp32", n_steps=10)
    here, there = (
        load_suite(train(replace(asked, device=device), tmp_path / device)).metrics
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there.loss, here.loss, rtol=1e-3)


@pytest.mark.parametrize(
    "way", ["", "lora:2", "ewc:10", "distil:1", "sparse-memory:0.2", "slots:4", "only:mlp"]
)
def test_fine_tuning_is_the_same_on_a_gpu(gpu, suite, tmp_path, way):
    asked = finetune_config(
        suite.config, suite.path, 30, new_people=3, n_steps=3, dense_every=3, dense_until=3,
        checkpoint_every=3, precision="fp32", mitigation=way,
    )  # fmt: skip
    here, there = (
        load_suite(train(replace(asked, device=device), tmp_path / device)).metrics
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there.loss, here.loss, rtol=1e-3)


def test_training_with_reference_attention_is_the_same_on_a_gpu(gpu, suite, config, tmp_path):
    asked = replace(
        config, precision="fp32", n_steps=6, dense_until=0, checkpoint_every=3, start_step=2,
        reference=str(suite.path), reference_step=30,
    )  # fmt: skip
    here, there = (
        load_suite(train(replace(asked, device=device), tmp_path / device)).metrics
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there.loss, here.loss, rtol=1e-3)


def test_training_in_bf16_learns_on_a_gpu(gpu, config, tmp_path):
    asked = replace(config, precision="bf16", device="cuda", dense_until=0, checkpoint_every=30)
    loss = load_suite(train(asked, tmp_path / "run")).metrics.query("attribute == 'average'").loss
    assert np.isfinite(loss).all() and loss.iloc[-1] < loss.iloc[0] - 1


class Stopped(Exception):
    pass


def test_a_resumed_run_is_the_same_bit_by_bit_on_a_gpu(gpu, config, tmp_path):
    def stop(step: int, loss: torch.Tensor) -> None:
        if step == 7:
            raise Stopped

    asked = replace(
        config, precision="bf16", device="cuda", n_steps=10, dense_every=5, dense_until=5
    )
    train(asked, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(asked, tmp_path / "stopped", on_step=stop)
    train(asked, tmp_path / "stopped", resume=True)
    whole, stopped = (load_suite(tmp_path / x).load(10).state_dict() for x in ("whole", "stopped"))
    for name, weight in whole.items():
        assert torch.equal(weight, stopped[name]), name


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_the_cpu_does_not_wait_in_a_training_step(gpu, suite, config, clip_norm):
    """Building a batch and a whole step only queue work on the GPU."""
    asked = replace(config, precision="fp32", device="cuda", clip_norm=clip_norm)
    trainee = make_trainee(asked, suite.tokenizer.get_vocab_size())
    step = make_step(asked, trainee)
    step(training_batch(suite.texts, config, 0))  # the first allocates
    with gpu():
        loss = step(to_inputs(training_batch(suite.texts, config, 1), trainee.model.cfg, CUDA))
    assert loss.is_cuda
