import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr

from interp import sweep
from interp.patching import patch
from interp.results import open_result
from interp.suite import load_suite
from interp.sweep import patch_suite

SITES = ["attn_out", "z"]


@pytest.fixture
def copy(run, tmp_path):
    return load_suite(shutil.copytree(run, tmp_path / "run"))


def count_patched(monkeypatch):
    patched = []
    original = sweep._patch_one

    def counting(suite, step, sites, **options):
        patched.append((step, tuple(sites)))
        return original(suite, step, sites, **options)

    monkeypatch.setattr(sweep, "_patch_one", counting)
    return patched


def test_a_tree_has_a_node_a_site_with_the_steps_of_single_patches(suite, facts):
    tree = patch_suite(suite, facts, sites=SITES)
    assert set(tree.children) == set(SITES)
    assert tree["z"].patched.dims == ("step", "layer", "head", "role", "fact")
    assert tree["z"].step.values.tolist() == suite.steps
    alone = patch(suite.load(20), facts, site="z")
    # Other rows in a batch change how products are rounded.
    np.testing.assert_allclose(tree["z"].patched.sel(step=20), alone.patched, atol=1e-6)


def test_results_are_reused_and_the_same_when_read_back(suite, facts, tmp_path, monkeypatch):
    patched = count_patched(monkeypatch)
    first = patch_suite(suite, facts, sites=SITES, out=tmp_path)
    again = patch_suite(suite, facts, sites=SITES, out=tmp_path)
    assert len(patched) == len(suite.steps)
    for site in SITES:
        xr.testing.assert_identical(first[site].to_dataset(), again[site].to_dataset())


def test_a_result_says_what_made_it(suite, facts, tmp_path):
    patch_suite(suite, facts, sites=["z"], steps=[20], out=tmp_path, command="interp-patch --x")
    (path,) = tmp_path.glob("*.nc")
    attrs = open_result(path).attrs
    request, made_by = json.loads(attrs["request"]), json.loads(attrs["made_by"])
    assert request["checkpoint"] == suite.sha256(20) and request["step"] == 20
    assert request["direction"] == "denoising" and request["versions"]["torch"]
    assert made_by["command"] == "interp-patch --x"


@pytest.mark.parametrize(
    "change", [{"direction": "noising"}, {"precision": "bf16"}, {"made_from": {"corruption": "x"}}]
)
def test_another_question_is_computed_anew(suite, facts, tmp_path, monkeypatch, change):
    patched = count_patched(monkeypatch)
    patch_suite(suite, facts, sites=["z"], steps=[20], out=tmp_path)
    patch_suite(suite, facts, sites=["z"], steps=[20], out=tmp_path, **change)
    patch_suite(suite, facts[:6], sites=["z"], steps=[20], out=tmp_path)
    assert len(patched) == 3


def test_a_changed_checkpoint_is_computed_anew_and_only_that(copy, facts, tmp_path, monkeypatch):
    patched = count_patched(monkeypatch)
    patch_suite(copy, facts, sites=["z"], out=tmp_path / "out")
    shutil.copy(copy.step_dir(30) / "model.safetensors", copy.step_dir(10))
    patch_suite(copy, facts, sites=["z"], out=tmp_path / "out")
    assert patched[4:] == [(10, ("z",))]


def test_only_the_missing_site_of_a_checkpoint_is_computed(suite, facts, tmp_path, monkeypatch):
    patched = count_patched(monkeypatch)
    patch_suite(suite, facts, sites=["z"], out=tmp_path)
    patch_suite(suite, facts, sites=["z", "mlp_out"], steps=[0, 10], out=tmp_path)
    assert patched[4:] == [(0, ("mlp_out",)), (10, ("mlp_out",))]


def test_worker_processes_give_the_same_results(suite, facts, tmp_path):
    alone = patch_suite(suite, facts, sites=SITES)
    together = patch_suite(suite, facts, sites=SITES, workers=2, out=tmp_path)
    for site in SITES:
        np.testing.assert_allclose(alone[site].patched, together[site].patched, atol=1e-5)


def test_a_killed_sweep_keeps_what_it_had_and_goes_on(run, tmp_path, monkeypatch):
    code = (
        "import sys; from interp.suite import load_suite; from interp.sweep import patch_suite\n"
        "suite = load_suite(sys.argv[1]); facts = suite.facts(12, seed=3)\n"
        "patch_suite(suite, facts, sites=['z'], out=sys.argv[2])"
    )
    child = subprocess.Popen([sys.executable, "-c", code, run, tmp_path])
    while not list(tmp_path.glob("step-*.nc")) and child.poll() is None:
        time.sleep(0.005)
    child.kill()
    child.wait()
    had = len(list(tmp_path.glob("step-*.nc")))
    patched = count_patched(monkeypatch)
    suite = load_suite(run)
    patch_suite(suite, suite.facts(12, seed=3), sites=["z"], out=tmp_path)
    assert had >= 1 and len(patched) == 4 - had
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_progress_counts_every_checkpoint(suite, facts, tmp_path):
    seen = []
    patch_suite(suite, facts, sites=["z"], steps=[0, 10], out=tmp_path, on_step=seen.append)
    patch_suite(suite, facts, sites=["z"], out=tmp_path, on_step=seen.append)
    assert seen == [0, 1, 2, 2, 3, 4]


def test_no_workers_are_refused(suite, facts):
    with pytest.raises(ValueError, match="workers is 0"):
        patch_suite(suite, facts, workers=0)
