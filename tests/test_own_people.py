"""Runs that are trained on the CSVs of a user's own people: what the files may hold, and that a run
of them is trained, resumed, opened, patched, localized and fine-tuned like any other.
"""

import json
import re
import shutil
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from builders import words

import interp
from analyses.interp_analyse import analyse
from interp.cli import interp_patch, interp_train
from interp.config import PRESETS
from interp.data.batches import training_batch
from interp.data.own_people import own_people, read_people, with_own_people
from interp.data.population import NAME_PARTS
from interp.data.template_sets import template_order
from interp.training.finetune import finetune_config

VALUES = {
    "capital": ["Paris", "Rome", "New Delhi", "Oslo", "Port Moresby", "Lima", "Bonn"],
    "sea": ["Baltic", "Black", "Red", "Coral", "North"],
}
NAMES = [
    *("France", "Italy", "India", "Norway", "Peru", "Chad", "Mali", "Fiji", "Cuba", "Laos"),
    *("South Korea", "North Korea", "Sri Lanka", "New Zealand", "Costa Rica", "El Salvador"),
    *("Papua New Guinea", "Old South Wales", "Great North Land", "Bosnia and Herzegovina"),
]
TEMPLATES = [
    *(("capital", "The capital of {name} is {value}."), ("capital", "{name} is run from {value}!")),
    *(("sea", "Ships of {name} sail the {value}."), ("sea", "{name}, by the sea of {value}.")),
    ("sea", "On {name}'s coast is the {value}"),
]
QUICK = {
    **{"n_steps": 4, "dense_every": 2, "dense_until": 2, "checkpoint_every": 2, "device": "cpu"},
    **{"n_layers": 2, "d_model": 32, "d_mlp": 64, "batch_size": 8, "precision": "fp32"},
}


def rows_of(names=NAMES):
    of = {
        key: [values[i % len(values)] for i in range(len(names))] for key, values in VALUES.items()
    }
    return pd.DataFrame({"name": names, **of})


def written(folder, people=None, templates=TEMPLATES):
    """The two files, from a table and pairs."""
    paths = folder / "people.csv", folder / "templates.csv"
    (rows_of() if people is None else people).to_csv(paths[0], index=False)
    columns = ["attribute", "template", "split"][: len(templates[0])]
    pd.DataFrame(templates, columns=columns).to_csv(paths[1], index=False)
    return paths


def configured(paths, **changes):
    config = with_own_people(PRESETS["tiny"], *paths)
    return replace(config, **(QUICK | changes))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return written(tmp_path_factory.mktemp("csv"))


@pytest.fixture(scope="module")
def trained(paths, tmp_path_factory):
    return interp.train(configured(paths), tmp_path_factory.mktemp("own") / "run")


@pytest.fixture(scope="module")
def own(trained):
    return interp.load_suite(trained)


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def test_a_name_is_cut_into_first_middle_and_last_words(paths):
    people = read_people(paths[0])
    parts = {last: (first, middle) for first, middle, last in people[list(NAME_PARTS)].to_numpy()}
    assert parts["France"] == ("", "") and parts["Lanka"] == ("Sri", "")
    assert parts["Herzegovina"] == ("Bosnia", "and") and parts["Land"] == ("Great", "North")
    assert people.columns.tolist() == ["id", "split", "first", "middle", "last", "capital", "sea"]
    assert people.id.tolist() == list(range(20))


def test_each_tenth_row_is_held_out_unless_the_file_says_who(paths, tmp_path):
    people = read_people(paths[0])
    assert people[people.split == "held-out"]["last"].tolist() == ["Laos", "Herzegovina"]
    few, _ = written(tmp_path, rows_of(NAMES[:7]))
    assert read_people(few).split.tolist() == ["train"] * 6 + ["held-out"]
    said = rows_of().assign(split=["held-out", *["train"] * 19])
    people = read_people(written(tmp_path, said)[0])
    assert people["last"].tolist()[-1] == "France" and (people.split == "train").sum() == 19


