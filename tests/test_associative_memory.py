"""The toy associative memory: training beside a plain torch model, measures beside loops."""

import json
import sys
from dataclasses import replace
from math import exp, log
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from analyses import interp_analyse as cli
from analyses.associative_memory import AssociativeMemoryConfig
from analyses.associative_memory.forgetting import (
    CHOICES,
    SIZES,
    Size,
    by_cosine,
    fine_tuned,
    pretrained,
    study,
    transplanted,
)
from analyses.associative_memory.memory_figures import figures
from analyses.associative_memory.memory_page import heads, rows, said
from analyses.associative_memory.toy_memory import (
    FINE_TUNING,
    PRETRAINING,
    Choice,
    Mixture,
    Pairs,
    Shape,
    cosine_rates,
    draw_batch,
    draw_pairs,
    initial_weights,
    logits,
    measure,
    training,
)

ROOT = Path(__file__).parents[1]
SMALL = Shape(d_model=8, d_mlp=12, n_values=5)
MEASURES = ["old_accuracy", "old_loss", "new_accuracy", "new_loss"]


def small(seeds=(0, 1, 2), n_pairs=40, choice=Choice()):  # noqa: B008
    return initial_weights(seeds, SMALL, choice), draw_pairs(seeds, n_pairs, SMALL, choice)


def last(steps):
    *_, (step, weights, _) = steps
    return step, {name: part.detach().clone() for name, part in weights.items()}


def test_the_defaults_are_the_papers_sizes():
    size = SIZES["paper"]
    assert size.shape == Shape(d_model=64, d_mlp=256, n_values=30)
    assert (size.n_old, size.pretraining_steps, size.fine_tuning_steps) == (8192, 16_000, 4000)
    assert (size.pretraining_rate, size.fine_tuning_rate) == (0.03, 0.001)
    assert [(of.n_new, of.replay_weight) for of in size.mixtures] == [
        (32, 0), (64, 0), (128, 0), (256, 0), (512, 0), (1024, 0),
        (128, 2), (128, 0.5), (128, 0.125), (128, 1 / 32), (128, 1 / 128), (128, 1 / 512),
    ]  # fmt: skip
    assert {0, 1, 2, 5, 10, 20, 31, 62, 248, 250, 375, 3875, 4000} <= set(size.evaluated)
    assert set(size.looked_into) < set(size.evaluated) and max(size.evaluated) == 4000


@pytest.mark.parametrize(
    ("mixture", "share"),
    [
        (Mixture(8192, 128, 1 / 512), 1 / 9),  # 16 of 16 + 128
        (Mixture(8192, 128, 1 / 64), 1 / 2),
        (Mixture(8192, 128, 2), 128 / 129),
        (Mixture(8192, 128, 0), 0),
        (Mixture(8192, 0, 1), 1),
    ],
)
def test_the_share_of_old_pairs_in_a_batch_is_that_of_their_weight(mixture, share):
    assert mixture.share_of_old == pytest.approx(share, rel=1e-12)
    drawn = draw_batch(np.random.default_rng(0), mixture, 20_000)
    assert (drawn < 8192).mean() == pytest.approx(share, abs=4 * 0.5 / 20_000**0.5)
    assert drawn.min() >= (0 if share else 8192) and drawn.max() < 8192 + max(mixture.n_new, 0)


def test_every_pair_of_a_kind_is_drawn_equally_often():
    drawn = draw_batch(np.random.default_rng(1), Mixture(6, 3, 1.0), 90_000)
    counts = np.bincount(drawn, minlength=9)
    assert len(counts) == 9
    np.testing.assert_allclose(counts, 10_000, atol=5 * 10_000**0.5)  # five standard deviations


def test_keys_and_values_lie_on_the_sphere_and_values_are_uniform():
    pairs = draw_pairs([3, 4], 3000, SMALL, Choice(logit_scale=8.0))
    torch.testing.assert_close(pairs.keys.norm(dim=-1), torch.ones(2, 3000).double())
    torch.testing.assert_close(pairs.embeddings.norm(dim=-1), torch.full((2, 5), 8.0).double())
    for values in pairs.values:
        assert np.bincount(values).tolist() == pytest.approx([600] * 5, abs=5 * 600**0.5)
    alone = draw_pairs([4], 3000, SMALL, Choice(logit_scale=8.0))
    assert all(torch.equal(one[0], both[1]) for one, both in zip(alone, pairs))
    assert not torch.equal(pairs.keys[0], pairs.keys[1])


