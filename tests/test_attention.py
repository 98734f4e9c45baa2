"""Rotary positions, the layout of heads, and attention at a few positions as at all."""

import pytest
import torch

from interp.model.attention import (
    Rotation,
    apart,
    attend,
    fused,
    qkv_pieces,
    rotate,
    rotation,
    scores,
    split_output_weight,
    split_qkv,
    split_qkv_weight,
)
from interp.model.block import silent
from interp.model.decoder import DecoderConfig


def test_rotary_angles_are_position_times_falling_frequencies():
    shape = DecoderConfig(1, 1, 4, 4, 4, rotary_base=100.0)
    turn = rotation(torch.tensor([0, 3]), shape)
    expected = torch.tensor([[1.0, 1.0], [-0.9899925, 0.9553365]])  # cos 0, cos 3 and cos 0.3
    torch.testing.assert_close(turn.cos[:, 0, 0], expected)
    torch.testing.assert_close(turn.sin[1, 0, :, 1], torch.tensor([-0.2955202, 0.2955202]))


def test_rotation_turns_a_pair_of_dimensions_by_its_angle():
    cos = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    sin = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])
    quarter = Rotation(cos, sin)  # the first pair by a right angle, the second not at all
    turned = rotate(torch.tensor([[1.0, 2.0, 3.0, 4.0, 9.0]]), quarter)
    assert turned.tolist() == [[-3.0, 2.0, 1.0, 4.0, 9.0]]


@pytest.mark.parametrize("rotary_dim", [4, 8])
def test_rotation_is_the_same_with_and_without_gradients(rotary_dim):
    shape = DecoderConfig(1, 2, 16, 4, 4, rotary_dim=rotary_dim)
    turn = rotation(torch.arange(5), shape)
    x = torch.randn(3, 5, 2, 8, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    with torch.no_grad():
        plain = rotate(x, turn)
    assert torch.equal(plain, rotate(x, turn)) and torch.equal(x, kept)
    assert not torch.equal(plain[:, 1:, :, :rotary_dim], x[:, 1:, :, :rotary_dim])
    assert torch.equal(plain[..., rotary_dim:], x[..., rotary_dim:])


def test_heads_lie_one_after_the_other_each_with_its_query_key_and_value():
    row = torch.arange(12.0)  # two heads of two dimensions
    q, k, v = split_qkv(row[None], 2, 2)
    assert q[0].tolist() == [[0, 1], [6, 7]]
    assert k[0].tolist() == [[2, 3], [8, 9]]
    assert v[0].tolist() == [[4, 5], [10, 11]]
    assert split_qkv_weight(row, 2, 2)[1].tolist() == [[2, 3], [8, 9]]
    assert qkv_pieces(2).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert split_output_weight(row[None, :4], 2).tolist() == [[[0, 1]], [[2, 3]]]


def test_split_weights_make_what_the_fused_ones_make_and_are_views_of_them():
    generator = torch.Generator().manual_seed(1)
    weight, bias, x = (torch.randn(n, generator=generator) for n in ((24, 8), (24,), (5, 8)))
    for i, part in enumerate(split_qkv(x @ weight.mT + bias, 2, 2)):
        own = torch.einsum("xm,hdm->xhd", x, split_qkv_weight(weight, 2, 2)[i])
        torch.testing.assert_close(part, own + split_qkv_weight(bias, 2, 2)[i])
    split_qkv_weight(weight, 2, 2)[2][1] = 0
    assert (weight[20:] == 0).all() and (weight[:20] != 0).all()


def test_a_group_of_heads_lies_with_the_key_and_the_value_that_it_shares():
    row = torch.arange(16.0)  # four heads of two dimensions, two keys
    q, k, v = split_qkv(row[None], 4, 2)
    assert q[0].tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
    assert k[0].tolist() == [[4, 5], [12, 13]] and v[0].tolist() == [[6, 7], [14, 15]]
    stored = apart({"blocks.0.attn.qkv.weight": row, "x": row}, 4, 2)
    assert stored["blocks.0.attn.k.weight"].tolist() == [4, 5, 12, 13]
    again = fused(stored, 2)
    assert again.keys() == {"blocks.0.attn.qkv.weight", "x"}
    assert torch.equal(again["blocks.0.attn.qkv.weight"], row)


def test_grouped_attention_is_that_of_heads_with_copies_of_their_key_and_value():
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 5, n, 4, generator=generator).double() for n in (6, 2, 2))
    k6, v6 = (x[:, :, [0, 0, 0, 1, 1, 1]] for x in (k, v))
    dest = torch.tensor([[1, 4]])
    shared, own = (attend(q[:, [1, 4]], *kv, dest, silent) for kv in ((k, v), (k6, v6)))
    torch.testing.assert_close(shared, own)
    assert (shared - attend(q[:, [1, 4]], k6.flip(2), v6, dest, silent)).abs().max() > 0.1


def test_scores_by_hand():
    q, k = torch.tensor([[[[2.0] * 4]]]), torch.tensor([[[[1.0] * 4], [[3.0] * 4], [[5.0] * 4]]])
    assert scores(q, k, torch.tensor([[1]])).tolist() == [[[[4.0, 12.0, -torch.inf]]]]
    assert scores(q, k, torch.tensor([[2]])).tolist() == [[[[4.0, 12.0, 20.0]]]]


def test_attention_at_a_few_positions_is_that_of_the_whole_prompt_there():
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(3, 7, 24, generator=generator, dtype=torch.float64)
    turn = rotation(torch.arange(7), DecoderConfig(1, 2, 8, 4, 4))
    q, k, v = split_qkv(rows, 2, 2)
    q, k = rotate(q, turn), rotate(k, turn)
    whole = attend(q, k, v, torch.arange(7)[None], silent)
    dest = torch.tensor([[0, 3], [2, 6], [5, 6]])
    row = torch.arange(3)[:, None]
    torch.testing.assert_close(attend(q[row, dest], k, v, dest, silent), whole[row, dest])
    later = attend(q[row, dest], k, v, dest + 1, silent)
    assert (later - whole[row, dest]).abs().amax(-1)[0].min() > 1e-3
