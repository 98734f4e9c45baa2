"""Which question of a folder is the newest, and whose checkpoints make one curve."""

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from processes import finish

from interp.results.store import open_result, read_folder
from interp.results.sweep import patch_suite
from interp.suite import load_suite
from interp.training.loop import train

OUT = Path("results") / "patching"


@pytest.fixture
def copy(run, tmp_path):
    return load_suite(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def longer(config, tmp_path_factory):
    """A run of the same people as the session's, trained for 20 steps more."""
    longer = replace(config, n_steps=50)
    return train(longer, tmp_path_factory.mktemp("runs") / "short", command="interp-train --test")


def asked(suite, facts, **options):
    """Results of ``attn_out``, kept in the run's own folder."""
    return patch_suite(suite, facts, sites=["attn_out"], out=suite.path / OUT, **options)


def set_times(folder, seed):
    """Sets all file times anew, in an order of the seed's; for seed 0 all to the same."""
    paths = sorted(folder.rglob("*"))
    for path in paths:
        when = random.Random(f"{seed}{path.name}").randrange(10**9) if seed else 10**9
        os.utime(path, (when, when))


@pytest.mark.parametrize("seed", range(4))
def test_file_times_do_not_say_which_question_is_the_newest(copy, facts, seed):
    asked(copy, facts, steps=[0, 30])
    asked(copy, facts, direction="noising", steps=[10, 30])
    asked(copy, facts, direction="denoising", steps=[10])
    set_times(copy.path / OUT, seed)
    result = read_folder(copy.path / OUT)["attn_out"]
    assert result.attrs["direction"] == "denoising"
    assert result.step.values.tolist() == [0, 10, 30]


def test_reading_results_changes_nothing_in_their_folder(copy, facts):
    asked(copy, facts, steps=[0, 30])
    set_times(copy.path / OUT, 0)
    before = {path: path.stat().st_mtime_ns for path in (copy.path / OUT).iterdir()}
    asked(copy, facts, steps=[0, 30])
    read_folder(copy.path / OUT)
    del before[copy.path / OUT / ".lock"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_sites_stand_in_the_order_they_were_asked_for_those_asked_last_first(copy, facts):
    for sites in (["z", "attn_out"], ["mlp_out", "attn_out"]):
        patch_suite(copy, facts, sites=sites, steps=[30], out=copy.path / OUT)
    assert list(read_folder(copy.path / OUT)) == ["mlp_out", "attn_out", "z"]


def test_results_of_two_trainings_are_never_one_curve(copy, longer, facts):
    asked(copy, facts)
    for path in copy.path.iterdir():
        if path.name != "results":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(longer, copy.path, dirs_exist_ok=True)
    retrained = load_suite(copy.path)
    assert retrained.steps == [0, 10, 20, 40, 50]
    asked(retrained, facts, steps=[10, 50])
    with pytest.warns(UserWarning, match="also holds results of another training") as warned:
        result = read_folder(copy.path / OUT)["attn_out"]
    assert result.step.values.tolist() == [10, 50]
    (line,) = [str(w.message) for w in warned]
    assert "at steps 0, 10, 20, 30; they are left out" in line and "\n" not in line


def test_older_runs_without_digests_are_told_apart_too(copy, longer, facts, tmp_path):
    retrained = load_suite(shutil.copytree(longer, tmp_path / "retrained"))
    for suite, steps in ((copy, None), (retrained, [10, 50])):
        record = json.loads((suite.path / "run.json").read_text())
        del record["digests"]
        (suite.path / "run.json").write_text(json.dumps(record))
        suite = load_suite(suite.path)
        patch_suite(suite, facts, sites=["z"], steps=steps, out=tmp_path / "out")
    with pytest.warns(UserWarning, match="at steps 0, 10, 20, 30; they are left out"):
        assert read_folder(tmp_path / "out")["z"].step.values.tolist() == [10, 50]


def test_results_of_checkpoints_that_were_replaced_since_are_left_out(copy, longer, facts):
    asked(copy, facts)
    for step in (10, 20):
        shutil.copy(longer / f"step-0000{step}" / "model.safetensors", copy.step_dir(step))
    again = asked(copy, facts, steps=[0, 10])["attn_out"]
    with pytest.warns(UserWarning, match="at steps 10, 20; they are left out"):
        result = read_folder(copy.path / OUT)["attn_out"]
    assert result.step.values.tolist() == [0, 10, 30]
    np.testing.assert_array_equal(result.patched.sel(step=10), again.patched.sel(step=10))


def test_a_checkpoint_that_was_put_back_is_read_again(copy, longer, facts, recwarn):
    ours = asked(copy, facts)["attn_out"]
    path = copy.step_dir(10) / "model.safetensors"
    content = path.read_bytes()
    shutil.copy(longer / "step-000010" / "model.safetensors", path)
    asked(copy, facts)
    path.write_bytes(content)
    asked(copy, facts, steps=[10])
    recwarn.clear()
    np.testing.assert_array_equal(read_folder(copy.path / OUT)["attn_out"].patched, ours.patched)
    assert "at steps 10; they are left out" in str(recwarn.pop().message)


def test_a_folder_without_manifest_is_read_if_it_answers_one_question(copy, facts):
    ours = asked(copy, facts)["attn_out"]
    (copy.path / OUT / "manifest.json").unlink()
    np.testing.assert_array_equal(read_folder(copy.path / OUT)["attn_out"].patched, ours.patched)
    asked(copy, facts, direction="noising", steps=[30])
    (copy.path / OUT / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no manifest.json .*; run the same interp-patch again"):
        read_folder(copy.path / OUT)
    asked(copy, facts)
    assert read_folder(copy.path / OUT)["attn_out"].attrs["direction"] == "denoising"


def test_a_folder_without_manifest_with_two_checkpoints_of_a_step_is_refused(copy, longer, facts):
    asked(copy, facts, steps=[10])
    shutil.copy(longer / "step-000010" / "model.safetensors", copy.step_dir(10))
    asked(copy, facts, steps=[10])
    (copy.path / OUT / "manifest.json").unlink()
    with pytest.raises(ValueError, match="several questions or checkpoints, and no"):
        read_folder(copy.path / OUT)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"{}", b'{"questions": 3}', b'{"questions": [3]}',
        b'{"questions": [{"question": {}, "sites": ["z"]}]}',
        b'{"questions": [{"question": {}, "sites": [1], "checkpoints": {}}]}',
        b'{"questions": [{"question": {}, "sites": ["z"], "checkpoints": {"ten": "ab"}}]}',
        b'{"questions": [{"question": {}, "sites": ["z"], "checkpoints": ["ab"]}]}',
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_named_in_one_line(copy, facts, content):
    asked(copy, facts, steps=[30])
    path = copy.path / OUT / "manifest.json"
    path.write_bytes(content)
    for read in (lambda: read_folder(copy.path / OUT), lambda: asked(copy, facts, steps=[30])):
        with pytest.raises(ValueError, match=rf"^{path} is damaged .*; delete it and run") as error:
            read()
        assert "\n" not in str(error.value)


def test_a_pipe_in_place_of_the_manifest_is_refused(copy, facts):
    asked(copy, facts, steps=[30])
    (copy.path / OUT / "manifest.json").unlink()
    os.mkfifo(copy.path / OUT / "manifest.json")
    with pytest.raises(ValueError, match=r"manifest.json is not a file; delete it and run"):
        read_folder(copy.path / OUT)


def test_a_question_without_results_yet_leaves_the_one_before_it_the_newest(copy, facts):
    asked(copy, facts, steps=[30])
    with pytest.raises(KeyError):
        asked(copy, facts, direction="noising", steps=[30], on_step=lambda n_done: {}[n_done])
    assert read_folder(copy.path / OUT)["attn_out"].attrs["direction"] == "denoising"
    asked(copy, facts, direction="noising", steps=[30])
    assert read_folder(copy.path / OUT)["attn_out"].attrs["direction"] == "noising"


def test_a_question_is_recorded_before_its_first_result_is_written(run, tmp_path):
    code = (
        "import os, sys; from interp import load_suite, patch_suite\n"
        "from interp.results import pieces\n"
        "pieces.write_result = lambda *_: os.kill(os.getpid(), 9)\n"
        "suite = load_suite(sys.argv[1]); facts = suite.facts(6, seed=3)\n"
        "patch_suite(suite, facts, sites=['z'], out=sys.argv[2])"
    )
    killed, *_ = finish(code, run, tmp_path)
    assert killed == -9 and not list(tmp_path.glob("*.nc"))
    (entry,) = json.loads((tmp_path / "manifest.json").read_text())["questions"]
    assert entry["sites"] == ["z"] and list(entry["checkpoints"]) == ["0", "10", "20", "30"]
    suite = load_suite(run)
    patch_suite(suite, suite.facts(6, seed=3), sites=["z"], steps=[20], out=tmp_path)
    assert read_folder(tmp_path)["z"].step.values.tolist() == [20]


def test_every_result_file_is_found_through_the_manifest(copy, facts):
    asked(copy, facts, direction="noising", layers=(0, 2), groups=("all",), made_from={"a": [1.5]})
    manifest = json.loads((copy.path / OUT / "manifest.json").read_text())
    (entry,) = manifest["questions"]
    request = json.loads(open_result(next((copy.path / OUT).glob("*.nc"))).attrs["request"])
    assert entry["question"] == {
        key: value for key, value in request.items() if key not in ("step", "site", "checkpoint")
    }
    assert read_folder(copy.path / OUT)["attn_out"].step.values.tolist() == copy.steps