def test_initial_weights_are_as_described():
    shape = Shape(d_model=64, d_mlp=256, n_values=30)
    uniform = initial_weights([0], shape, Choice())
    for name, inputs in {"W_in": 64, "b_in": 64, "W_out": 256, "b_out": 256}.items():
        bound = inputs**-0.5
        assert 0.9 * bound < uniform[name].abs().max() <= bound
    normal = initial_weights([0], shape, Choice(initial="he-normal"))
    assert float(normal["W_in"].std()) == pytest.approx((2 / 64) ** 0.5, rel=0.03)
    assert float(normal["W_out"].std()) == pytest.approx((2 / 256) ** 0.5, rel=0.03)
    assert not normal["b_in"].any() and not normal["b_out"].any()
    assert set(initial_weights([0], shape, Choice(biases=False))) == {"W_in", "W_out"}


def test_logits_of_a_memory_of_one_unit_by_hand():
    weights = {
        "W_in": torch.tensor([[[2.0], [-1.0]]]),
        "b_in": torch.tensor([[0.5]]),
        "W_out": torch.tensor([[[3.0, -2.0]]]),
        "b_out": torch.tensor([[1.0, 0.0]]),
    }
    keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # unit: relu(2.5) and relu(-0.5)
    embeddings = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 2.0]]])
    expected = torch.tensor([[[8.5, -5.0, -1.5], [1.0, 0.0, 1.0]]])
    assert torch.equal(logits(weights, keys, embeddings), expected)
    del weights["b_in"], weights["b_out"]
    without = torch.tensor([[[6.0, -4.0, -2.0], [0.0, 0.0, 0.0]]])
    assert torch.equal(logits(weights, keys, embeddings), without)


def test_accuracy_and_loss_are_those_of_a_plain_loop():
    weights, pairs = small()
    mixtures = [Mixture(30, 10, 0.0), Mixture(25, 4, 1.0), Mixture(40, 0, 1.0)]
    for model, (found, of) in enumerate(zip(measure(weights, pairs, mixtures), mixtures)):
        one = {name: part[model].numpy() for name, part in weights.items()}
        right, losses = [], []
        for key, value in zip(pairs.keys[model].numpy(), pairs.values[model].tolist()):
            hidden = np.maximum(key @ one["W_in"] + one["b_in"], 0)
            scores = pairs.embeddings[model].numpy() @ (hidden @ one["W_out"] + one["b_out"])
            right.append(max(range(5), key=lambda v: scores[v]) == value)
            losses.append(log(sum(exp(score) for score in scores)) - scores[value])
        old, new = slice(of.n_old), slice(of.n_old, of.n_old + of.n_new)
        assert found["old_accuracy"] == np.mean(right[old])
        assert found["old_loss"] == pytest.approx(np.mean(losses[old]), rel=1e-12)  # float64
        if of.n_new:
            assert found["new_accuracy"] == np.mean(right[new])
            assert found["new_loss"] == pytest.approx(np.mean(losses[new]), rel=1e-12)
        else:
            assert np.isnan(found["new_accuracy"]) and np.isnan(found["new_loss"])


