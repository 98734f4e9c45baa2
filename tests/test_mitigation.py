"""The study of mitigations: areas and measures by hand, runs shared with the study of new people,
what abstaining counts, and some of its methods at the smallest size.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses import interp_analyse as cli
from analyses.finetuned_runs import base_of, base_runs, fine_tunings
from analyses.finetuning import new_people
from analyses.mitigation import METHODS, MitigationConfig, abstaining, frontier, unknown_people
from analyses.mitigation.methods import ways_of
from analyses.mitigation.mitigation_said import forgetting_said
from analyses.options import StudyConfig
from interp.data.batches import people_of
from interp.model.decoder import HookedDecoder
from interp.statistics import holm
from interp.training.finetune import RATE, finetune_config
from interp.training.mitigation import NOTHING, mitigation

NEW, OLD = np.array([0.2, 0.5, 0.5, 1.0, 0.8]), np.array([1.0, 0.9, 0.7, 0.4, 0.3])


def test_the_area_under_a_frontier_by_hand():
    """0.2 at 1, 0.3 at 0.9, 0.5 at 0.4: (0.8, 0.3) is dominated by (1, 0.4)."""
    assert frontier.area(NEW, OLD) == pytest.approx(0.2 + 0.3 * 0.9 + 0.5 * 0.4, abs=1e-12)
    at = np.array([0.0, 0.2, 0.21, 0.5, 0.51, 1.0])
    assert frontier.best_old(NEW, OLD, at).tolist() == [1.0, 1.0, 0.9, 0.9, 0.4, 0.4]
    assert frontier.best_old(NEW[:2], OLD[:2], np.array([0.5, 0.6])).tolist() == [0.9, 0.0]


def test_the_area_is_the_mean_of_the_frontier_over_new_accuracies():
    rng = np.random.default_rng(0)
    middles = (np.arange(20_000) + 0.5) / 20_000
    for n in (1, 2, 7, 30):
        new, old = rng.integers(0, 21, n) / 20, rng.random(n)
        naive = [max((o for x, o in zip(new, old) if x >= at), default=0.0) for at in middles]
        assert frontier.area(new, old) == pytest.approx(np.mean(naive), abs=1e-9)
        mean = frontier.best_old(new, old, middles).mean()
        assert mean == pytest.approx(np.mean(naive), abs=1e-12)


def test_points_can_only_add_to_the_area_and_dominated_ones_add_nothing():
    rng = np.random.default_rng(1)
    new, old = rng.random(20), rng.random(20)
    areas = [frontier.area(new[:n], old[:n]) for n in range(1, 21)]
    assert (np.diff(areas) > -1e-12).all() and 0 < areas[-1] <= 1  # rounding of sums of 20 numbers
    again = frontier.area(np.append(NEW, 0.49), np.append(OLD, 0.89))
    assert again == pytest.approx(frontier.area(NEW, OLD), abs=1e-12)
    assert frontier.area(np.array([1.0]), np.array([1.0])) == 1
    assert frontier.area(np.array([0.0]), np.array([1.0])) == 0


@pytest.fixture
def points():
    """Two methods and two seeds; the second method's seed 1 never knows the new people."""
    rows = [
        ("plain", "-", 0, [(0, 1.0, 0.0), (5, 0.6, 0.96), (10, 0.3, 1.0)]),
        ("plain", "-", 1, [(0, 1.0, 0.0), (5, 0.5, 0.5), (10, 0.4, 1.0)]),
        ("l2", "1", 0, [(0, 1.0, 0.0), (5, 0.9, 0.4), (10, 0.8, 0.97)]),
        ("l2", "9", 0, [(0, 1.0, 0.0), (5, 1.0, 0.1), (10, 0.95, 0.2)]),
        ("l2", "1", 1, [(0, 1.0, 0.0), (5, 0.9, 0.4), (10, 0.8, 0.9)]),
        ("l2", "9", 1, [(0, 1.0, 0.0), (5, 1.0, 0.1), (10, 1.0, 0.2)]),
    ]
    columns = ["method", "strength", "seed", "step", "old", "new"]
    return pd.DataFrame(
        [(m, s, seed, *at) for m, s, seed, run in rows for at in run], columns=columns
    )


