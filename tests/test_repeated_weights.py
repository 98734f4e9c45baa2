import itertools
import shutil

import pytest
from safetensors.torch import load_file, save_file

from interp.report.patching_page import build_report
from interp.results.over_checkpoints import over_checkpoints
from interp.results.pieces import Sweep
from interp.results.repeated_weights import repeated_weights
from interp.results.store import repeats_in
from interp.results.sweep import patch_suite
from interp.suite import load_suite


def suite_of(steps, **changes):
    """Digests of three tensors that are new at every step; ``changes`` says otherwise by name."""
    names, new = {"first": "4x4", "second": "4x4", "norm": "4"}, itertools.count()
    tensors = {
        step: {name: f"{shape}:{next(new)}" for name, shape in names.items()} for step in steps
    }
    for name, digests in changes.items():
        for step, digest in zip(steps, digests):
            tensors[step][name] = f"{names[name]}:{digest}"
    return tensors


def said(*arguments, **changes):
    return [str(repeat) for repeat in repeated_weights(suite_of(*arguments, **changes))]


def test_steps_that_all_differ_are_not_spoken_of():
    assert said([0, 10, 20, 30]) == []


def test_identical_checkpoints_are_named_together():
    tensors = suite_of([0, 1, 2, 3, 4])
    tensors[1] = tensors[4] = tensors[0]
    (repeat,) = repeated_weights(tensors)
    assert repeat.steps == (0, 1, 4) and repeat.tensors == ()
    assert str(repeat).startswith("steps 0, 1, 4 have identical weights; see that each is")


def test_two_steps_alone_are_enough_where_all_weights_are_the_same():
    tensors = suite_of([0, 1])
    tensors[1] = tensors[0]
    assert [repeat.steps for repeat in repeated_weights(tensors)] == [(0, 1)]


def test_the_file_of_another_step_is_found_by_its_tensors():
    (line,) = said([0, 50, 58, 143], second="ABCB")
    assert line.startswith("steps 50, 143 have 1 identical tensors, second first, though")


def test_a_matrix_that_stands_still_for_a_step_is_named():
    assert said([0, 1, 2], first="AAB")[0].startswith("steps 0, 1 have 1 identical tensors")


def test_a_vector_may_stand_still_between_neighbours_but_not_come_back():
    assert said([0, 1, 2], norm="AAB") == []
    assert len(said([0, 1, 2], norm="ABA")) == 1


def test_frozen_tensors_are_not_spoken_of():
    assert said([0, 1, 2, 3], first="AAAA", norm="BBBB") == []


@pytest.fixture
def mixed(run, tmp_path):
    """A run whose step 10 has one tensor of step 30, and whose steps 0 and 20 are identical."""
    copy = shutil.copytree(run, tmp_path / "run")
    paths = {
        step: folder / "model.safetensors" for step, folder in load_suite(copy).folders.items()
    }
    shutil.copy(paths[0], paths[20])
    weights, name = load_file(paths[10]), "gpt_neox.layers.1.attention.dense.weight"
    save_file(weights | {name: load_file(paths[30])[name]}, paths[10], {"format": "pt"})
    return load_suite(copy)


def test_a_sweep_over_mixed_up_checkpoints_warns_in_a_line_and_marks_its_report(mixed, facts):
    with pytest.warns(UserWarning) as warned:
        tree = patch_suite(mixed, facts, sites=["resid_pre"])
    lines = [str(w.message) for w in warned if "steps" in str(w.message)]
    assert len(lines) == 2 and all(line.count("\n") == 0 for line in lines)
    assert "steps 0, 20 have identical weights" in lines[0]
    assert "steps 10, 30 have 1 identical tensors, gpt_neox.layers.1.attention.dense" in lines[1]
    assert [repeat.steps for repeat in repeats_in(tree["resid_pre"].to_dataset())] == [
        (0, 20),
        (10, 30),
    ]
    page = build_report(tree, title="Mixed")
    assert "steps 0, 20 have identical weights" in page and "steps 10, 30 have 1 identical" in page


def test_results_that_are_read_again_still_say_so(mixed, facts, tmp_path):
    for _ in range(2):
        with pytest.warns(UserWarning, match="steps 0, 20 have identical weights"):
            tree = patch_suite(mixed, facts, sites=["resid_pre"], out=tmp_path / "out")
        assert len(repeats_in(tree["resid_pre"].to_dataset())) == 2


def test_a_sweep_over_sound_checkpoints_warns_of_nothing(suite, facts, recwarn):
    asked = {"suite": suite, "steps": suite.steps, "names": [], "facts": facts, "options": {}}
    over_checkpoints(Sweep(compute=lambda *_: {}, out=None, **asked))
    assert not [w for w in recwarn if "steps" in str(w.message)]
