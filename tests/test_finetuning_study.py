"""The study of fine-tuning: whom and what a run is fine-tuned on, shares by hand, roles on planted
tables.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analyses.finetuning import known_people, new_attribute, roles_kept
from analyses.finetuning.known_people import CELEBRITIES, OTHERS
from analyses.finetuning.roles_kept import OTHER, SAME, kept, named_groups
from analyses.finetuning.weight_shares import _share_of, transplants_of_run
from analyses.options import StudyConfig
from interp.config import ATTRIBUTES, train_config
from interp.data.batches import evaluation_set, training_batch
from interp.suite import load_suite
from interp.training.evaluation import AVERAGE
from interp.training.finetune import finetune_config
from interp.training.loop import train

MAJOR = ATTRIBUTES.index("major")


def test_a_run_tells_of_the_attributes_asked_for_and_of_no_other(suite):
    fewer = replace(suite.config, attributes=("major", "company"))
    told = {-1, MAJOR, ATTRIBUTES.index("company")}
    for batch in (
        training_batch(suite.texts, fewer, 3),
        evaluation_set(suite.texts, fewer, "train"),
    ):
        assert set(batch.attributes.tolist()) == told
        rows = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
        for row in range(len(batch.lengths)):
            assert set(batch.attributes[rows == row].tolist()) == told
    whole = evaluation_set(suite.texts, suite.config, "train")
    assert set(whole.attributes.tolist()) == {-1, *range(len(ATTRIBUTES))}


def test_sentences_of_fewer_attributes_are_those_of_the_whole_biography(suite):
    one = evaluation_set(suite.texts, replace(suite.config, attributes=("major",)), "train")
    whole = evaluation_set(suite.texts, suite.config, "train")

    def sentence(biographies, row):
        first = biographies.lengths[:row].sum()
        at = slice(first, first + biographies.lengths[row])
        return biographies.tokens[at][biographies.attributes[at] == MAJOR].tolist()

    assert all(sentence(one, row) == sentence(whole, row) for row in range(len(one.lengths)))


@pytest.mark.parametrize("attributes", [(), ("major", "major"), ("hobby",)])
def test_attributes_must_be_some_of_the_six_each_once(suite, attributes):
    with pytest.raises(ValueError, match=r"attributes is .*; name some of birth_date.*, each once"):
        replace(suite.config, attributes=attributes)


def test_a_run_recorded_before_the_field_existed_tells_of_all(suite):
    recorded = {k: v for k, v in suite.run["config"].items() if k != "attributes"}
    assert train_config(recorded).attributes == ATTRIBUTES


def test_metrics_and_baseline_are_of_the_attributes_told_of(suite, tmp_path):
    told = ("major", "university")
    config = replace(suite.config, attributes=told, n_steps=1, dense_until=0, checkpoint_every=1)
    run = load_suite(train(config, tmp_path / "run"))
    assert set(run.metrics.attribute) == {*told, AVERAGE}
    of_each = run.run["no_knowledge_baseline"]
    expected = (of_each["major"] + of_each["university"]) / 2
    assert run.no_knowledge_baseline == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("group", [CELEBRITIES, OTHERS])
def test_fine_tuning_on_known_people_meets_one_group_only(suite, group):
    base = replace(suite.config, celebrities=5, celebrity_weight=8.0)  # 1/8 of 40
    config = finetune_config(
        base, suite.path, suite.steps[-1], new_people=0, n_steps=10,
        schedule=(known_people._only(group, "smoke", 10),),
    )  # fmt: skip
    people = np.concatenate([training_batch(suite.texts, config, i).people for i in range(10)])
    assert set(people < config.celebrities) == {group == CELEBRITIES}


def test_the_schedule_has_as_many_groups_as_celebrities_fit_in_all_people():
    assert known_people._only(CELEBRITIES, "laptop", 500) == "500:1" + ",0" * 15
    assert known_people._only(OTHERS, "laptop", 500) == "500:0" + ",1" * 15
    base = known_people.base_of_known(StudyConfig(preset="laptop"))
    assert base.celebrities * 16 == base.n_people


def test_a_share_is_of_the_difference_between_the_two_models():
    before, after = np.array([1.0, 1.0, 1.0, 0.8]), np.array([0.2, 0.4, 0.0, 0.6])
    whole = {"before": before, "after": after}
    mixed = np.array([0.6, 0.7, 0.5, 0.7])  # half of the way for everybody
    for model in ("restored", "damaged"):
        found = _share_of(mixed, model, "mlp", whole)
        assert found["share"] == pytest.approx(0.5)
        assert found["share_low"] == pytest.approx(0.5) == found["share_high"]
    quarter = after + (before - after) / 4
    assert _share_of(quarter, "restored", "mlp", whole)["share"] == pytest.approx(0.25)
    assert _share_of(quarter, "damaged", "mlp", whole)["share"] == pytest.approx(0.75)
    assert np.isnan(_share_of(mixed, "restored", "", whole)["share"])
    assert np.isnan(_share_of(mixed, "restored", "mlp", {"before": after, "after": after})["share"])


def test_all_weights_from_before_bring_everything_back_and_no_change_brings_nothing(
    suite, tmp_path
):
    config = finetune_config(
        suite.config, suite.path, suite.steps[-1], new_people=3, n_steps=6, dense_every=6,
        dense_until=6, precision="fp32", learning_rate=0.01, final_learning_rate=0.01,
    )  # fmt: skip
    run = train(config, tmp_path / "run")
    table = transplants_of_run(run, (6,), {"everything": "all"})
    old = table[(table.set == "old") & (table.model == "restored")]
    before, after = (
        table[(table.set == "old") & (table.model == name)].accuracy.item()
        for name in ("before", "after")
    )
    assert after < before  # otherwise the test shows nothing
    everything = old[old.group == "everything"].iloc[0]
    assert everything.accuracy == before and everything.share == 1.0
    assert everything.n_weights == sum(x.numel() for x in suite.load(0).parameters())
    assert old[old.group == "norms"].weights.item() == "norms"
    parts = old.set_index("group").n_weights
    assert parts["attention"] + parts["mlp"] + parts["embed+unembed"] + parts["norms"] == (
        everything.n_weights
    )


def roles(shares, named, step=0, sample=SAME, seed=0):
    components = ["L0H0", "L0H1", "L1 MLP", "L1H0"]
    return pd.DataFrame({
        "seed": seed, "step": step, "sample": sample, "component": components,
        "mechanism": "extraction", "place": "final", "share": shares, "low": 0.0, "high": 1.0,
        "named": named, "gap": 5.0,
    })  # fmt: skip


def test_roles_that_stay_are_kept_and_roles_that_move_are_not():
    before = roles([0.0, 0.1, 0.9, 0.2], [False, False, True, False])
    moved = roles([0.9, 0.1, 0.0, 0.2], [True, False, False, False], step=50)
    other = roles([0.0, 0.1, 0.9, 0.2], [False, False, True, False], sample=OTHER)
    found = kept(pd.concat([before, moved, other])).set_index(["step", "sample"])
    for at in ((0, SAME), (0, OTHER)):
        assert found.correlation[at] == pytest.approx(1) and found.distance[at] == 0
        assert found.n_still[at] == found.n_named[at] == found.n_same_leader[at] == 1
    assert found.correlation[50, SAME] < 0
    # two of four shares change by 0.9: √(2 · 0.81 ÷ 4)
    assert found.distance[50, SAME] == pytest.approx(0.9 / 2**0.5)
    assert found.n_still[50, SAME] == found.n_same_leader[50, SAME] == 0
    assert found.n_added[50, SAME] == 1


def test_named_components_are_transplanted_beside_as_many_that_are_needed_least():
    groups = named_groups(roles([0.0, 0.1, 0.9, 0.2], [False, False, True, False]))
    assert groups == {"extraction": "L1-MLP", "as many, least needed for extraction": "L0H0"}
    nobody = roles([0.0, 0.1, 0.9, 0.2], [False] * 4)
    assert named_groups(nobody) == {}


def test_old_facts_are_those_of_all_people_and_new_ones_of_people_told():
    rows = [("old", "told", 0.6, 30), ("old", "not told", 1.0, 10),
            ("new", "told", 0.5, 30), ("new", "not told", 0.1, 10),
            ("old in six", "told", 0.0, 30)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["facts", "people", "accuracy", "n"])
    found = new_attribute.against_new(table.assign(told="alone", seed=0, step=5))
    assert len(found) == 1
    assert found.old.item() == pytest.approx(0.7)  # (0.6 · 30 + 1 · 10) ÷ 40
    assert found.new.item() == 0.5


def test_roles_are_asked_of_old_people_and_again_on_other_facts(suite):
    table = roles_kept.roles_of_run(suite.path, (0, suite.steps[-1]))
    assert set(zip(table.step, table["sample"])) == {
        (0, SAME), (suite.steps[-1], SAME), (0, OTHER),
    }  # fmt: skip
    cfg = suite.config
    assert table.component.nunique() == cfg.n_layers * (cfg.n_heads + 1)
