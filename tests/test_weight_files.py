import json
import shutil

import pytest
import torch
from foreign import save_steps
from safetensors.torch import load_file, save_file

from interp.model.checkpoint_io import check_checkpoint, checkpoint_sha256, read_checkpoint
from interp.model.weight_files import read_weights, stored_tensors

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The same checkpoint in one file and in several."""
    root = tmp_path_factory.mktemp("weights")
    save_steps(root / "one", ["step0"])
    save_steps(root / "several", ["step0"], shard="30kB")
    return root


@pytest.fixture
def shards(made, tmp_path):
    return shutil.copytree(made / "several" / "step0", tmp_path / "step0")


def first_and_last(folder):
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 2
    return files[0], files[-1]


def change(path, what):
    weights = load_file(path)
    what(weights)
    save_file(weights, path, {"format": "pt"})


def test_several_files_hold_the_same_as_one(made, shards):
    one, several = read_weights(made / "one" / "step0"), read_weights(shards)
    assert one.keys() == several.keys() == stored_tensors(shards).keys()
    assert all(torch.equal(one[name], several[name]) for name in one)
    for name, stored in stored_tensors(shards).items():
        assert stored.shape == tuple(one[name].shape) and stored.dtype == "F32"
        assert name in load_file(stored.path)
    same = [read_checkpoint(x).state_dict() for x in (made / "one" / "step0", shards)]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])


def test_weights_are_mapped_and_not_copied(made):
    path = made / "one" / "step0" / "model.safetensors"
    content, weight = path.read_bytes(), read_weights(path.parent)["embed_out.weight"]
    at = content.index(weight.numpy().tobytes())
    changed = bytearray(content)
    changed[at : at + 4] = torch.tensor([7.5]).numpy().tobytes()
    with path.open("r+b") as file:
        file.write(changed)
    assert float(weight.flatten()[0]) == 7.5, "a mapped page shows what is written to the file"
    path.write_bytes(content)


def test_checking_reads_no_numbers(shards, monkeypatch):
    monkeypatch.setattr("interp.model.weight_files.read_tensors", None)
    assert check_checkpoint(shards).n_layers == 2


def test_a_shard_that_is_not_there_is_named(shards):
    _, last = first_and_last(shards)
    last.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {last.name} in .*though {INDEX} lists it"):
        read_checkpoint(shards)
    last.symlink_to("../blobs/1f")
    with pytest.raises(FileNotFoundError, match=rf"{last.name} is a link to \.\./blobs/1f, which"):
        read_checkpoint(shards)


def test_a_tensor_that_is_not_in_its_shard_is_named(shards):
    first, _ = first_and_last(shards)
    name = min(load_file(first))
    change(first, lambda weights: weights.pop(name))
    for read in (read_checkpoint, check_checkpoint, read_weights):
        with pytest.raises(ValueError, match=f"{first.name} lacks {name}, which {INDEX} says"):
            read(shards)


def test_a_tensor_in_two_shards_is_named(shards):
    first, last = first_and_last(shards)
    name = min(load_file(first))
    change(last, lambda weights: weights.update({name: torch.ones(2)}))
    with pytest.raises(ValueError, match=f"{last.name} holds {name}, which {INDEX} does not say"):
        read_checkpoint(shards)


def test_a_shard_too_many_is_named(shards):
    shutil.copy(first_and_last(shards)[0], shards / "model-00009-of-00009.safetensors")
    with pytest.raises(ValueError, match=f"00009.safetensors stands beside {INDEX}, and it is unk"):
        read_checkpoint(shards)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "it has no weight_map"),
        ({"weight_map": []}, "it has no weight_map"),
        ({"weight_map": {"a": "../model.safetensors"}}, r"a is in '\.\./model.safetensors'"),
        ({"weight_map": {"a": 1}}, "a is in 1"),
    ],
)
def test_a_damaged_index_is_named(shards, content, message):
    (shards / INDEX).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{INDEX} is damaged \({message}\)"):
        read_checkpoint(shards)


def test_one_file_beside_an_index_is_refused(made, shards):
    shutil.copy(made / "one" / "step0" / "model.safetensors", shards)
    with pytest.raises(ValueError, match=f"model.safetensors stands beside {INDEX}"):
        read_checkpoint(shards)


def test_the_digest_covers_every_shard_and_the_config(shards):
    digests = {checkpoint_sha256(shards)}
    for path in first_and_last(shards):
        change(path, lambda weights: weights[min(weights)].neg_())
        digests.add(checkpoint_sha256(shards))
    (shards / "config.json").write_text("{}")
    assert len(digests | {checkpoint_sha256(shards)}) == 4


def test_the_digest_of_one_file_is_that_of_its_bytes_as_it_was(made):
    import hashlib

    folder = made / "one" / "step0"
    content = (folder / "config.json").read_bytes() + (folder / "model.safetensors").read_bytes()
    assert checkpoint_sha256(folder) == hashlib.sha256(content).hexdigest()