@pytest.mark.parametrize("biases", [True, False])
def test_models_trained_together_are_each_what_a_plain_torch_model_learns_alone(biases):
    seeds, rates = [5, 6, 6], cosine_rates(0.03, 25)
    weights, pairs = small(seeds, choice=Choice(biases=biases))
    mixtures = [Mixture(30, 0, 1.0), Mixture(30, 10, 0.0), Mixture(30, 5, 1 / 4)]
    how = {"seeds": seeds, "stage": FINE_TUNING, "learning_rates": rates, "batch_size": 16}
    before = {name: part.clone() for name, part in weights.items()}
    step, together = last(training(weights, pairs, mixtures, **how))
    assert step == 25 and all(torch.equal(weights[name], before[name]) for name in weights)
    for model, (seed, mixture) in enumerate(zip(seeds, mixtures)):
        alone = nn.Sequential(nn.Linear(8, 12, biases), nn.ReLU(), nn.Linear(12, 8, biases))
        alone = alone.double()
        with torch.no_grad():
            for layer, name in ((alone[0], "in"), (alone[2], "out")):
                layer.weight.copy_(weights[f"W_{name}"][model].T)
                if biases:
                    layer.bias.copy_(weights[f"b_{name}"][model])
        optimizer = torch.optim.AdamW(alone.parameters(), lr=0.03, weight_decay=0.01)
        rng = np.random.default_rng([seed, FINE_TUNING])
        for at, _ in enumerate(rates):
            optimizer.param_groups[0]["lr"] = 0.03 * (1 + np.cos(np.pi * at / 25)) / 2
            drawn = draw_batch(rng, mixture, 16)
            scores = alone(pairs.keys[model, drawn]) @ pairs.embeddings[model].T
            optimizer.zero_grad()
            nn.functional.cross_entropy(scores, pairs.values[model, drawn]).backward()
            optimizer.step()
        # float64: sums in another order differ by 1e-16, which Adam's division by the square root
        # of small gradients and 25 steps amplify
        torch.testing.assert_close(together["W_in"][model].T, alone[0].weight, rtol=0, atol=1e-9)
        torch.testing.assert_close(together["W_out"][model].T, alone[2].weight, rtol=0, atol=1e-9)
        if biases:
            torch.testing.assert_close(together["b_in"][model], alone[0].bias, rtol=0, atol=1e-9)


def test_the_cosine_falls_from_the_peak_to_nearly_0():
    assert cosine_rates(0.03, 4) == pytest.approx([0.03, 0.0256066, 0.015, 0.0043934], rel=1e-5)


def test_training_without_a_learning_rate_changes_nothing():
    weights, pairs = small()
    how = {"seeds": [0, 1, 2], "stage": FINE_TUNING, "learning_rates": [0.0] * 5}
    _, after = last(training(weights, pairs, [Mixture(30, 10, 0.5)] * 3, **how))
    assert all(torch.equal(after[name], weights[name]) for name in weights)


@pytest.fixture(scope="module")
def memory():
    """A small memory of two seeds that knows its 64 old pairs."""
    return pretrained(SIZES["smoke"], [0, 1], Choice(), lambda n: None)


def test_only_new_pairs_harm_old_ones_and_replay_protects_them(memory):
    """The control: as many steps on old pairs alone."""
    mixtures = [Mixture(64, 0, 1.0), Mixture(64, 8, 0.0), Mixture(64, 8, 1.0)]
    size = replace(SIZES["smoke"], fine_tuning_rate=0.01, fine_tuning_steps=60, evaluated=(0, 60))
    tables = fine_tuned(size, *memory[:2], mixtures, [0, 1], lambda n: None, {})
    table = tables["associative_memory"]
    means = table.groupby(["step", "n_new", "replay_weight"])[MEASURES].mean()
    before, control, harmed, protected = (
        means.loc[at] for at in ((0, 0, 1.0), (60, 0, 1.0), (60, 8, 0.0), (60, 8, 1.0))
    )
    assert before.old_accuracy == control.old_accuracy == 1
    assert control.old_loss < 2 * before.old_loss
    assert harmed.new_accuracy == 1 and harmed.old_accuracy < 0.8
    assert protected.old_accuracy > 0.95


def test_a_transplant_of_the_only_layer_that_changed_is_the_fine_tuned_memory():
    start, pairs = small()
    mixtures = [Mixture(30, 10, 0.0)] * 3
    tuned = start | {"W_in": start["W_in"] * torch.tensor([1.1, 1.5, 3.0])[:, None, None]}
    first = transplanted(start, tuned, "first", pairs, mixtures)
    second = transplanted(start, tuned, "second", pairs, mixtures)
    expected = zip(measure(tuned, pairs, mixtures), measure(start, pairs, mixtures))
    for one, other, (changed, unchanged) in zip(first, second, expected):
        assert changed != unchanged
        assert {name: one[name] for name in MEASURES} == changed
        assert {name: other[name] for name in MEASURES} == unchanged
        assert other["relative_change"] == 0


