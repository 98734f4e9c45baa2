import json
import os
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from foreign import as_hub_cache, save_steps
from safetensors.torch import load_file, save_file

from interp.cli import interp_audit
from interp.model.checkpoint_io import tensor_digests
from interp.model.tensor_file import digest_of
from interp.model.weight_scan import scan
from interp.results.audit import audit
from interp.suite import load_suite
from interp.training.loop import train

DEMO = "checkpoints/demo"
STEPS = (0, 1000, 2000, 3000, 4000, 5000)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Six steps of a model of a family that no loader of ours needs to know, in shards, bf16."""
    labels = [f"step{step}" for step in STEPS]
    folder = tmp_path_factory.mktemp("audit") / "suite"
    return save_steps(folder, labels, family="llama", shard="20kB", dtype=torch.bfloat16)


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "suite")


@pytest.fixture(scope="module")
def other_seed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other") / "suite"
    labels = [f"step{step}" for step in STEPS]
    return save_steps(
        folder, labels, family="llama", shard="20kB", dtype=torch.bfloat16, seed=1
    )  # fmt: skip


def found(folder, *, wrong=True, steps=None):
    """(check, steps, text) of the findings."""
    findings = audit(load_suite(folder), steps).findings
    return [(one.check, one.steps, one.text) for one in findings if one.wrong == wrong]


def shards(step):
    files = sorted(step.glob("model-*.safetensors"))
    assert len(files) > 2
    return files


def change(path, what):
    weights = load_file(path)
    what(weights)
    save_file(weights, path, {"format": "pt"})


def swap(folder, one, two):
    (folder / one).rename(folder / "aside")
    (folder / two).rename(folder / one)
    (folder / "aside").rename(folder / two)


def test_of_trained_runs_and_a_sound_suite_nothing_is_said(suite, sound):
    for path in (DEMO, suite.path, sound):
        result = audit(load_suite(path))
        assert result.findings == [] and result.sound
    for steps in ([0, 2500, 6500], [6500], [0, 100]):
        assert audit(load_suite(DEMO), steps).findings == []


def test_a_suite_in_the_hubs_cache_is_examined_as_it_is(sound, tmp_path):
    assert found(as_hub_cache(sound, tmp_path / "models--org--tiny")) == []


def test_identical_steps_are_named_pythia_83_195_198_205(copy):
    for step in (1000, 3000, 4000):
        shutil.rmtree(copy / f"step{step}")
        shutil.copytree(copy / "step5000", copy / f"step{step}")
    assert found(copy) == [("identical", (1000, 3000, 4000, 5000), "all weights are identical")]


def test_step_0_that_is_step_1_is_named(copy):
    shutil.rmtree(copy / "step0")
    shutil.copytree(copy / "step1000", copy / "step0")
    assert found(copy) == [("identical", (0, 1000), "all weights are identical")]


def test_the_first_shard_of_another_step_is_named_pythia_206(copy):
    final = shards(copy / "step5000")[0]
    for step in (1000, 3000):
        shutil.copy(final, copy / f"step{step}")
    n = len(load_file(final))
    text = f"all {n} tensors of {final.name} are identical, though trained in between"
    assert found(copy) == [("identical", (1000, 3000, 5000), text)]


def test_the_shard_of_a_step_that_is_not_there_is_out_of_its_line(copy):
    last = shards(copy / "step5000")[0]
    for path in (shutil.copy(last, copy / f"step{step}") for step in (1000,)):
        change(path, lambda weights: [weight.mul_(1.01) for weight in weights.values()])
    ((check, steps, text),) = found(copy, steps=STEPS[:-1])
    assert (check, steps) == ("descent", (1000,)) and text.startswith(f"{last.name} is misplaced")


def test_one_tensor_of_another_step_is_named(copy):
    name = "model.layers.1.mlp.up_proj.weight"
    paths = [next(x for x in shards(copy / f"step{step}") if name in load_file(x))
             for step in (2000, 4000)]  # fmt: skip
    taken = load_file(paths[1])[name]
    change(paths[0], lambda weights: weights.update({name: taken}))
    ((check, steps, text),) = found(copy)
    assert (check, steps) == ("identical", (2000, 4000)) and name in text


@pytest.mark.parametrize(("one", "two"), [("step1000", "step2000"), ("step1000", "step4000")])
def test_two_steps_in_each_others_place_are_named(copy, one, two):
    swap(copy, one, two)
    ((check, steps, text),) = found(copy)
    assert check == "descent" and steps == tuple(int(x[4:]) for x in (one, two))
    assert text.startswith("out of order")


def test_trained_steps_in_each_others_place_are_named(tmp_path):
    for one, two in ((500, 600), (2500, 3000), (100, 5000)):
        run = shutil.copytree(DEMO, tmp_path / f"{one}-{two}")
        swap(run, f"step-{one:06}", f"step-{two:06}")
        ((check, steps, _),) = found(run)
        assert check == "descent" and steps == (one, two)


@pytest.mark.parametrize("step", [0, 3000, 5000])
def test_a_step_of_another_run_is_named_pythia_203(copy, other_seed, step):
    shutil.rmtree(copy / f"step{step}")
    shutil.copytree(other_seed / f"step{step}", copy / f"step{step}")
    ((check, steps, text),) = found(copy)
    assert (check, steps) == ("descent", (step,)) and text.startswith("of another run")


@pytest.fixture(scope="module")
def other_run(config, tmp_path_factory):
    return train(replace(config, seed=5), tmp_path_factory.mktemp("other") / "run")


@pytest.mark.parametrize("step", [0, 20, 30])
def test_a_trained_step_of_another_seed_is_named(run, other_run, tmp_path, step):
    mixed = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(mixed / f"step-{step:06}")
    shutil.copytree(other_run / f"step-{step:06}", mixed / f"step-{step:06}")
    ((steps, text),) = [one[1:] for one in found(mixed) if one[0] == "descent"]
    assert steps == (step,) and text.startswith("of another run")


def test_weights_of_another_time_are_named_pythia_108(copy):
    final = copy / "step5000"
    shutil.rmtree(copy / "step1000")
    shutil.copytree(final, copy / "step1000")
    for path in shards(copy / "step1000"):
        change(path, lambda weights: [weight.mul_(1.01) for weight in weights.values()])
    ((check, steps, _),) = found(copy, steps=STEPS[:-1])
    assert check == "descent" and steps == (1000,)


def test_masks_that_every_model_has_do_not_make_steps_alike(tmp_path):
    weights = {"h.0.attn.bias": torch.ones(1, 1, 16, 16).tril(), "wte.weight": torch.randn(8, 16)}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    assert scan(tmp_path).samples.keys() == {"wte.weight"}


def test_numbers_that_are_none_are_named(copy):
    for step, value in ((1000, torch.nan), (2000, torch.inf), (3000, -torch.inf)):
        change(
            shards(copy / f"step{step}")[1],
            lambda weights, value=value: weights[min(weights)].fill_(value),
        )
    name = min(load_file(shards(copy / "step1000")[1]))
    assert [one[:2] for one in found(copy)] == [("numbers", (s,)) for s in (1000, 2000, 3000)]
    assert found(copy)[0][2] == f"{name}: NaN, or too large for fp32"


def test_shapes_types_and_missing_tensors_are_named(copy):
    first = [shards(copy / f"step{step}")[0] for step in STEPS]
    name = min(load_file(first[0]))
    change(first[1], lambda weights: weights.update({name: weights[name][:-1].clone()}))
    change(first[2], lambda weights: weights.update({name: weights[name].float()}))
    shape, *_ = digest_of(load_file(first[0])[name]).split(":")
    ((check, steps, text),) = found(copy)
    assert (check, steps) == ("tensors", (1000,)) and text.endswith(
        f"at other steps of shape {shape}"
    )
    ((check, steps, text),) = found(copy, wrong=False)
    assert (check, steps) == ("types", (2000,))
    assert text == f"{name} is float32, at other steps bfloat16"
    for path in (copy / "step3000" / "model.safetensors.index.json",):
        index = json.loads(path.read_text())
        place = index["weight_map"].pop(name)
        path.write_text(json.dumps(index))
        change(copy / "step3000" / place, lambda weights: weights.pop(name))
    assert ("tensors", (3000,), f"{name} is missing, at other steps of shape {shape}") in found(
        copy
    )


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda step: shards(step)[1].unlink(), "no model-00002-of-"),
        (lambda step: os.truncate(shards(step)[1], 100), "is damaged"),
        (lambda step: (step / "config.json").unlink(), "no config.json in"),
        (lambda step: (step / "config.json").write_text("{"), "config.json is damaged"),
        (lambda step: change(shards(step)[0], lambda w: w.pop(min(w))), "which model.safetensors"),
        (lambda step: [x.unlink() for x in step.iterdir()], "no config.json in"),
    ],
)
def test_a_damaged_step_is_named_and_the_others_are_examined(copy, break_it, said):
    break_it(copy / "step2000")
    swap(copy, "step3000", "step4000")
    (file, descent) = found(copy)
    assert file[:2] == ("files", (2000,)) and said in file[2]
    assert descent[1] == (3000, 4000)


def test_a_flipped_bit_in_a_file_of_ours_is_named(run, tmp_path):
    mixed = shutil.copytree(run, tmp_path / "run")
    path = mixed / "step-000020" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    ((check, steps, text),) = found(mixed)
    assert (check, steps) == ("files", (20,)) and "its checksum is of other tensors" in text


def test_keys_of_configs_that_differ_are_named(copy):
    for step, key, value in ((1000, "rope_theta", 7), (2000, "transformers_version", "4.0")):
        path = copy / f"step{step}" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    ((check, steps, text),) = found(copy)
    assert (check, steps) == (
        "config",
        (1000,),
    ) and text == "rope_theta is '7', at other steps 'null'"
    ((check, steps, _),) = found(copy, wrong=False)
    assert (check, steps) == ("config", (2000,))


def empty_suite(folder, steps):
    for step in steps:
        (folder / f"step{step}").mkdir(parents=True)
    return load_suite(folder)


PYTHIA = [0, *(2**i for i in range(10)), *range(1000, 144000, 1000)]


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ((), []),
        ((3000,), [(2000, 4000)]),
        ((3000, 4000, 77000), [(2000, 5000), (76000, 78000)]),
        ((16,), [(8, 32)]),
        ((143000,), []),
    ],
)
def test_steps_missing_from_the_schedule_are_a_note(tmp_path, missing, said):
    assert len(PYTHIA) == 154
    steps = [step for step in PYTHIA if step not in missing]
    notes = [x for x in audit(empty_suite(tmp_path, steps)).findings if x.check == "schedule"]
    assert [note.steps for note in notes] == said and not any(note.wrong for note in notes)


def test_a_schedule_that_changes_its_distance_has_no_gap(tmp_path):
    steps = [*range(0, 1000, 100), *range(1000, 7000, 500)]
    found_here = audit(empty_suite(tmp_path, steps)).findings
    assert not [x for x in found_here if x.check == "schedule"]


def test_the_table_has_the_digest_of_every_tensor(copy):
    table = audit(load_suite(copy)).tensors
    assert list(table) == ["step", "file", "tensor", "shape", "dtype", "digest"]
    for step in (0, 5000):
        rows = table[table.step == step].set_index("tensor")
        expected = {name: x for path in shards(copy / f"step{step}")
                    for name, x in load_file(path).items()}  # fmt: skip
        assert set(rows.index) == set(expected)
        for name, weight in expected.items():
            row = rows.loc[name]
            assert f"{row['shape']}:{row['dtype']}:{row['digest']}" == digest_of(weight)
            assert name in load_file(copy / f"step{step}" / row["file"])


def test_digests_are_those_that_results_record():
    result, suite = audit(load_suite(DEMO), [100]).tensors, load_suite(DEMO)
    digests = {x.tensor: f"{x.shape}:{x.dtype}:{x.digest}" for x in result.itertuples()}
    assert digests == tensor_digests(suite.step_dir(100))


def run_command(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["interp-audit", *map(str, words)])
    monkeypatch.setattr("interp.cli.shell.tune_process", lambda: None)
    code = 0
    try:
        interp_audit.main()
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def test_the_command_ends_with_0_1_or_2(copy, tmp_path, monkeypatch, capsys):
    table = tmp_path / "out.csv"
    code, said, _ = run_command(monkeypatch, capsys, "--ckpt", copy, "--out", table)
    assert code == 0 and "wrong" not in said and said.count(" ok ") == 8
    assert "suite: 6 checkpoints" in said and len(pd.read_csv(table)) > 100
    swap(copy, "step3000", "step4000")
    code, said, _ = run_command(monkeypatch, capsys, "--ckpt", copy)
    assert code == 1 and "3000, 4000" in said and "out of order" in said and "wrong" in said
    code, said, _ = run_command(monkeypatch, capsys, "--ckpt", copy, "--steps", "0,1000")
    assert code == 0
    for words, message in (
        (("--ckpt", tmp_path / "no"), "no folder"),
        (("--ckpt", copy, "--steps", "17"), "no checkpoint at step 17"),
        (("--ckpt", copy, "--out", tmp_path), "is not a file"),
    ):
        code, said, error = run_command(monkeypatch, capsys, *words)
        assert code == 2 and message in error and error.startswith("interp-audit: error: ")
        assert not said