def test_names_may_stand_in_three_columns(tmp_path):
    table = rows_of(NAMES[-4:]).drop(columns="name")
    table.insert(0, "first_name", ["Ann", "Ann", "Bo", "Bo"])
    table.insert(1, "middle_name", ["van der", "", "X", "Y"])
    table.insert(2, "last_name", ["Berg", "Berg", "Li", "Li"])
    people = read_people(written(tmp_path, table)[0])
    assert people[["first", "middle", "last"]].to_numpy()[:2].tolist() == [
        ["Ann", "van der", "Berg"],
        ["Ann", "", "Berg"],
    ]


def test_a_biography_is_the_users_own_sentences_token_by_token(own):
    texts, config = own.texts, own.config
    people = own.population
    sentences = {}
    for attribute, text in TEMPLATES:
        sentences.setdefault(attribute, []).append(text)
    id_of, seen = own.tokenizer.get_vocab(), Counter()
    for step in range(3):
        batch = training_batch(texts, config, step)
        edges = np.cumsum(batch.lengths)
        for end, n, person in zip(edges, batch.lengths, batch.people):
            told = people.iloc[person]
            name = " ".join(filter(None, told[["first", "middle", "last"]]))
            possible = {
                tuple(id_of[word] for word in ["<bos>", *words(f"{one} {other}")]): (i, j)
                for i, a in enumerate(sentences["capital"])
                for j, b in enumerate(sentences["sea"])
                for x in [a.format(name=name, value=told.capital)]
                for y in [b.format(name=name, value=told.sea)]
                for one, other in ((x, y), (y, x))
            }
            found = tuple(batch.tokens[end - n : end].tolist())
            assert found in possible
            seen["capital", possible[found][0]] += 1
            seen["sea", possible[found][1]] += 1
    assert len(seen) == 5  # each template is somebody's training template


def test_evaluation_templates_are_never_trained_on(own, paths, tmp_path):
    order, texts = own.texts.template_order, own.texts
    assert order.shape[1:] == (2, 3)
    assert texts.n_train.tolist() == [1, 2] and texts.n_evaluation.tolist() == [1, 1]
    for row in order:
        assert sorted(row[0, [0, 2]]) == [0, 1] and row[0, 1] == -1
        assert sorted(row[1]) == [0, 1, 2]
    said = [(*pair, "evaluation" if "coast" in pair[1] or "run" in pair[1] else "train")
            for pair in reversed(TEMPLATES)]  # fmt: skip
    _, sets, _ = own_people(configured(written(tmp_path, templates=said)))
    assert sets["sea"].texts[-1].startswith("On {name}") and sets["sea"].n_evaluation == 1
    fixed = template_order(sets, 50, np.random.default_rng(0))
    assert (fixed[:, 0, 2] == 1).all() and (fixed[:, 1, 2] == 2).all()
    assert {tuple(row) for row in fixed[:, 1, :2]} == {(0, 1), (1, 0)}


def test_people_are_sampled_as_often_as_their_weights_say(tmp_path):
    table = rows_of(NAMES[:4]).assign(split=[*["train"] * 3, "held-out"])
    table["sampling_weight"] = ["1", "2", "5e0", "1"]
    paths = written(tmp_path, table)
    config = configured(paths, batch_size=4000)
    run = interp.train(configured(paths, n_steps=2), tmp_path / "run")
    suite = interp.load_suite(run)
    np.testing.assert_allclose(suite.population.sampling_weight, [1 / 8, 2 / 8, 5 / 8, 0])
    share = np.bincount(training_batch(suite.texts, config, 0).people, minlength=3) / 4000
    np.testing.assert_allclose(share, [1 / 8, 2 / 8, 5 / 8], atol=0.032)  # 4 standard errors


def test_the_no_knowledge_baseline_is_that_of_the_users_values(own):
    trained = own.population[own.population.split == "train"]
    for attribute in VALUES:
        share = np.array(list(Counter(trained[attribute]).values())) / len(trained)
        expected = -(share * np.log(share)).sum()
        assert own.run["no_knowledge_baseline"][attribute] == pytest.approx(expected)
    assert set(own.metrics.attribute) == {*VALUES, "average"}