def test_measures_of_runs_and_of_methods_by_hand(points):
    found = frontier.measures(points[::-1]).set_index(["method", "strength", "seed"])
    plain, l2 = found.loc[("plain", "-", 0)], found.loc[("l2", "1", 1)]
    assert (plain.known_step, plain.old_when_known, plain.final_old, plain.final_new) == (
        5, 0.6, 0.3, 1.0
    )  # fmt: skip
    assert plain.area == pytest.approx(0.96 * 0.6 + 0.04 * 0.3)
    assert np.isnan([l2.known_step, l2.old_when_known, l2.old_where_known]).all()
    whole = found.xs("all", level="strength")
    assert whole.loc[("l2", 0)].area == pytest.approx(0.1 * 1 + 0.1 * 0.95 + 0.2 * 0.9 + 0.57 * 0.8)
    assert whole.loc[("l2", 0)].old_where_known == 0.8 and whole.area.notna().all()
    assert whole.known_step.isna().all()  # of no single run


def test_differences_are_paired_by_seed_and_adjusted_for_their_number(points):
    measured = frontier.measures(points)
    found = frontier.differences(measured)
    areas = measured[measured.strength == "all"].pivot(index="seed", columns="method",
                                                       values="area")  # fmt: skip
    (row,) = found[found.measure == "area"].itertuples()
    assert (row.method, row.other, row.n_seeds) == ("l2", "plain", 2)
    assert row.difference == pytest.approx((areas.l2 - areas.plain).mean())
    lost = found[found.measure == "old_where_known"].iloc[0]
    assert (lost.n_seeds, lost.n_without) == (1, 1) and lost.difference == pytest.approx(0.2)
    both = pd.concat([points, points[points.method == "l2"].assign(method="replay")])
    table = frontier.differences(frontier.measures(both)).query("measure == 'area'")
    pairs = list(zip(table.method, table.other))
    assert pairs == [("l2", "plain"), ("replay", "plain"), ("plain", "replay"), ("l2", "replay")]
    np.testing.assert_array_equal(table.p_holm, holm(table.p.to_numpy()))
    same = table[(table.method == "l2") & (table.other == "replay")].iloc[0]
    assert same.difference == 0  # the control: a method beside itself


def test_what_is_said_names_the_best_method_and_the_seeds_that_fail(points):
    measured = frontier.measures(points)
    costs = pd.DataFrame({"method": ["l2", "l2", "plain"], "strength": ["1", "9", "-"],
                          "trained_parameters": 7, "besides": "a copy"})  # fmt: skip
    lines = forgetting_said({
        "mitigation_measures": measured, "mitigation_costs": costs,
        "mitigation_differences": frontier.differences(measured),
    })  # fmt: skip
    assert lines[0] == "the best frontier on average is that of l2"
    assert "new accuracy never reaches 0.95 at any strength: l2 (1 of 2 seeds)" in lines
    assert "l2 9 trains 7 numbers and needs besides: a copy" in lines
    plain = next(line for line in lines if line.startswith("plain: when"))
    assert "is first 0.95 or more, at step 8 ± 32, old accuracy is 0.500 ± 1.271" in plain


def test_runs_that_the_study_of_new_people_has_too_are_the_same():
    config = StudyConfig(preset="laptop", device="cpu")
    folders = {name: Path("runs") / name for name in base_runs(config)}
    base = base_of(config)
    ours, about = fine_tunings(
        config, folders,
        [way for m in METHODS for way in ways_of(m, "laptop", base.n_layers).values()],
    )  # fmt: skip
    theirs, _ = fine_tunings(config, folders, new_people._ways("laptop", base))
    both = ours.keys() & theirs.keys()
    words = ["new-0.125", "replay-0.03125", "replay-0.125", "replay-0.5", "freeze-attention",
             "freeze-mlp", "freeze-L0+L1"]  # fmt: skip
    assert both == {f"finetuned_seed-{seed}_{word}" for seed in range(3) for word in words}
    assert all(ours[name] == theirs[name] for name in both)
    budgets = {(run.n_steps, run.batch_size, run.new_people, run.learning_rate)
               for run in ours.values()}  # fmt: skip
    assert budgets == {(500, 16, 20, RATE * base.learning_rate)}
    assert {x["seed"] for x in about.values()} == {0, 1, 2}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_way_to_fine_tune(suite, method):
    for way in ways_of(method, "smoke", suite.config.n_layers).values():
        given = finetune_config(
            suite.config, suite.path, suite.steps[-1], new_people=2, n_steps=10,
            mitigation=way["mitigation"], replay=way["replay"],
        )  # fmt: skip
        shape = replace(suite.shape, d_mlp=given.d_mlp)
        ways = mitigation(given, HookedDecoder(shape), suite.texts)
        assert (ways is NOTHING) == (method in ("plain", "replay"))


def table_of(scores, right, known):
    """Two attributes a person, persons in a row."""
    rows = pd.DataFrame({"max_probability": scores, "right": right, "known": known})
    at = np.arange(len(rows))
    return rows.assign(
        person=at // 2, attribute=at % 2, negative_entropy=-rows.max_probability
    )  # fmt: skip


