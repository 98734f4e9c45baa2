import json
import os
import pickle
import shutil

import pytest
import torch
from foreign import as_hub_cache, random_model, save_steps, tokenizer_file
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from interp.cli import interp_convert
from interp.model.convert_weights import convert_checkpoint
from interp.suite import load_suite

FAMILIES = ("gpt_neox", "gpt2", "llama")


def pickled(folder, *, n_files=1, legacy=False):
    """The weights of a safetensors checkpoint as pickles instead."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    if n_files == 1:
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
        return weights
    places = {}
    for i in range(n_files):
        file = f"pytorch_model-{i + 1:05}-of-{n_files:05}.bin"
        torch.save({name: weights[name] for name in names[i::n_files]}, folder / file)
        places |= dict.fromkeys(names[i::n_files], file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return weights


@pytest.fixture(params=FAMILIES)
def checkpoint(request, tmp_path):
    return save_steps(tmp_path, ["checkpoint-5"], family=request.param) / "checkpoint-5"


def logits(path):
    model = AutoModelForCausalLM.from_pretrained(path)
    return model(torch.arange(12)[None]).logits


@pytest.mark.parametrize("how", [{}, {"legacy": True}, {"n_files": 3}])
def test_a_converted_checkpoint_is_the_same_model(checkpoint, tmp_path, how):
    before = logits(checkpoint)
    weights = pickled(checkpoint, **how)
    tokenizer_file(checkpoint)
    assert convert_checkpoint(checkpoint, tmp_path / "new")
    files = sorted((tmp_path / "new").glob("*.safetensors"))
    assert len(files) == how.get("n_files", 1) and not list((tmp_path / "new").glob("*.bin"))
    read = {name: x for file in files for name, x in load_file(file).items()}
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert torch.equal(logits(tmp_path / "new"), before)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "new" / name).read_bytes() == (checkpoint / name).read_bytes()
    assert not list(tmp_path.glob(".*.tmp"))


def test_tensors_that_share_memory_are_each_written(tmp_path):
    model = random_model("gpt2")
    model.config.save_pretrained(tmp_path / "tied")
    state = model.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
    both = torch.arange(6.0)
    state |= {"transformer.part": both[:4], "transformer.other": both[2:]}
    torch.save(state, tmp_path / "tied" / "pytorch_model.bin")
    convert_checkpoint(tmp_path / "tied", tmp_path / "new")
    read = load_file(tmp_path / "new" / "model.safetensors")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_a_tied_model_loads_after_conversion(tmp_path):
    model = random_model("gpt2")
    model.config.save_pretrained(tmp_path / "tied")
    torch.save(model.state_dict(), tmp_path / "tied" / "pytorch_model.bin")
    convert_checkpoint(tmp_path / "tied", tmp_path / "new")
    ours = load_suite(tmp_path / "new").load(0)
    tokens = torch.arange(12)[None]
    assert torch.allclose(ours(tokens), model.eval()(tokens).logits, atol=1e-5)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_pickle_is_never_run(tmp_path):
    folder = save_steps(tmp_path, ["step1"]) / "step1"
    weights = pickled(folder)
    torch.save(weights | {"trap": Trap(tmp_path / "made")}, folder / "pytorch_model.bin")
    torch.load(folder / "pytorch_model.bin", weights_only=False)["trap"].close()
    assert (tmp_path / "made").exists()  # the trap works
    (tmp_path / "made").unlink()
    for write in (
        lambda: None,
        lambda: (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "made"))),
    ):
        write()
        with pytest.raises(ValueError, match=r"pytorch_model.bin is damaged, or holds more than"):
            convert_checkpoint(folder, tmp_path / "new")
    assert not (tmp_path / "made").exists() and not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds no tensors by name"),
        ({}, "holds no tensors by name"),
        ({"state_dict": {"a": torch.ones(2)}}, "holds 'state_dict', a dict; save the model's"),
        ({"step": 7}, "holds 'step', a int"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, message):
    folder = save_steps(tmp_path, ["step1"]) / "step1"
    pickled(folder)
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(folder, tmp_path / "new")


def test_a_cut_pickle_is_named(tmp_path):
    folder = save_steps(tmp_path, ["step1"]) / "step1"
    pickled(folder)
    path = folder / "pytorch_model.bin"
    content = path.read_bytes()
    for n in (0, 1, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:n])
        with pytest.raises(ValueError, match=r"pytorch_model.bin is damaged, or holds more"):
            convert_checkpoint(folder, tmp_path / "new")


def test_an_index_that_does_not_agree_with_its_files_is_refused(tmp_path):
    folder = save_steps(tmp_path, ["step1"]) / "step1"
    pickled(folder, n_files=3)
    shards = sorted(folder.glob("pytorch_model-*.bin"))
    content = torch.load(shards[0])
    name = min(content)
    torch.save({x: y for x, y in content.items() if x != name}, shards[0])
    with pytest.raises(ValueError, match=f"{shards[0].name} and .* don't agree about {name}"):
        convert_checkpoint(folder, tmp_path / "new")
    torch.save(content, shards[0])
    shutil.copy(shards[0], folder / "pytorch_model-00009-of-00009.bin")
    with pytest.raises(ValueError, match=r"00009.bin is not among the weights that the index"):
        convert_checkpoint(folder, tmp_path / "new")
    (folder / "pytorch_model-00009-of-00009.bin").unlink()
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {shards[1].name} in .*, though"):
        convert_checkpoint(folder, tmp_path / "new")


def convert(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["interp-convert", *map(str, words)])
    monkeypatch.setattr("interp.cli.shell.tune_process", lambda: None)
    interp_convert.main()


@pytest.fixture
def suite_of_pickles(tmp_path):
    labels = ("checkpoint-10", "checkpoint-20", "checkpoint-30")
    folder = save_steps(tmp_path / "run", labels, family="llama")
    for label in labels[1:]:
        pickled(folder / label)
    tokenizer_file(folder)
    (folder / "checkpoint-20" / "optimizer.pt").write_text("")
    return folder


def test_a_whole_suite_is_converted_and_gone_on_with(
    suite_of_pickles, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    convert(monkeypatch, "--ckpt", suite_of_pickles, "--out", out, "--steps", "20")
    assert capsys.readouterr().out == f"1 checkpoint written to {out}\n"
    assert not (out / "checkpoint-20" / "optimizer.pt").exists()
    (out / "checkpoint-20" / "mine").write_text("")
    convert(monkeypatch, "--ckpt", suite_of_pickles, "--out", out)
    assert "2 checkpoints written to" in (said := capsys.readouterr().out)
    assert "1 were there already" in said and (out / "checkpoint-20" / "mine").exists()
    assert load_suite(out).steps == [10, 20, 30] and load_suite(out).tokenizer
    assert torch.equal(
        torch.load(suite_of_pickles / "checkpoint-30" / "pytorch_model.bin")["lm_head.weight"],
        load_file(out / "checkpoint-30" / "model.safetensors")["lm_head.weight"],
    )
    source, target = (x / "checkpoint-10" / "model.safetensors" for x in (suite_of_pickles, out))
    assert source.read_bytes() == target.read_bytes()


def test_the_hubs_cache_is_converted_to_folders_of_steps(tmp_path, monkeypatch, capsys):
    steps = save_steps(tmp_path / "plain", ["step0", "step1000"])
    for step in ("step0", "step1000"):
        pickled(steps / step, n_files=2)
    cache = as_hub_cache(steps, tmp_path / "models--org--tiny")
    convert(monkeypatch, "--ckpt", cache, "--out", tmp_path / "tiny")
    suite = load_suite(tmp_path / "tiny")
    assert suite.steps == [0, 1000] and suite.step_dir(1000).name == "step1000"
    assert not any(path.is_symlink() for path in (tmp_path / "tiny").rglob("*"))
    assert suite.load(1000).cfg.n_layers == 2


def test_another_checkpoint_is_never_replaced(suite_of_pickles, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    one = suite_of_pickles / "checkpoint-20"
    for out in (tmp_path / "out", one, suite_of_pickles):
        with pytest.raises(SystemExit) as end:
            convert(monkeypatch, "--ckpt", one, "--out", out)
        assert end.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert "holds something else; choose another --out" in said[0]
    assert "the checkpoints themselves" in said[1] and "the checkpoints themselves" in said[2]


def test_a_kill_leaves_no_half_written_folder(suite_of_pickles, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(suite_of_pickles / "checkpoint-20", tmp_path / "out" / "new")
    assert list((tmp_path / "out").iterdir()) == []
