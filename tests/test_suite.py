import json
import shutil

import pytest

from interp import suite as suite_module
from interp.suite import load_suite, select_steps


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def test_opening_a_suite_reads_no_weights(run, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(suite_module, "read_checkpoint", refuse)
    suite = load_suite(run)
    assert suite.steps == [0, 10, 20, 30]
    assert len(suite.population) == 60 and suite.tokenizer.get_vocab_size() > 100
    assert 0 < suite.no_knowledge_baseline < 5


def test_a_step_folder_opens_its_run_at_that_step(run):
    suite = load_suite(run / "step-000020")
    assert suite.steps == [20] and suite.path == run


def test_a_step_that_is_not_there_names_the_nearest(suite):
    with pytest.raises(ValueError, match=r"no checkpoint at step 14 in .*; nearest are 10 and 20"):
        suite.load(14)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; give a run folder"):
        load_suite(tmp_path / "nowhere")


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint in .*; give a run folder, a folder of"
    ):
        load_suite(tmp_path)


def test_a_run_without_checkpoints_says_so(copy):
    for folder in copy.glob("step-*"):
        shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="no step folder in"):
        load_suite(copy)


def test_a_damaged_run_json_is_named(copy):
    (copy / "run.json").write_text('{"config": {"n_people"')
    with pytest.raises(ValueError, match=r"run.json is damaged"):
        load_suite(copy)
    (copy / "run.json").write_text(json.dumps({"config": {"bogus": 1}}))
    with pytest.raises(ValueError, match=r"run.json is damaged"):
        load_suite(copy)


def test_a_missing_population_is_named_when_it_is_needed(copy):
    (copy / "population.parquet").unlink()
    suite = load_suite(copy)
    with pytest.raises(FileNotFoundError, match=r"no population.parquet in .*incomplete"):
        suite.facts(6)


@pytest.mark.parametrize("name", ["population.parquet", "tokenizer.json", "run.json"])
def test_a_cut_file_is_named(copy, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        load_suite(copy).facts(6)


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [("all", [0, 10, 20, 30]), ("30,0", [0, 30]), ("every:2", [0, 20, 30]), ("every:9", [0, 30])],
)
def test_steps_are_selected_by_name_list_or_stride(suite, wanted, steps):
    assert select_steps(suite, wanted) == steps


@pytest.mark.parametrize("wanted", ["every:0", "every:x", "some", "1;2", ""])
def test_steps_that_cannot_be_read_are_quoted(suite, wanted):
    with pytest.raises(ValueError, match=f"steps '{wanted}' can't be read"):
        select_steps(suite, wanted)