def test_a_stopped_run_goes_on_without_the_csvs_to_the_same_weights(paths, trained, tmp_path):
    gone = written(tmp_path)
    config = configured(gone)

    def stop(step, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interp.train(config, tmp_path / "run", on_step=stop)
    for path in gone:
        path.unlink()
    interp.train(config, tmp_path / "run", resume=True)
    ends = [folder / "step-000004" / "model.safetensors" for folder in (trained, tmp_path / "run")]
    one, other = (interp.load_suite(x.parent).load(4).state_dict() for x in ends)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("which", [0, 1])
def test_a_csv_that_has_changed_is_refused_on_resume_and_in_fine_tuning(tmp_path, which):
    files = written(tmp_path)
    config = configured(files)
    run = interp.train(config, tmp_path / "run")
    tuning = finetune_config(config, run, 4, new_people=1, n_steps=2)
    files[which].write_text(
        files[which].read_text().replace("Ships", "Boats").replace("Peru", "Per")
    )
    message = f"{files[which].name} has changed since .*run was begun with it; put the earlier one"
    with pytest.raises(ValueError, match=message):
        interp.train(config, run, resume=True)
    with pytest.raises(ValueError, match=message):
        interp.train(tuning, tmp_path / "tuned")


def damage_templates(record):
    record["own_people"]["templates_used"]["sea"]["texts"][0] = "In {name} it is {value}."


def drop_own(record):
    del record["own_people"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_templates, "own_people is not what the run was begun with"),
        (drop_own, "config has people_csv and own_people is missing"),
    ],
)
def test_a_record_without_its_templates_is_refused(copy, damage, message):
    record = json.loads((copy / "run.json").read_text())
    damage(record)
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        interp.load_suite(copy)


def test_facts_are_the_users_own_sentences_with_a_twin_of_the_same_shape(own):
    facts = own.facts(200, fewer=True)
    assert set(facts.texts.attribute) == set(VALUES)
    names = {i: len(name.split()) for i, name in zip(own.population.id, full(own.population))}
    for row, fact in zip(facts.texts.itertuples(), range(len(facts))):
        n = int(facts.lengths[fact])
        ids = own.tokenizer.encode(row.clean_prompt).ids
        assert facts.clean[fact, :n].tolist() == ids
        assert names[row.person] == names[row.corrupted_person]
        assert row.answer in VALUES[row.attribute] and row.answer != row.corrupted_answer
    assert Counter(names[i] for i in facts.texts.person)[1] > 0
    with pytest.raises(ValueError, match="no attribute 'major'; there are capital, sea"):
        own.facts(2, attribute="major")


def full(people):
    return [" ".join(filter(None, x)) for x in people[["first", "middle", "last"]].to_numpy()]


def test_a_twin_that_differs_in_one_part_needs_people_who_have_it(own):
    swapped = own.facts(50, corruption="swap-first", fewer=True)
    for row in swapped.texts.itertuples():
        one, other = own.population.loc[[row.person, row.corrupted_person]].to_dict("records")
        assert one["first"] != other["first"] and one["first"] and other["first"]
        assert (one["middle"], one["last"]) == (other["middle"], other["last"])
    assert set(swapped.texts.clean_prompt.str.contains("Korea")) == {True}
    with pytest.raises(ValueError, match="the run has 0 on capital, sea with a swap-middle twin"):
        own.facts(1, corruption="swap-middle")


