"""Studies of training runs: names, tables, and each of them run at its smallest size."""

import json
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses import interp_analyse as cli
from analyses.attention_patching import reference_patterns as attention_patching
from analyses.attention_patching.reference_patterns import FEW, FROZEN, REFERENCES
from analyses.beside_paper import across_seeds
from analyses.curriculum import CurriculumConfig
from analyses.curriculum import warm_up as curriculum
from analyses.distributions import sampling as distributions
from analyses.options import BASES, StudyConfig
from analyses.paper import panel
from analyses.phases import PhasesConfig
from analyses.phases import training_phases as phases
from analyses.registry import registered
from analyses.scaling import plateau_length as scaling
from analyses.studies import (
    average_metrics,
    curves,
    holm_in_words,
    in_words,
    name_of,
    outcomes,
    paired,
    trained,
    variants,
)
from analyses.study_page import save
from interp.config import preset
from interp.data.batches import training_batch
from interp.report.page import anchor
from interp.statistics import holm
from interp.suite import Suite, load_suite
from interp.training.loop import train
from interp.training.run_folder import read_config

SMOKE = replace(BASES["smoke"], device="cpu")
STUDIES = {name: analysis for name, analysis in registered().items() if analysis.study}
KEPT = Path(__file__).parents[1] / "analyses" / "results" / "laptop"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


def smoke(out):
    return StudyConfig(preset="smoke", out=str(out), workers=1, device="cpu")


def ask(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["interp-analyse", *map(str, words)])
    cli.analyse()


N_TABLES = {
    "phases": 3,
    "scaling": 4,
    "distributions": 4,
    "curriculum": 4,
    "attention-patching": 3,
    "templates": 2,
    "finetuning": 7,
    "hallucination": 12,  # no confident falsehoods: three tables of causes are empty
    "mitigation": 10,
}
FEWER = {"mitigation": ["--method", "plain", "replay", "distil", "unknown-people"]}
"""Of a study that takes long even at its smallest size."""
DRAWS = {
    "analyses.hallucination.departures.N_RESAMPLES": 20,
    "analyses.hallucination.reliability.N_RESAMPLES": 5,
    "analyses.hallucination.detection.N_SHUFFLES": 2,
    "analyses.hallucination.causes.N_FACTS": 24,
    "analyses.finetuning.roles_kept.N_FACTS": 48,
}
"""As few resamples, shuffles and facts as show that a study runs; the tests of each module see that
what comes of them is right.
"""


@pytest.mark.parametrize(("name", "n_tables"), N_TABLES.items())
def test_each_study_runs_and_a_second_time_trains_nothing(out, capsys, monkeypatch, name, n_tables):
    words = [name, "--preset", "smoke", "--out", out, "--workers", "1", *FEWER.get(name, [])]
    for constant, n in DRAWS.items():
        monkeypatch.setattr(constant, n)
    ask(monkeypatch, *words)
    first = capsys.readouterr().out
    prefix = name.replace("-", "_")
    tables = {path.name: path.read_bytes() for path in out.glob(f"{prefix}*.csv")}
    assert len(tables) == n_tables and all(len(x.splitlines()) > 1 for x in tables.values())
    page = (out / f"{name}.html").read_text()
    assert f"interp-analyse {name} --preset smoke" in page and page.count("plotly-graph-div") >= 1
    monkeypatch.setattr("interp.training.run_many.train", None)  # would fail if called
    ask(monkeypatch, *words)
    assert capsys.readouterr().out == first
    assert {path.name: path.read_bytes() for path in out.glob(f"{prefix}*.csv")} == tables


def test_phases_reads_runs_there_are(run, tmp_path, capsys, monkeypatch):
    ask(monkeypatch, "phases", "--ckpt", run, "--out", tmp_path)
    assert "the plateau had not ended by step 30" in capsys.readouterr().out
    attention = pd.read_csv(tmp_path / "phases_attention.csv")
    assert sorted(set(attention.step)) == [0, 10, 20, 30] and set(attention.layer) == {0, 1, 2}
    assert not (tmp_path / "runs").exists()