def test_how_far_a_layer_moved_and_how_many_units_by_hand():
    start = {
        "W_in": torch.zeros(1, 2, 10).double(),
        "b_in": torch.full((1, 10), 2.0).double(),  # norm √40
        "W_out": torch.ones(1, 10, 2).double(),
        "b_out": torch.zeros(1, 2).double(),
    }
    tuned = {name: part.clone() for name, part in start.items()}
    tuned["W_in"][0, 1, 7] = 3.0
    tuned["W_in"][0, 0, 2] = 1.0  # squared change by unit: 9 and 1
    tuned["W_out"][0, 4] += torch.tensor([1.0, 2.0])
    tuned["W_out"][0, 5] += torch.tensor([2.0, 0.0])  # 5 and 4
    pairs = Pairs(
        torch.ones(1, 3, 2).double(), torch.zeros(1, 3).long(), torch.eye(2)[None].double()
    )
    for layer, moved, share in (("first", 0.5, 0.9), ("second", (9 / 20) ** 0.5, 5 / 9)):
        (row,) = transplanted(start, tuned, layer, pairs, [Mixture(2, 1, 0.0)])
        assert row["relative_change"] == pytest.approx(moved, rel=1e-12)
        assert row["share_of_top_units"] == pytest.approx(share, rel=1e-12)


def test_old_pairs_are_binned_by_the_nearest_new_key():
    """Ten old keys at 0, 10, ..., 90 degrees, new ones at 0 and 180; the memory always says 0."""
    angles = torch.tensor([40, 0, 70, 20, 90, 60, 10, 80, 30, 50, 0, 180]).double().deg2rad()
    keys = torch.stack((angles.cos(), angles.sin()), -1)[None]
    values = (angles[None] > 0.6).long()  # right up to 30 degrees
    pairs = Pairs(keys, values, torch.eye(2)[None].double())
    weights = {
        "W_in": torch.zeros(1, 2, 1), "b_in": torch.zeros(1, 1),
        "W_out": torch.zeros(1, 1, 2), "b_out": torch.tensor([[1.0, 0.0]]),
    }  # fmt: skip
    weights = {name: part.double() for name, part in weights.items()}
    rows = by_cosine(weights, pairs, Mixture(10, 2, 0.0), 0)
    assert [row["old_accuracy"] for row in rows] == [0, 0, 0, 1, 1]
    assert [row["n"] for row in rows] == [2] * 5
    expected = [
        np.cos(np.deg2rad(at)).mean() for at in ([90, 80], [70, 60], [50, 40], [30, 20], [10, 0])
    ]
    assert [row["largest_cosine"] for row in rows] == pytest.approx(expected, rel=1e-12)
    assert rows[-1]["old_loss"] == pytest.approx(log(1 + exp(-1)), rel=1e-12)


def test_training_goes_on_with_the_moments_given():
    """Two steps and then three are five; without the moments they are not."""
    weights, pairs = small([0])
    weights = {name: torch.cat((part, 2 * part)) for name, part in weights.items()}
    pairs = pairs.of(torch.tensor([0, 0]))
    mixtures, rngs = [Mixture(30, 10, 1.0)] * 2, {"seeds": [0, 0], "stage": FINE_TUNING}
    everything = range(40)

    def train(weights, n_steps, moments=None):
        steps = training(
            weights, pairs, mixtures, **rngs, learning_rates=[0.03] * n_steps, moments=moments
        )
        *_, (_, weights, moments) = steps
        return {name: part.detach() for name, part in weights.items()}, moments

    with pytest.MonkeyPatch.context() as patch:  # the same batch at each step
        drawn = "analyses.associative_memory.toy_memory.draw_batch"
        patch.setattr(drawn, lambda *_: np.array(everything))
        whole, _ = train(weights, 5)
        half, moments = train(weights, 2)
        kept = {name: {key: x.clone() for key, x in part.items()} for name, part in moments.items()}
        joined, _ = train(half, 3, moments)
        afresh, _ = train(half, 3)
    assert all(torch.equal(joined[name], whole[name]) for name in whole)
    assert all((afresh[name] - whole[name]).abs().max() > 1e-3 for name in whole)
    for name, part in kept.items():
        assert all(torch.equal(moments[name][key], x) for key, x in part.items())


def test_a_new_seed_draws_other_batches_and_a_seed_the_same(memory):
    weights, pairs, _ = memory
    how = {"stage": PRETRAINING, "learning_rates": [0.01] * 3}
    runs = [
        last(training(weights, pairs, [Mixture(64, 8, 1.0)] * 2, seeds=seeds, **how))[1]["W_in"]
        for seeds in ([0, 1], [0, 1], [0, 2])
    ]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0][0], runs[2][0]) and not torch.equal(runs[0][1], runs[2][1])