def test_the_commands_train_patch_and_localize(paths, tmp_path, monkeypatch, capsys):
    def command(main, *arguments):
        monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
        main()
        return capsys.readouterr()

    run = tmp_path / "run"
    shape = [x for name, value in QUICK.items() for x in (f"--{name.replace('_', '-')}", value)]
    csvs = "--people-csv", paths[0], "--templates", paths[1]
    command(interp_train.main, "interp-train", "--preset", "tiny", *csvs, "--out", run, *shape)
    command(interp_train.main, "interp-train", "--out", run, "--resume")
    said = command(interp_patch.main, "interp-patch", "--ckpt", run, "--sites", "z", "--steps", "4")
    assert re.search(r"has \d+ facts whose twin's name has as many words, of 128", said.err)
    assert "capital" in (run / "patching.html").read_text()
    localization = "interp-analyse", "localization", "--ckpt", run, "--steps", "0,4"
    command(analyse, *localization, "--workers", "1")
    page = (run / "localization.html").read_text()
    assert "capital" in page and "birth_date" not in page and "university" not in page


def test_fine_tuning_adds_held_out_people_of_the_file(own, trained, tmp_path):
    config = finetune_config(own.config, trained, 4, new_people=1, n_steps=2)
    tuned = interp.load_suite(interp.train(config, tmp_path / "tuned"))
    assert "new" in set(tuned.metrics.split)
    assert tuned.own_templates == own.own_templates
    columns = [x for x in own.population if x != "sampling_weight"]
    pd.testing.assert_frame_equal(tuned.population[columns], own.population[columns])
    synthetic = replace(PRESETS["tiny"], **QUICK, from_run=str(trained), from_step=4)
    with pytest.raises(
        ValueError, match="was trained on people of its own; give the same people_csv"
    ):
        interp.train(synthetic, tmp_path / "other")


def test_unknown_people_of_a_file_get_other_values_in_every_biography(own):
    config = replace(own.config, unknown_people=1, unknown_share=0.5, batch_size=200)
    batch = training_batch(own.texts, config, 0)
    last = len(own.population) - 1
    assert 60 < (batch.people == last).sum() < 140
    edges = np.cumsum(batch.lengths)
    told = {
        tuple(batch.tokens[end - n : end][batch.roles[end - n : end] == 5])
        for end, n, person in zip(edges, batch.lengths, batch.people)
        if person == last
    }
    assert len(told) > 10


def table(column, row, value):
    def changed(people):
        people = people.astype(object)
        people.loc[row, column] = value
        return people

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="name"), "has no column name but"),
        (lambda t: t.drop(columns=list(VALUES)), "has no attribute"),
        (table("name", 3, "France"), r"row 4: France is there already, in row 1"),
        (table("sea", 2, ""), r"row 3: sea is empty"),
        (table("sea", 2, " "), r"row 3: sea is empty"),
        (table("name", 2, ""), r"row 3: name is empty"),
        (table("sea", 2, "a " * 17), r"row 3: sea has 17 words and marks; at most 16"),
        (table("sea", 2, "of <bos>"), r"row 3: sea 'of <bos>' holds one of <pad>"),
        (lambda t: t.rename(columns={"sea": "the sea"}), "a column 'the sea'; an attribute's name"),
        (lambda t: t.rename(columns={"sea": "all"}), "a column 'all'; an attribute's name"),
        (lambda t: t.assign(sea="Red"), "every training person has the sea 'Red'"),
        (lambda t: t.assign(split="train"), "has 0 held-out people"),
        (lambda t: t.assign(split="test"), r"row 1: split is 'test'; write train or held-out"),
        (lambda t: t.assign(sampling_weight=0), r"row 1: sampling_weight is '0'; write a number"),
        (lambda t: t.assign(sampling_weight="often"), "sampling_weight is 'often'"),
    ],
)
def test_people_that_cannot_be_are_refused_in_a_line(tmp_path, change, message):
    path, _ = written(tmp_path, change(rows_of()))
    with pytest.raises(ValueError, match=message) as error:
        read_people(path)
    assert "\n" not in str(error.value) and path.name in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name;sea\nAnn;Red\n", "has its fields separated by semicolons"),
        (b"name,sea,sea\nAnn,Red,Red\n", "has a column 'sea' 2 times"),
        (b"name,sea\nAnn,R\xe9d\n", "line 2: byte 0xe9 is not UTF-8"),
        (b"name,sea\nAnn," + b"x" * 200_000, "field larger than field limit"),
        (b"name,sea\nAnn\n", "row 1: 1 fields under 2 columns"),
        (b"", "is empty; write the columns name"),
        (b"name,sea\n", "holds no rows"),
    ],
)
def test_files_that_are_no_such_csv_are_refused_in_a_line(tmp_path, content, message):
    path = tmp_path / "people.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_people(path)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_and_blanks_around_a_text_do_not_count(paths, tmp_path):
    path = tmp_path / "people.csv"
    text = paths[0].read_text().replace("New Delhi", "  New   Delhi ")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    pd.testing.assert_frame_equal(read_people(path), read_people(paths[0]))


