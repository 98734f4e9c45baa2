"""Fine-tuning starts from a checkpoint, trains on whom it should, and its mitigations do what they
say: masks bit by bit, penalties and Fisher information by hand, low-rank changes by their rank.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from interp.data.batches import evaluation_set, people_of, sampling_weights, training_batch
from interp.files import read_table
from interp.model.weight_groups import weight_group
from interp.suite import load_suite
from interp.training.finetune import RATE, finetune_config
from interp.training.loop import train
from interp.training.metrics_table import read_metrics
from interp.training.mitigation import N_FISHER, fisher, mitigation

N_NEW = 3


@pytest.fixture(scope="module")
def start(suite):
    """The newest checkpoint of the run."""
    return suite.steps[-1]


@pytest.fixture(scope="module")
def tuning(suite, start):
    return finetune_config(
        suite.config, suite.path, start, new_people=N_NEW, n_steps=4, dense_every=2, dense_until=4,
        checkpoint_every=4, precision="fp32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tuning, tmp_path_factory):
    """The run folder of a plain fine-tuning."""
    return train(tuning, tmp_path_factory.mktemp("tuned") / "run")


def weights(run, step):
    return dict(load_suite(run).load(step).named_parameters())


def test_it_starts_from_the_checkpoint_with_its_people_and_tokenizer(suite, start, tuning, tuned):
    ours, theirs = weights(tuned, 0), dict(suite.load(start).named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    columns = [name for name in suite.population if name != "sampling_weight"]
    people = read_table(tuned / "population.parquet")
    assert people[columns].equals(suite.population[columns])
    assert (tuned / "tokenizer.json").read_bytes() == (suite.path / "tokenizer.json").read_bytes()
    after = weights(tuned, 4)
    assert not any(torch.equal(after[name], ours[name]) for name in ours if "embed" not in name)
    assert tuning.learning_rate == RATE * suite.config.learning_rate == tuning.final_learning_rate


def test_new_people_are_those_held_out_first_and_are_evaluated_apart(suite, tuning, tuned):
    n = suite.config.n_people
    sets = {split: evaluation_set(suite.texts, tuning, split).people for split in
            ("train", "new", "held-out")}  # fmt: skip
    assert sets["new"].tolist() == [n, n + 1, n + 2]
    assert sets["held-out"].min() == n + N_NEW and sets["train"].max() == n - 1
    assert people_of(tuning, "held-out") == (n + N_NEW, suite.config.n_held_out - N_NEW)
    table = read_metrics(tuned / "metrics.parquet")
    assert set(table.split) == {"train", "new", "held-out"} and set(table.step) == {0, 2, 4}


@pytest.mark.parametrize("replay", [0.0, 0.25, 2.0])
def test_an_old_person_is_sampled_replay_times_as_often_as_a_new_one(suite, tuning, replay):
    given = replace(tuning, replay=replay)
    shares = sampling_weights(given, 0)
    n = suite.config.n_people
    assert shares.sum() == pytest.approx(1) and len(shares) == n + N_NEW
    assert shares[n:] == pytest.approx(1 / (replay * n + N_NEW))
    assert shares[:n] == pytest.approx(replay / (replay * n + N_NEW))
    batches = [training_batch(suite.texts, given, step).people for step in range(20)]
    old = np.concatenate(batches) < n
    expected = replay * n / (replay * n + N_NEW)
    assert abs(old.mean() - expected) <= 4 * (expected * (1 - expected) / old.size) ** 0.5


@pytest.mark.parametrize(
    "way, group",
    [("freeze:attention", "mlp+embed+unembed+norms"), ("only:L0-MLP", "L0-MLP"), ("only:qk", "qk")],
)
def test_only_the_weights_that_are_trained_move(tuning, tuned, tmp_path, way, group):
    run = train(replace(tuning, mitigation=way), tmp_path / "run")
    before, after = weights(tuned, 0), weights(run, 4)
    for name, mask in weight_group(load_suite(run).load(0), group).items():
        moved = after[name] != before[name]
        assert not moved[~mask].any(), name
        if "embed.weight" not in name:  # words that no new person has are not trained
            assert moved[mask].float().mean() > 0.9 or not mask.any(), name


@pytest.mark.parametrize(
    "way", ["sparse-gradient", "sparse-memory", "sparse-unused", "sparse-random"]
)
def test_sparse_training_moves_a_share_of_the_neurons(tuning, tuned, tmp_path, way):
    run = train(replace(tuning, mitigation=f"{way}:0.25"), tmp_path / "run")
    before, after = weights(tuned, 0), weights(run, 4)
    n_moved = 0
    for name in before:
        moved = before[name] != after[name]
        if name.endswith("mlp.up.weight"):
            rows, columns = (
                moved.any(1),
                before[name.replace("up", "down")] != after[name.replace("up", "down")],
            )
            assert torch.equal(rows, columns.any(0))
            n_moved += int(rows.sum())
        elif ".mlp." not in name:
            assert not moved.any(), name
    total = tuning.n_layers * tuning.d_mlp
    assert n_moved == round(0.25 * total)


def written(model, biographies):
    """Of each neuron: mean |activation| × norm of the output weights, one biography at a time."""
    ends = np.cumsum(biographies.lengths)
    layers = range(model.cfg.n_layers)
    total = [0.0 for _ in layers]
    for first, end in zip(np.concatenate(([0], ends)), ends):
        _, cache = model.run_with_cache(torch.from_numpy(biographies.tokens[first:end])[None])
        for layer in layers:
            total[layer] = total[layer] + cache[f"blocks.{layer}.mlp.hook_post"][0].abs().sum(0)
    norms = [block.mlp.down.weight.norm(dim=0) for block in model.blocks]
    return torch.stack([total[layer] / ends[-1] * norms[layer] for layer in layers])


def chosen_neurons(masks, n_layers):
    return torch.stack([masks[f"blocks.{i}.mlp.up.bias"] for i in range(n_layers)])


def test_unused_neurons_are_those_that_write_least_on_old_people(suite, tuning, start):
    model, given = suite.load(start), replace(tuning, mitigation="sparse-unused:0.1")
    chosen = chosen_neurons(mitigation(given, model, suite.texts).masks, given.n_layers)
    score = written(model, evaluation_set(suite.texts, given, "train"))
    assert score[chosen].max() <= score[~chosen].min()


def test_memory_neurons_are_those_that_write_most_on_new_people_beside_old_ones(
    suite, tuning, start
):
    model, given = suite.load(start), replace(tuning, mitigation="sparse-memory:0.1")
    chosen = chosen_neurons(mitigation(given, model, suite.texts).masks, given.n_layers)
    new, old = (written(model, evaluation_set(suite.texts, given, x)) for x in ("new", "train"))
    # sums in another order: the ratio at the edge may differ by float32's 1e-6
    assert (new / old)[chosen].min() >= (new / old)[~chosen].max() * (1 - 1e-5)
    with pytest.raises(ValueError, match="compares new people with old ones, and there are no"):
        nobody = replace(given, new_people=0, replay=1.0)
        mitigation(nobody, model, suite.texts)


def test_low_rank_training_changes_matrices_by_that_rank_and_nothing_else(tuning, tuned, tmp_path):
    run = train(replace(tuning, mitigation="lora:2"), tmp_path / "run")
    before, after = weights(tuned, 0), weights(run, 4)
    for name in before:
        change = (after[name] - before[name]).double()
        if name.startswith("blocks.") and change.ndim == 2:
            size = torch.linalg.svdvals(change)
            assert size[1] > 1e-9 and size[2] < 1e-4 * size[0], name  # fp32 rounding of W₀ + BA
        else:
            assert not change.any(), name


def test_slots_are_fresh_neurons_that_are_trained_alone(suite, start, tuned, tmp_path):
    slots = finetune_config(
        suite.config, suite.path, start, new_people=N_NEW, n_steps=4, dense_every=2, dense_until=4,
        checkpoint_every=4, precision="fp32", mitigation="slots:5",
    )  # fmt: skip
    assert slots.d_mlp == suite.config.d_mlp + 5
    run = train(slots, tmp_path / "run")
    first, last, plain = weights(run, 0), weights(run, 4), weights(tuned, 0)
    for name, theirs in plain.items():
        kept = tuple(slice(0, n) for n in theirs.shape)
        assert torch.equal(first[name][kept], theirs) and torch.equal(last[name][kept], theirs)
    assert not first["blocks.0.mlp.down.weight"][:, -5:].any()
    assert last["blocks.0.mlp.down.weight"][:, -5:].any()
    old = evaluation_set(suite.texts, slots, "train").tokens[None, :12]
    logits = [load_suite(x).load(0)(torch.from_numpy(old)) for x in (run, tuned)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_penalties_by_hand(suite, tuning, start):
    """At the start both are 0; after every weight moved by 0.1 they are sums of squares."""
    base = dict(suite.load(start).named_parameters())
    n = sum(weight.numel() for weight in base.values())
    for way, expected in (("l2:3", 3 * 0.01 * n), ("ewc:4", None)):
        given, model = replace(tuning, mitigation=way), suite.load(start)
        penalty = mitigation(given, model, suite.texts).penalty
        assert float(penalty(model)) == 0
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1
        if expected is None:
            information = fisher(given, suite.load(start), suite.texts)
            expected = 2 * 0.01 * sum(float(x.sum()) for x in information.values())
        assert float(penalty(model)) == pytest.approx(expected, rel=1e-4)


def test_fisher_information_is_the_mean_square_of_single_biographies_gradients(
    suite, tuning, start
):
    model = suite.load(start).requires_grad_(True)
    ours, old = (
        fisher(tuning, suite.load(start), suite.texts),
        evaluation_set(suite.texts, tuning, "train"),
    )
    ends = np.cumsum(old.lengths)
    n = min(N_FISHER, len(ends))
    rows = np.linspace(0, len(ends) - 1, n).round().astype(int)
    total = torch.zeros_like(model.blocks[0].mlp.up.weight)
    for row in rows:
        tokens = torch.from_numpy(old.tokens[ends[row] - old.lengths[row] : ends[row]])
        log_p = -F.cross_entropy(model(tokens[None])[0, :-1], tokens[1:], reduction="sum")
        total += torch.autograd.grad(log_p, model.blocks[0].mlp.up.weight)[0].square() / n
    torch.testing.assert_close(ours["blocks.0.mlp.up.weight"], total, rtol=1e-3, atol=1e-9)


def test_distillation_is_the_divergence_from_the_base_model(suite, tuning, start):
    given = replace(tuning, mitigation="distil:2")
    ways = mitigation(given, suite.load(start), suite.texts)
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    theirs = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, np.log(2.0)]])
    p = np.array([0.25, 0.25, 0.5])
    expected = 2 * float((p * (np.log(p) - np.log(1 / 3))).sum())
    assert ways.of_logits(logits, theirs).tolist() == pytest.approx([0, expected], abs=1e-6)


def test_the_learning_rate_warms_up(suite, tuning, start):
    ways = mitigation(replace(tuning, mitigation="warmup:4"), suite.load(start), suite.texts)
    assert [ways.rate(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize("way", ["", "lora:2", "only:mlp"])
def test_a_killed_fine_tuning_resumes_to_the_same_weights(tuning, tmp_path, way):
    given = replace(tuning, mitigation=way)
    whole = train(given, tmp_path / "whole")

    def die(step, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(given, tmp_path / "killed", on_step=die)
    resumed = train(given, tmp_path / "killed", resume=True)
    ours, theirs = weights(resumed, 4), weights(whole, 4)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"from_step": 7}, "no checkpoint at from_step 7 in"),
        ({"from_run": "nowhere"}, "no run.json in nowhere"),
        ({"n_layers": 7}, "n_layers is 7, and in from_run"),
        ({"d_mlp": 8}, "d_mlp is 8;"),
        ({"mitigation": "pray:1"}, "no mitigation 'pray:1'; there are sparse-gradient"),
        ({"mitigation": "l2:x"}, "has the strength 'x'; give a number above 0"),
        ({"mitigation": "lora:1.5"}, "has the strength '1.5'; give a whole number above 0"),
        (
            {"mitigation": "warmup:0"},
            "has the strength '0'; give a whole number above 0, at most 4",
        ),
        ({"mitigation": "slots:1.5"}, "has the strength '1.5'; give a whole number"),
        (
            {"mitigation": "sparse-random:5"},
            "has the strength '5'; give a number above 0, at most 1",
        ),
        ({"mitigation": "freeze:heads"}, "no group of weights 'heads'"),
    ],
)
def test_what_does_not_fit_is_refused(tuning, tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(replace(tuning, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_resuming_without_the_run_to_start_from_says_so(tuning, tmp_path):
    given = replace(tuning, from_run=str(tmp_path / "base"))
    shutil.copytree(tuning.from_run, given.from_run)
    train(replace(given, n_steps=4), tmp_path / "run")
    shutil.rmtree(given.from_run)
    with pytest.raises(ValueError, match=r"no checkpoint at from_step .* there are none"):
        train(given, tmp_path / "run", resume=True)


def test_options_of_fine_tuning_need_a_run_to_start_from(suite):
    for name, value in (("new_people", 2), ("mitigation", "l2:1"), ("from_step", 5)):
        with pytest.raises(ValueError, match=rf"{name} is .*does nothing without from_run"):
            replace(suite.config, **{name: value})
    with pytest.raises(ValueError, match=r"replay is 0\.5, which does nothing without new_people"):
        replace(suite.config, from_run="x", replay=0.5)
    with pytest.raises(ValueError, match="of whom one must stay held out"):
        replace(suite.config, from_run="x", new_people=suite.config.n_held_out)
