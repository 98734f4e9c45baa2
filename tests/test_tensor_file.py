import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.model.tensor_file import digest_of, read_tensors, to_bytes

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1.5], dtype=torch.bfloat16)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(to_bytes(TENSORS, {"format": "pt", "step": "7"}))
    return path


def test_a_file_with_a_checksum_is_read_by_everybody(path):
    for tensors in (read_tensors(path), load_file(path)):
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_the_same_tensors_make_the_same_bytes():
    assert len({to_bytes(TENSORS, {"format": "pt", "step": "7"}) for _ in range(20)}) == 1


def test_every_flipped_bit_is_noticed(path):
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            tensors = read_tensors(path)
        except ValueError as error:
            assert str(error).startswith(f"{path} is damaged")
        else:  # the word checksum itself, or a blank
            assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_a_file_of_somebody_elses_has_no_checksum_and_is_read(path):
    save_file(TENSORS, path, {"format": "pt"})
    assert torch.equal(read_tensors(path)["b"], TENSORS["b"])


def test_a_digest_is_of_shape_type_and_bytes():
    one = torch.zeros(2, 3)
    assert digest_of(one).startswith("2x3:float32:")
    others = [torch.zeros(3, 2), torch.zeros(2, 3).int(), -torch.zeros(2, 3)]
    assert len({digest_of(one), *map(digest_of, others)}) == 4