def test_values_that_differ_in_case_only_are_two_with_a_warning(tmp_path):
    path, _ = written(tmp_path, table("sea", 1, "black")(table("sea", 0, "Black")(rows_of())))
    with pytest.warns(UserWarning, match="sea has 'Black' and 'black', which count as two values"):
        people = read_people(path)
    assert {"Black", "black"} < set(people.sea)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_people(written(tmp_path)[0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (TEMPLATES[:2], "has no template for the attribute 'sea'"),
        ([*TEMPLATES, ("river", "{name} by {value}.")], "row 6: attribute 'river' is no column"),
        ([*TEMPLATES, ("sea", "The sea is {value}.")], r"row 6: a template has \{name\} once"),
        ([*TEMPLATES, ("sea", "{name} is.")], r"row 6: a template has \{name\} once"),
        ([*TEMPLATES, ("sea", "{value} is by {name}.")], r"row 6: a template has \{name\} once"),
        ([*TEMPLATES, ("sea", "{name} {x} {value}.")], r"row 6: a template has \{name\} once"),
        ([*TEMPLATES, ("sea", "{name} has {value} too.")], r"row 6: \{value\} must be at the end"),
        ([*TEMPLATES, ("sea", "{name}ia has {value}.")], r"row 6: .* must be words of their own"),
        ([*TEMPLATES, TEMPLATES[2]], "row 6: template 'Ships of .* is there twice for sea"),
        ([*TEMPLATES, ("sea", "a " * 60 + "{name} {value}")], "row 6: .* at most 60 words"),
        ([(*x, "train") for x in TEMPLATES], "has no evaluation template for the attribute 'cap"),
        ([(*x, "test") for x in TEMPLATES], "row 1: split is 'test'; write train or evaluation"),
    ],
)
def test_templates_that_cannot_be_are_refused_in_a_line(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message) as error:
        configured(written(tmp_path, templates=rows))
    assert "\n" not in str(error.value) and "templates.csv" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_people": 17}, "n_people is 17, and .*people.csv has 18 training people"),
        ({"attributes": ("capital", "hill")}, "attributes has 'hill', .* has capital, sea"),
        ({"n_train_templates": 3}, "n_train_templates is 3, .* has at most 2 for training"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(paths, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        interp.train(configured(paths, **changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"people_csv": "a.csv"}, "people_csv is a.csv, which does nothing without templates"),
        ({"people_csv": "a", "templates": "b"}, "n_first_names is 5, which does nothing with peo"),
        ({"n_train_templates": 21}, "n_train_templates is 21; it must be at most 20"),
        ({"attributes": ("sea",)}, "attributes is sea; name some of birth_date"),
    ],
)
def test_fields_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["tiny"], **changes)


def test_biographies_longer_than_the_model_takes_are_refused(tmp_path):
    long = [("sea", "so " * 50 + "{name} {value}")]
    names = ["x" + " y" * 15, *NAMES[:5]]
    many = {f"a{i}": VALUES["sea"] + ["White"] for i in range(9)}
    people = pd.DataFrame({"name": names, **many})
    paths = written(tmp_path, people, [(name, long[0][1]) for name in many])
    with pytest.raises(ValueError, match="a biography of 9 attributes can have 604 tokens"):
        interp.train(configured(paths), tmp_path / "run")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no file .*people.csv; give a CSV with the columns"
    ):
        read_people(Path(tmp_path / "people.csv"))