def test_phases_of_unlike_runs_are_not_averaged(run, config, tmp_path):
    other = train(replace(config, n_steps=10, learning_rate=1e-3), tmp_path / "other")
    with pytest.raises(ValueError, match=r"other has n_steps 10, .* 30; give runs"):
        phases.study(PhasesConfig(ckpt=(str(run), str(other))), on_step=None)


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run without its weights, and a way to change its metrics."""
    ignore = shutil.ignore_patterns("step-*", "resume", "results")
    folder = shutil.copytree(run, tmp_path / "copied", ignore=ignore)
    path = folder / "metrics.parquet"

    def change(edit):
        edit(pd.read_parquet(path)).to_parquet(path, index=False)
        return folder

    return change


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.drop(columns="loss"), "it has no column 'loss'"),
        (lambda t: t[t.split == "train"], "rows at 4 of train people and 0 of held-out people"),
        (lambda t: t[(t.split == "train") | (t.step != 10)], "4 of train people and 3 of held-out"),
        (lambda t: t[:0], "rows at 0 of train people"),
        (lambda t: pd.concat([t, t[t.step == 20]]), "step 20, train, .* is there twice"),
        (lambda t: t.assign(split=t.split.replace("train", "dev")), "has the split 'dev'"),
        (
            lambda t: t.assign(loss=t.loss.where(t.step < 20, np.nan)),
            "copied diverged: its loss on .* people is nan at step 20, .*; delete that folder",
        ),
    ],
)
def test_metrics_that_are_not_whole_are_refused_by_name(copied, edit, message):
    with pytest.raises(ValueError, match=message) as error:
        average_metrics(copied(edit))
    assert "\n" not in str(error.value)


def test_metrics_in_another_order_are_the_same_metrics(run, copied):
    shuffled = copied(lambda table: table.sample(frac=1, random_state=0))
    columns = ["step", "split"]
    found, expected = (average_metrics(x).sort_values(columns) for x in (shuffled, run))
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected.reset_index(drop=True))


def test_a_run_is_not_averaged_with_itself(run):
    for other in (run, f"{run}/", f"{run.parent}/./{run.name}"):
        config = PhasesConfig(ckpt=(str(run), str(other)))
        with pytest.raises(ValueError, match="are runs of seed 0; give runs that differ in the"):
            phases.study(config, on_step=None)


def test_runs_evaluated_at_other_steps_are_not_averaged(run, copied):
    def fewer(table):
        return table[table.step < 30]

    folder = copied(fewer)
    record = json.loads((folder / "run.json").read_text().replace('"seed": 0', '"seed": 1'))
    del record["digests"]  # of the configuration as it was
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"has metrics at step 30, .*copied has not; train it to"):
        phases._check_steps(
            curves(
                {"a": run, "copied": folder},
                {"a": read_config(run), "copied": read_config(folder)},
            )
        )


def test_the_interval_of_an_end_is_that_of_the_losses_of_the_checkpoints_near_it(
    run, tmp_path, monkeypatch
):
    metrics = load_suite(run).metrics.query("split == 'train' and attribute == 'average'")
    loss = metrics.set_index("step").loss
    baseline = float(loss[10] + loss[20]) / 2 / 0.995
    monkeypatch.setattr(Suite, "no_knowledge_baseline", baseline)
    low, high = phases.interval(run, 20.0, "cpu")
    assert 10 <= low <= 20 <= high <= 30
    monkeypatch.setattr(Suite, "no_knowledge_baseline", 100.0)
    assert phases.interval(run, 20.0, "cpu") == (10.0, 10.0)  # from half of 20 on, all are below
    monkeypatch.setattr(Suite, "no_knowledge_baseline", 1.0)
    assert np.isnan(phases.interval(run, 20.0, "cpu")).all()  # nobody is, up to twice 20
    monkeypatch.setattr(Suite, "no_knowledge_baseline", 100.0)
    gone = tmp_path / "fewer"
    shutil.copytree(run, gone, ignore=shutil.ignore_patterns("step-000020"))
    assert np.isnan(phases.interval(gone, 20.0, "cpu")).all()


def test_studies_of_a_size_share_the_base_run_whichever_comes_first(tmp_path):
    config = smoke(tmp_path)
    runs = variants(config.base, [{}, {"seed": 1}, {"n_people": 12}])
    folders = trained(config, runs)
    kept = {name: len(list(folder.glob("step-*"))) for name, folder in folders.items()}
    assert kept == {"base": 4, "seed-1": 4, "n_people-12": 1}
    trained(config, runs, keep_all=False)
    with pytest.raises(ValueError, match="n_people-12 has ended but lacks the checkpoint"):
        trained(config, runs, keep_all=True)


def test_bad_input_is_said_in_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, said in {
        ("scaling", "--workers", "0"): "workers is 0; it must be at least 1",
        ("phases", "--ckpt", tmp_path): f"no run.json in {tmp_path}; give run folders",
        ("curriculum", "--people", "1"): "people is 1; warm-ups need at least 32",
    }.items():
        with pytest.raises(SystemExit) as end:
            ask(monkeypatch, *words)
        assert end.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith("interp-analyse: error: ") and said in message
        assert len(message.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_runs_are_named_after_what_they_vary_and_not_after_the_machine():
    assert name_of(SMOKE, replace(SMOKE, device="cuda", precision="bf16")) == "base"
    changed = replace(SMOKE, n_people=48, power_law=0.8, schedule=("5:1,0",))
    assert name_of(SMOKE, changed) == "n_people-48_power_law-0.8_schedule-5x1-0"
    assert list(variants(SMOKE, [{}, {"seed": 1}, {}])) == ["base", "seed-1"]
    long = [f"5:{','.join(map(str, weights))}" for weights in np.eye(24, dtype=int)]
    names = {name_of(SMOKE, replace(SMOKE, schedule=tuple(long[i:]))) for i in range(3)}
    assert len(names) == 3 and max(map(len, names)) < 200


def test_no_two_runs_of_a_study_share_a_name():
    base = preset("paper")
    changes = [
        *({"n_people": n, "seed": s} for n in scaling.SIZES["paper"] for s in range(5)),
        *scaling.other_settings(base),
        *({"power_law": a} for a in distributions.ALPHAS["paper"] if a),
    ]
    assert len(variants(base, changes)) == len(changes)


def test_references_are_checkpoints_of_the_base_run():
    for size, base in BASES.items():
        steps = {*REFERENCES[size], *FROZEN[size], *FEW[size]}
        assert steps <= set(base.checkpoint_steps), size
        assert {*FROZEN[size], *FEW[size]} < set(REFERENCES[size]), size  # so can be compared


def test_what_is_frozen_is_the_references_attention_from_its_step_on(out):
    attention_patching.study(smoke(out), on_step=lambda *_: None)
    patched = [read_config(folder) for folder in (out / "runs").glob("reference-*")]
    assert {(run.reference_step, run.start_step) for run in patched} == {
        *((step, 0) for step in REFERENCES["smoke"]), *((step, step) for step in FROZEN["smoke"])
    }  # fmt: skip
    assert all(read_config(Path(run.reference)).seed == run.seed for run in patched)


def test_other_batch_sizes_see_as_many_biographies_at_as_many_checkpoints():
    base = BASES["laptop"]
    for change in scaling.other_settings(base)[:2]:
        other = replace(base, **change)
        assert other.batch_size * other.n_steps == base.batch_size * base.n_steps
        seen = [step * other.batch_size for step in other.checkpoint_steps]
        assert seen == [step * base.batch_size for step in base.checkpoint_steps]


@pytest.fixture
def hand_made():
    """Two runs of 10 people and a batch of 5, baseline 2; the second never leaves its plateau."""
    steps = [0, 10, 20, 30]
    table = {"known": [9.0, 2.05, 2.0, 1.0], "stuck": [9.0, 2.05, 2.0, 2.0]}
    rows = [
        {
            "run": run, "n_people": 10, "seed": 0, "step": step, "split": split,
            "biographies_a_person": step / 2, "loss": loss + (split == "held-out"),
            "accuracy": 0.5, "max_probability": 0.5, "entropy": 1.0, "training_loss": 1.0,
            "baseline": 2.0,
        }
        for run, losses in table.items()
        for step, loss in zip(steps, losses)
        for split in ("train", "held-out")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_an_outcome_is_read_off_the_people_trained_on(hand_made):
    found = outcomes(hand_made).set_index("run")
    known, stuck = found.loc["known"], found.loc["stuck"]
    assert (known.plateau_start, known.plateau_end, known.resolution) == (10, 30, 10)
    assert known.plateau_end_biographies_a_person == 15
    assert (known.loss, known.n_steps) == (1.0, 30)
    assert known.plateau_crossing == pytest.approx(20.1)
    assert known.knowledge_start == 10 and known.held_out_loss == 2.0
    assert np.isnan(known.held_out_rises_from)  # it falls to the end, as made up here
    assert np.isnan([stuck.plateau_end, stuck.resolution]).all()


def test_curves_say_what_varies(out):
    runs = variants(SMOKE, [{}, {"seed": 1}, {"n_train_templates": 1}])
    folders = trained(smoke(out), runs)
    found = curves(folders, runs)
    assert {"n_people", "seed", "n_train_templates"} < set(found.columns)
    assert not {"batch_size", "n_steps", "schedule"} & set(found.columns)
    last = found[(found.run == "base") & (found.step == 12)].iloc[0]
    assert last.biographies_a_person == 12 * 4 / 24
    stored = load_suite(folders["base"]).metrics.query("step == 12 and attribute == 'average'")
    assert last.loss == stored[stored.split == "train"].loss.item()


def test_seeds_are_averaged_with_students_interval():
    table = pd.DataFrame({"of": ["a"] * 3, "at": 1, "value": [1.0, 2.0, 6.0]})
    row = across_seeds(table, series="of", x="at", y="value").iloc[0]
    assert (row.y, row.n) == (3.0, 3)
    assert row.margin == pytest.approx(4.30265 * 7**0.5 / 3**0.5, rel=1e-4)


def test_a_gain_is_positive_where_the_warm_up_is_better():
    fresh = pd.DataFrame({
        "seed": [1, 1, 2, 2], "warmup_people": [0, 5, 0, 5], "loss": [3.0, 2.0, 4.0, 2.0],
        "accuracy": [0.1, 0.4, 0.2, 0.3], "plateau_end": [100.0, 120.0, 100.0, 140.0],
    })  # fmt: skip
    won = curriculum.gain(fresh).set_index("measure")
    assert won.gain.to_dict() == pytest.approx({"loss": 1.5, "accuracy": 0.2, "plateau_end": -30})
    assert won.gain_margin["loss"] == pytest.approx(12.7062 * 0.5, rel=1e-4)
    assert won.uniform["loss"] == 3.5 and won.warm_up["loss"] == 2.0


def test_differences_are_between_runs_of_the_same_seed():
    """Seeds lie 2 nats apart; the difference between references is 0.5 in one, 0.7 in the other."""
    columns = ["kind", "reference_step", "seed", "loss"]
    rows = [
        ("from the start", 0, 0, 1.0), ("from the start", 0, 1, 3.0),
        ("from the start", 4, 1, 3.7), ("from the start", 4, 0, 1.5),
        ("few people", 4, 0, 1.0), ("few people", 4, 1, 3.0),
        ("frozen", 4, 1, 3.9), ("frozen", 4, 0, 1.9),
        ("none", 0, 0, 1.0), ("none", 0, 1, 2.6),
    ]  # fmt: skip
    found = attention_patching.differences(pd.DataFrame(rows, columns=columns))
    pairs = dict(zip(zip(found.one, found.other), found.difference))
    assert pairs == pytest.approx({
        ("from the start, reference step 4", "from the start, reference step 0"): 0.6,
        ("few people, reference step 4", "from the start, reference step 4"): -0.6,
        ("frozen, reference step 4", "from the start, reference step 4"): 0.3,
        ("frozen, reference step 4", "no patching"): 1.1,
    })  # fmt: skip
    first = found.iloc[found.one.str.startswith("from").argmax()]
    assert first.margin == pytest.approx(12.7062 * 0.1, rel=1e-4)  # t of one degree of freedom
    assert first.p == pytest.approx(2 / np.pi * np.arctan(1 / 6), rel=1e-6)  # Cauchy, t = 6
    assert (found.p_holm >= found.p).all() and (found.p_holm > found.p).any()


def test_runs_of_other_seeds_are_no_pairs():
    ones = pd.DataFrame({"seed": [0, 1], "loss": [1.0, 2.0]})
    assert paired(ones, ones[::-1], "loss").eval("one - other").tolist() == [0, 0]
    twice = pd.concat([ones, ones])
    for one, other in ((ones, ones.assign(seed=[1, 2])), (ones, ones[:1]), (twice, twice)):
        with pytest.raises(ValueError, match="can't be paired"):
            paired(one, other, "loss")


def test_skew_is_compared_with_uniform_sampling_of_as_many_people_and_steps():
    columns = [*distributions.FIELDS, "loss"]
    rows = [
        (8, 9, 0.0, 0, 1.0, 0, 3.0), (8, 9, 0.0, 0, 1.0, 1, 5.0),
        (8, 9, 1.0, 0, 1.0, 0, 2.5), (8, 9, 1.0, 0, 1.0, 1, 4.0),
        (8, 9, 0.0, 2, 4.0, 0, 3.5), (8, 9, 0.0, 2, 4.0, 1, 5.0),
        (8, 4, 0.0, 0, 1.0, 0, 7.0), (8, 4, 0.0, 0, 1.0, 1, 7.0),
        (8, 4, 1.0, 0, 1.0, 0, 8.5), (8, 4, 1.0, 0, 1.0, 1, 7.5),
    ]  # fmt: skip
    ends = pd.DataFrame(rows, columns=columns)
    found = distributions.differences(ends.assign(accuracy=1 - ends.loss / 10))
    at = found.set_index(["measure", "n_steps", "power_law", "celebrities"]).difference
    assert at["accuracy"].to_dict() == pytest.approx((-at["loss"] / 10).to_dict())
    assert at["loss"].to_dict() == {(4, 1.0, 0): 1.0, (9, 0.0, 2): 0.25, (9, 1.0, 0): -0.75}
    np.testing.assert_array_equal(found.p_holm, holm(found.p.to_numpy()))
    assert holm_in_words(found).endswith(
        "0 of 6 have p < 0.05 after Holm's correction, the least is 1.000"
    )
    assert holm_in_words(found.assign(p_holm=np.nan)) is None  # one seed


@pytest.mark.parametrize("path", sorted(KEPT.glob("*_differences.csv")), ids=lambda x: x.stem)
def test_the_kept_p_values_are_adjusted_for_their_number(path):
    table = pd.read_csv(path)
    each = path.stem.startswith("mitigation")  # there every measure is a question of its own
    for _, of in table.groupby("measure") if each else [("", table)]:
        np.testing.assert_allclose(of.p_holm, holm(of.p.to_numpy()), rtol=1e-5)


def test_outcomes_in_words_tell_seeds_apart():
    runs = pd.DataFrame({
        "plateau_end": [380.0, np.nan], "loss": [1.0, 1.2], "accuracy": [0.5, 0.7]
    })  # fmt: skip
    assert in_words(runs) == (
        "plateau ends at 380 (not left by 1 of 2); final loss 1.10 ± 1.27, accuracy 0.600 ± 1.271"
    )
    assert in_words(runs[:1]) == "plateau ends at 380; final loss 1.00, accuracy 0.500"
    assert in_words(runs[1:]) == "plateau not left; final loss 1.20, accuracy 0.700"


def test_a_skew_whose_plateau_not_all_seeds_left_is_no_point_of_the_figure(out):
    config = smoke(out)
    tables = distributions.study(config, on_step=lambda *_: None).tables
    ends = tables["distributions"].assign(plateau_end=8.0)
    ends.loc[(ends.power_law == 1) & (ends.seed == 1) & (ends.n_steps == 12), "plateau_end"] = None
    figure = distributions.figures(tables | {"distributions": ends}, config.base)
    lines = {line.name: line for line in figure["Plateau and skew"].data if line.name}
    assert {name: list(lines[name].x) for name in ("24", "24, 6 steps")} == {
        "24": [0.0], "24, 6 steps": [0.0, 1.0]
    }  # fmt: skip


def test_a_size_of_which_a_run_has_not_ended_is_no_point_of_the_power_law():
    ends = pd.DataFrame({
        "n_people": [5, 10, 20, 40, 80, 80], "seed": [0, 0, 0, 0, 0, 1],
        "plateau_end": [50.0, 100.0, 200.0, 400.0, 500.0, np.nan],
    })  # fmt: skip
    ends = ends.assign(**{name: ends.plateau_end for name in scaling.MEASURES})
    laws = scaling.fits(ends).set_index(["measure", "whose"])
    ours = laws.loc[("plateau_end", "here")]
    assert (ours.exponent, ours.factor, ours.n) == pytest.approx((1, 10, 4))
    assert ours.exponent_without_smallest == pytest.approx(1)
    assert laws.loc[("plateau_end", "paper")].n == 7


@pytest.mark.parametrize(
    "change", [{"power_law": 1.0}, {"celebrities": 4, "celebrity_weight": 4.0}]
)
def test_accuracy_by_frequency_covers_everybody_and_says_how_often_they_were_met(out, change):
    runs = variants(SMOKE, [change])
    (config,), (folder,) = runs.values(), trained(smoke(out), runs).values()
    found = distributions.by_frequency(folder, config)
    assert found.n.sum() == config.n_people
    assert (found.biographies_a_person.diff().dropna() < 0).all()
    total = (found.biographies_a_person * found.n).sum()
    assert total == pytest.approx(config.n_steps * config.batch_size)
    if "celebrities" in change:  # 4 of 24 people, 4 times as often: 4/36 of 48 biographies each
        assert found.biographies_a_person.tolist() == pytest.approx([48 / 9, 48 / 36])
        assert found.n.tolist() == [4, 20]
    texts = load_suite(folder).texts
    drawn = np.concatenate([training_batch(texts, config, s).people for s in range(12)])
    assert (drawn < 4).mean() > 4 / 24  # who is called frequent, was


def test_a_budget_of_ones_own_is_what_the_warm_up_is_sought_for():
    config = CurriculumConfig(preset="laptop", people=500, steps=900)
    assert (config.base.n_people, config.base.n_steps) == (500, 900)
    assert CurriculumConfig().base.n_people == 2 * BASES["laptop"].n_people
    assert StudyConfig(device="cpu").base.device == "cpu"


def test_the_page_escapes_what_it_is_told(tmp_path):
    from analyses.studies import Study

    evil = Study({"<i>": pd.DataFrame({"run": ["a"]})}, {}, "<b>bold</b>")
    page = save(evil, "x", tmp_path, "a <script>").read_text()
    assert "&lt;b&gt;bold" in page and "a &lt;script&gt;" in page
    assert "href='&lt;i&gt;.csv'" in page and "<i>" not in page.split("</script>")[-1]


DRAWN = {
    ("phases", "Loss"): ("held out", 1000, "phases_curves", "split == 'held-out'", "loss"),
    ("phases", "Accuracy"): ("trained on", 1000, "phases_curves", "split == 'train'", "accuracy"),
    ("phases", "Confidence"): (
        "held out", 1000, "phases_curves", "split == 'held-out'", "max_probability"
    ),
    ("phases", "Attention"): (
        "value → names,<br>last layer", 1000, "phases_attention", "layer == 1", "attribute_to_name"
    ),
    ("scaling", "Plateau and population"): (
        "here, points", 1280, "scaling", "n_people == 1280", "plateau_end"
    ),
    ("scaling", "Loss and population"): (
        "640", 1000, "scaling_curves", "n_people == 640 and split == 'train'", "loss"
    ),
    ("distributions", "Plateau and skew"): (
        "1280", 0.8, "distributions", "n_people == 1280 and power_law == 0.8", "plateau_end"
    ),
    ("distributions", "Final loss and skew"): (
        "640, 1000 steps", 0.4, "distributions",
        "n_people == 640 and n_steps == 1000 and power_law == 0.4", "loss"
    ),
    ("distributions", "Curves and skew"): (
        "0.8", 1000, "distributions_curves",
        "n_people == 640 and n_steps == 2000 and power_law == 0.8", "loss"
    ),
    ("distributions", "Curves and celebrities"): (
        "8", 1000, "distributions_curves", "celebrity_weight == 8", "loss"
    ),
    ("distributions", "Accuracy by frequency"): (
        "0.4", None, "distributions_by_frequency",
        "n_people == 640 and n_steps == 2000 and power_law == 0.4 and bin == 4", "accuracy"
    ),
    ("curriculum", "Loss over training"): (
        "80", 1000, "curriculum_curves", "warmup_people == 80 and warmup_steps == 500", "loss"
    ),
    ("curriculum", "The grid"): (
        None, None, "curriculum", "warmup_people == 160 and warmup_steps == 500", "loss"
    ),
    ("attention-patching", "Training by a reference's attention"): (
        "120", 1000, "attention_patching_curves",
        "kind == 'from the start' and reference_step == 120 and split == 'train'", "loss"
    ),
    ("attention-patching", "Final loss by reference"): (
        "few people", 240, "attention_patching",
        "kind == 'few people' and reference_step == 240", "loss"
    ),
    ("templates", "Templates"): (
        "2, shuffled", 1000, "templates_curves",
        "n_train_templates == 2 and shuffled and split == 'train'", "loss"
    ),
    ("hallucination", "Loss"): (
        "held out", 1000, "hallucination", "`set` == 'held out'", "loss"
    ),
    ("hallucination", "What is said of unknown people"): (
        "nearest", 1000, "hallucination_answers",
        "`set` == 'held out' and among == '1 nearest, 2 shared' and kind == 'nearest'", "share"
    ),
    ("hallucination", "Known or never seen: detectors over training"): (
        "maximum probability", None, "hallucination_detection",
        "detector == 'maximum probability' and step == 4000", "auroc"
    ),
    ("hallucination", "Causes: what carries a confident falsehood"): (
        None, None, "hallucination_cause_maps",
        "pairs == 'falsehood' and site == 'mlp_out' and layer == 0 and role == 'name_middle' and "
        "direction == 'denoising' and step == 4000", "share"
    ),
    ("finetuning", "Which weights bring old knowledge back"): (
        None, None, "finetuning_transplants",
        "model == 'restored' and `set` == 'old' and group == 'L0' and step == 20", "share"
    ),
    ("finetuning", "A new attribute"): (
        "20 new people", 100, "finetuning",
        "kind == 'new people' and share == 0.125 and split == 'train'", "accuracy"
    ),
    ("mitigation", "Old and new accuracy"): (
        "ewc", 0.5, "mitigation_frontiers", "method == 'ewc' and new == 0.5", "old"
    ),
}  # fmt: skip
"""A point of each figure: its line and x (the last where None), and which mean of a table it is."""


IN_PART = {"finetuning", "hallucination", "mitigation"}
"""Studies of whose figures some are shown, in a document of their own."""


@pytest.mark.parametrize("name", STUDIES)
def test_the_kept_results_are_what_this_code_draws_and_shown_in_the_findings(name):
    stem = name.replace("-", "_")
    tables = {path.stem: pd.read_csv(path) for path in KEPT.glob(f"{stem}*.csv")}
    base = STUDIES[name].config(preset="laptop").base
    drawn = import_module(STUDIES[name].study).figures(tables, base)
    pictured = {heading for study, heading in DRAWN if study == name}
    assert pictured and (pictured <= set(drawn) if name in IN_PART else pictured == set(drawn))
    docs = KEPT.parents[2] / "docs"
    document = docs / ("hallucination-and-finetuning.md" if name in IN_PART else "findings.md")
    for heading in pictured:
        figure = drawn[heading]
        line, at, table, query, column = DRAWN[name, heading]
        rows = tables[table].query(query)
        rows = rows[rows.step == at] if "step" in rows and at is not None else rows
        assert rows[column].mean() in drawn_at(figure, line, at)
        picture = f"{name}-{anchor(heading)}.png"
        assert (KEPT / picture).is_file() and f"results/laptop/{picture}" in document.read_text()
    assert json.loads((KEPT / f"{name}.json").read_text())["command"] == f"interp-analyse {name}"


def drawn_at(figure, line, at):
    """The mean of our ``line`` at x, or all values of a heat map."""
    if line is None:
        return [pytest.approx(z) for z in figure.data[0].z.ravel()]
    (trace,) = (x for x in figure.data if x.name == line and x.xaxis in (None, "x"))
    y = np.asarray(trace.y)[slice(-1, None) if at is None else np.asarray(trace.x) == at]
    return [pytest.approx(y.mean())]


def test_the_papers_points_can_be_had_by_panel():
    assert panel("2", "right").y.tolist() == [375, 600, 1110, 2090, 3085, 6030, 10855]
    with pytest.raises(ValueError, match="no panel 'up' in figure 2"):
        panel("2", "up")