def ask(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["interp-analyse", "associative-memory", *map(str, words)])
    cli.analyse()


def test_the_command_writes_tables_and_a_page_and_gives_the_same_again(
    tmp_path, monkeypatch, capsys
):
    found, threads = [], []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    for out in (tmp_path / "one", tmp_path / "other"):
        monkeypatch.setattr(torch, "set_num_threads", threads.append)
        torch.manual_seed(len(found))  # the caller's random stream is neither used nor moved
        state = torch.get_rng_state()
        ask(monkeypatch, "--preset", "smoke", "--seeds", 2, "--out", out)
        assert torch.equal(torch.get_rng_state(), state)
        assert "smoke: too small to show anything" in capsys.readouterr().out
        found.append({path.name: path.read_bytes() for path in out.glob("*.csv")})
    assert threads == [1, 7, 1, 7]  # set back
    assert found[0] == found[1] and len(found[0]) == 4
    table = pd.read_csv(tmp_path / "one" / "associative_memory.csv")
    assert list(table) == ["n_new", "replay_weight", "step", *MEASURES, "seed"]
    assert len(table) == 4 * 4 * 2 and not table.isna().any(axis=None)
    assert not table.duplicated(["n_new", "replay_weight", "step", "seed"]).any()
    choices = pd.read_csv(tmp_path / "one" / "associative_memory_choices.csv")
    chosen, kept = (choices[choices.choice == x] for x in ("as chosen", "moments kept"))
    differs = chosen[MEASURES].to_numpy() != kept[MEASURES].to_numpy()
    assert not differs[chosen.step == 0].any() and differs[chosen.step == 20].any()
    page = (tmp_path / "one" / "associative-memory.html").read_text()
    assert page.count('class="plotly-graph-div"') == 5 and "n = 2 seeds" in page
    made = json.loads((tmp_path / "one" / "associative-memory.json").read_text())
    assert made["command"].startswith("interp-analyse associative-memory --preset smoke")
    assert not list(tmp_path.rglob("*.tmp"))


def test_progress_ends_at_its_total():
    size, told = SIZES["smoke"], []

    study(size, [0], told.append)
    assert sum(told) == size.model_steps(1)


KEPT = ROOT / "analyses" / "results"


@pytest.fixture(scope="module")
def kept():
    paths = sorted(KEPT.glob("associative_memory*.csv"))
    return {path.stem: pd.read_csv(path) for path in paths}


def test_the_kept_tables_are_whole(kept):
    size = Size()
    n_seeds = AssociativeMemoryConfig().seeds
    table = kept["associative_memory"]
    assert list(table) == ["n_new", "replay_weight", "step", *MEASURES, "seed"]
    assert len(table) == len(size.mixtures) * len(size.evaluated) * n_seeds
    assert not table.duplicated(["n_new", "replay_weight", "step", "seed"]).any()
    assert np.isfinite(table).all(axis=None)
    assert set(kept["associative_memory_choices"].choice) == set(CHOICES)
    made = json.loads((KEPT / "associative-memory.json").read_text())
    assert made["command"] == "interp-analyse associative-memory"


def test_the_page_on_fine_tuning_quotes_what_the_kept_tables_say(kept):
    text = (ROOT / "docs" / "hallucination-and-finetuning.md").read_text()
    for line in said(kept, Size()):
        assert f"{line}\n" in text
    for cells in (heads(Size()), *rows(kept["associative_memory"], Size())):
        assert f"\n| {' | '.join(cells)} |\n" in text


def test_lines_of_the_loss_figure_are_means_of_the_kept_table(kept):
    figure = figures(kept, Size())["Old and new loss"]
    (line,) = [x for x in figure.data if x.name == "w = 1/8" and x.showlegend]
    of = kept["associative_memory"].query("n_new == 128 and replay_weight == 0.125 and step == 500")
    (at,) = np.flatnonzero(np.asarray(line.customdata) == 500)
    assert (line.x[at], line.y[at]) == pytest.approx((of.old_loss.mean(), of.new_loss.mean()))