def test_abstaining_by_hand():
    """Falling scores: right, right, wrong (held out), right, wrong. Risk: 0, 0, 1/3, 1/4, …"""
    table = table_of(
        [0.9, 0.8, 0.6, 0.1, 0.7, 0.5, 0.3, 0.2],
        [True, True, True, False, False, False, False, False],
        [True] * 4 + [False] * 4,
    )
    found = abstaining.abstaining(table, n_resamples=40, seed=0).set_index(["detector", "measure"])
    ours = found.loc["max_probability"].value
    assert ours.known_coverage == 0.5  # 2 of 4 values of known people at a risk of 0
    assert ours.auroc == pytest.approx((4 + 4 + 3 + 0) / 16)
    risks = [0, 0, 1 / 3, 1 / 4, 2 / 5, 3 / 6, 4 / 7, 5 / 8]
    assert ours.aurc == pytest.approx(np.mean(risks))
    upside_down = found.loc["negative_entropy"].value
    assert upside_down.auroc == pytest.approx(1 - ours.auroc)
    assert upside_down.known_coverage == 0  # its first answer is wrong
    assert ((found.low <= found.value) & (found.value <= found.high)).all()
    risk = abstaining.risk_curves(table).query("detector == 'max_probability'")
    at = dict(zip(risk.coverage, risk.risk))
    assert [at[x] for x in (0.12, 0.13, 0.25, 0.26, 0.37, 0.38, 1.0)] == pytest.approx(
        [0, 0, 0, 1 / 3, 1 / 3, 1 / 4, 5 / 8]
    )


def test_a_score_that_says_nothing_tells_nobody_apart():
    table = table_of([0.5] * 8, [True, True, False, False] * 2, [True] * 4 + [False] * 4)
    found = (
        abstaining.abstaining(table, n_resamples=40, seed=0)
        .set_index(["detector", "measure"])
        .loc["max_probability"]
    )
    assert found.value.to_dict() == {"auroc": 0.5, "aurc": 0.5, "known_coverage": 0.0}


def test_answers_are_of_as_many_known_as_held_out_people_whom_no_run_trains_on(suite, model):
    given = replace(suite.config, unknown_people=8, unknown_share=0.5)
    table = abstaining.answers(model, suite.texts, given)
    first, n = people_of(given, "held-out")
    assert set(table[~table.known].person) == set(range(first, first + n)) and n == 12
    assert table[table.known].person.nunique() == n and len(table) == 2 * n * 6
    assert (table[table.known].person < suite.config.n_people).all()
    assert table.max_probability.between(0, 1).all() and (table.negative_entropy <= 0).all()


def test_shares_of_unknown_people_are_compared_with_the_same_training_without():
    rows = [(training, share, seed) for training in ("from the start", "fine-tuning")
            for share in (0.0, 0.25) for seed in (0, 1)]  # fmt: skip
    measured = pd.DataFrame(rows, columns=["training", "share", "seed"])
    value = measured.seed + 10 * measured.share + 3 * (measured.training == "fine-tuning")
    measured = measured.assign(**{name: value for name in unknown_people.MEASURES})
    found = unknown_people.differences(measured)
    assert found.difference.tolist() == pytest.approx([2.5] * len(found))
    assert found.groupby("measure").size()["learned_step"] == 1  # those tuned know them before


def test_a_method_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no method 'pray'; there are plain, replay"):
        MitigationConfig(method=("plain", "pray"))
    with pytest.raises(ValueError, match="method is empty; name some of plain"):
        MitigationConfig(method=())


def test_some_methods_alone_run_and_train_nothing_twice(tmp_path, capsys, monkeypatch):
    words = ["--preset", "smoke", "--out", str(tmp_path), "--workers", "1", "--device", "cpu"]

    def ask(*methods):
        monkeypatch.setattr(
            sys, "argv", ["interp-analyse", "mitigation", *words, "--method", *methods]
        )
        cli.analyse()
        return capsys.readouterr().out

    said = ask("plain", "lora")
    assert "area under the frontier: " in said and "area beside plain: lora" in said
    assert "beside replay" not in said and "unknown" not in said
    costs = pd.read_csv(tmp_path / "mitigation_costs.csv").set_index("method").trained_parameters
    ours = base_of(MitigationConfig(preset="smoke"))
    shapes = [(3 * ours.d_model, ours.d_model), (ours.d_model,) * 2,
              (ours.d_mlp, ours.d_model), (ours.d_model, ours.d_mlp)]  # fmt: skip
    assert costs["lora"] == 2 * ours.n_layers * sum(a + b for a, b in shapes) < costs["plain"]
    monkeypatch.setattr("interp.training.run_many.train", None)  # would fail if called
    assert ask("plain", "lora") == said
