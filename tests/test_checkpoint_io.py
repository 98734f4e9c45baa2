import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.model.checkpoint_io import checkpoint_sha256, read_checkpoint, write_checkpoint


@pytest.fixture
def step(suite, tmp_path):
    """A copy of a step folder, to be damaged."""
    return shutil.copytree(suite.step_dir(30), tmp_path / "step-000030")


def rewrite(step, change):
    weights = load_file(step / "model.safetensors")
    change(weights)
    save_file(weights, step / "model.safetensors")


def test_weights_come_back_as_they_were_written(model, tmp_path):
    write_checkpoint(model, tmp_path / "step", dtype=torch.float32)
    again = read_checkpoint(tmp_path / "step")
    assert again.cfg == model.cfg and not again.training
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_bfloat16_on_disk_is_the_rounded_weight_in_float32(model, tmp_path):
    write_checkpoint(model, tmp_path / "step", dtype=torch.bfloat16)
    weight = read_checkpoint(tmp_path / "step").unembed.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model.unembed.weight.bfloat16().float())


def test_writing_replaces_a_folder_and_leaves_nothing_beside_it(model, step):
    before = checkpoint_sha256(step)
    write_checkpoint(model, step, dtype=torch.float32)
    assert checkpoint_sha256(step) != before
    assert [path.name for path in step.parent.iterdir()] == ["step-000030"]


def test_a_truncated_file_is_refused_by_name(step):
    path = step / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        read_checkpoint(step)


def test_a_nan_is_refused_with_the_name_of_its_weight(step):
    def poison(weights):
        weights["embed_out.weight"][3, 4] = torch.nan

    rewrite(step, poison)
    with pytest.raises(ValueError, match=r"embed_out.weight holds NaN"):
        read_checkpoint(step)


def test_a_missing_weight_is_refused(step):
    rewrite(step, lambda weights: weights.pop("gpt_neox.final_layer_norm.bias"))
    with pytest.raises(
        ValueError, match=r"incomplete: 1 weights are missing, gpt_neox.final_layer"
    ):
        read_checkpoint(step)


def test_a_weight_of_another_shape_is_refused(step):
    def cut(weights):
        weights["embed_out.weight"] = weights["embed_out.weight"][:-1].clone()

    rewrite(step, cut)
    with pytest.raises(
        ValueError, match=r"embed_out.weight has shape .* config.json implies shape"
    ):
        read_checkpoint(step)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_half_copied_folder_is_refused(step, name):
    (step / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name} in"):
        read_checkpoint(step)


def test_a_damaged_configuration_is_refused(step):
    (step / "config.json").write_text('{"model_type": "gpt_neox", ')
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        read_checkpoint(step)
