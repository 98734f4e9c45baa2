import json
import shutil
import signal
import time
from dataclasses import replace
from functools import wraps

import numpy as np
import pytest
import torch
import xarray as xr
from processes import start

from interp import provenance
from interp.patching import patch
from interp.results import pieces, sweep
from interp.results.pieces import facts_digest
from interp.results.store import open_result
from interp.results.sweep import patch_suite
from interp.suite import load_suite

SITES = ["attn_out", "z"]


@pytest.fixture
def copy(run, tmp_path):
    return load_suite(shutil.copytree(run, tmp_path / "run"))


def count_patched(monkeypatch):
    patched = []
    original = sweep._patch_one

    @wraps(original)
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
    assert request["options"]["direction"] == "denoising" and request["versions"]["torch"]
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
        "import sys, time; from interp import load_suite, patch_suite\n"
        "suite = load_suite(sys.argv[1]); facts = suite.facts(12, seed=3)\n"
        "slow = lambda n_done: time.sleep(n_done)\n"
        "patch_suite(suite, facts, sites=['z'], out=sys.argv[2], on_step=slow)"
    )
    child = start(code, run, tmp_path)
    while not list(tmp_path.glob("step-*.nc")) and child.is_alive():
        time.sleep(0.005)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL  # before its end
    had = len(list(tmp_path.glob("step-*.nc")))
    patched = count_patched(monkeypatch)
    suite = load_suite(run)
    patch_suite(suite, suite.facts(12, seed=3), sites=["z"], out=tmp_path)
    assert 1 <= had < 4 and len(patched) == 4 - had
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_progress_counts_every_checkpoint(suite, facts, tmp_path):
    seen = []
    patch_suite(suite, facts, sites=["z"], steps=[0, 10], out=tmp_path, on_step=seen.append)
    patch_suite(suite, facts, sites=["z"], out=tmp_path, on_step=seen.append)
    assert seen == [0, 1, 2, 2, 3, 4]


def test_no_workers_are_refused(suite, facts):
    with pytest.raises(ValueError, match="workers is 0"):
        patch_suite(suite, facts, workers=0)


def corrected(facts):
    """The same prompts under another attribute."""
    texts = facts.texts.assign(attribute=["shoe size"] * len(facts))
    return replace(facts, texts=texts)


def test_facts_of_other_texts_are_another_question(suite, facts, tmp_path, monkeypatch):
    patched = count_patched(monkeypatch)
    for given in (facts, corrected(facts), facts):
        tree = patch_suite(suite, given, sites=["z"], steps=[30], out=tmp_path)
        assert tree["z"].attribute.values.tolist() == given.texts.attribute.tolist()
    assert len(patched) == 2 and facts_digest(facts) != facts_digest(corrected(facts))


def test_every_part_of_a_fact_set_is_in_its_digest(facts):
    other = {
        "clean": facts.clean + 1,
        "corrupted": None,
        "roles": facts.roles.where(facts.roles != 2, 3),
        "answers": facts.answers.where(facts.answers < 0, 10**6),
        "corrupted_answers": None,
        "role_names": (*facts.role_names[:-1], "last"),
        "vocabulary": "another",
        "texts": facts.texts.assign(answer="x"),
    }
    digests = {facts_digest(replace(facts, **{name: value})) for name, value in other.items()}
    assert len(digests | {facts_digest(facts)}) == len(other) + 1
    assert other.keys() | {"lengths"} == vars(facts).keys()


def test_other_source_code_computes_anew(suite, facts, tmp_path, monkeypatch):
    patched = count_patched(monkeypatch)
    for digest in ("one", "two", "one"):
        monkeypatch.setattr(pieces, "source_digest", lambda *_, digest=digest: digest)
        patch_suite(suite, facts, sites=["z"], steps=[30], out=tmp_path)
    assert len(patched) == 2


def test_the_source_is_what_computes_and_not_what_shows(tmp_path, monkeypatch):
    package = tmp_path / "interp"
    for name in ("patching/engine.py", "report/curves.py", "cli/shell.py", "model.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))

    def digest():
        provenance.source_digest.cache_clear()
        return provenance.source_digest()

    before = digest()
    for name in ("report/curves.py", "cli/shell.py"):
        (package / name).write_text("2")
    assert digest() == before
    (package / "patching/engine.py").write_text("2")
    assert digest() != before
    provenance.source_digest.cache_clear()


def test_facts_of_another_vocabulary_are_refused(suite, facts):
    with pytest.raises(
        ValueError, match=r"the facts are of another vocabulary than .*short; sample"
    ):
        patch_suite(suite, replace(facts, vocabulary="another"), sites=["z"])
    own = replace(facts, vocabulary="")
    assert "z" in patch_suite(suite, own, sites=["z"], steps=[30])


def test_a_step_of_another_shape_is_refused_before_anything_is_patched(run, facts, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    config = copy / "step-000020" / "config.json"
    config.write_text(
        config.read_text().replace('"layer_norm_eps": 1e-05', '"layer_norm_eps": 0.1')
    )
    with pytest.raises(ValueError, match=r"step 20 has ln_eps 0.1, step 0 1e-05"):
        patch_suite(load_suite(copy), facts, sites=["z"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": []}, "steps is empty; choose some of 0, 10, 20, 30"),
        ({"workers": 10**6}, "workers is 1000000; it must be at most 256"),
        ({"max_memory": float("nan")}, "max_memory is nan"),
    ],
)
def test_what_cannot_be_swept_is_refused(suite, facts, options, message):
    with pytest.raises(ValueError, match=message):
        patch_suite(suite, facts, sites=["z"], **options)


def test_where_facts_come_from_never_stands_for_what_they_are(suite, facts, tmp_path):
    other = suite.facts(12, seed=4)
    for given in (facts, other):
        made_from = {"facts": "mine.csv", "checkpoint": "x", "site": "y"}
        options = {"steps": [30], "out": tmp_path, "made_from": made_from}
        tree = patch_suite(suite, given, sites=["z"], **options)
        assert tree["z"].clean_prompt.values.tolist() == given.texts.clean_prompt.tolist()
    with pytest.raises(ValueError, match="made_from can't be recorded"):
        patch_suite(suite, facts, sites=["z"], made_from={"n": np.int64(3)})


def test_another_precision_of_products_is_another_question(suite, facts, tmp_path, monkeypatch):
    patched = count_patched(monkeypatch)
    for precision in ("highest", "high", "highest"):
        torch.set_float32_matmul_precision(precision)
        try:
            patch_suite(suite, facts, sites=["z"], steps=[30], out=tmp_path)
        finally:
            torch.set_float32_matmul_precision("highest")
    assert len(patched) == 2


def test_rotary_angles_do_not_follow_the_default_type(suite, facts):
    plain = patch(suite.load(30), facts, site="z")
    torch.set_default_dtype(torch.bfloat16)
    try:
        other = patch(suite.load(30), facts, site="z")
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(other.patched, plain.patched, atol=1e-5)
