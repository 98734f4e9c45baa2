"""Batches of biographies as tensors: the real tokens only, and their places in padded rows."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.biographies import Biographies
from interp.model.attention import qkv_pieces, rotation
from interp.model.decoder import DecoderConfig
from interp.model.gpu import to_device
from interp.model.packed_attention import Ragged


def to_ragged(
    biographies: Biographies, cfg: DecoderConfig, device: torch.device | str
) -> tuple[Int[Tensor, " token"], Ragged]:
    """All tokens end to end, and their places in rows padded to the longest, for a model of shape
    ``cfg``. The places are computed on ``device``, so that only tokens and lengths are copied
    there.
    """
    n_heads, n_pos = cfg.n_heads, int(biographies.lengths.max())
    tokens, lengths, pieces = (
        to_device(x, device) for x in (biographies.tokens, biographies.lengths, qkv_pieces(n_heads))
    )
    pos, head, kind = (torch.arange(n, device=device) for n in (n_pos, n_heads, 3))
    real = pos < lengths[:, None]
    first = lengths.cumsum(0) - lengths
    token = torch.where(real, first[:, None] + pos, 0)[:, None]
    to_rows = token * pieces.numel() + pieces[:, None, :, None]
    heads_to_rows = token * n_heads + head[:, None]
    row = torch.repeat_interleave(lengths, output_size=len(tokens))
    column = torch.arange(len(tokens), device=device) - first[row]
    heads_to_tokens = (row[:, None] * n_heads + head) * n_pos + column[:, None]
    to_tokens = torch.empty((len(tokens), pieces.numel()), dtype=torch.int64, device=device)
    to_tokens[:, pieces] = heads_to_tokens[:, None] + heads_to_rows.numel() * kind[:, None]
    places = (
        to_rows.reshape(3, -1, n_pos),
        to_tokens,
        heads_to_rows.reshape(-1, n_pos),
        heads_to_tokens,
        real.repeat_interleave(n_heads, 0)[..., None].float(),
    )
    future = torch.full((n_pos, n_pos), -torch.inf, device=device).triu(1)
    return tokens, Ragged(*places, future, rotation(pos, cfg))


class Inputs(NamedTuple):
    """A batch as an optimizer step takes it."""

    tokens: Int[Tensor, " token"]
    ragged: Ragged
    target: Int[Tensor, " token"]
    """The token that comes next."""
    has_next: Float[Tensor, " token"]
    """1 where one does, 0 at the end of a biography."""


def to_inputs(biographies: Biographies, cfg: DecoderConfig, device: torch.device | str) -> Inputs:
    """A batch on ``device``, with its targets, for a model of shape ``cfg``."""
    target, has_next = (to_device(x, device) for x in next_tokens(biographies))
    return Inputs(*to_ragged(biographies, cfg, device), target, has_next)


def next_tokens(biographies: Biographies) -> tuple[np.ndarray, np.ndarray]:
    """The target of each token, and 1 where there is one; the last token of a row has none."""
    has_next = np.ones(len(biographies.tokens), np.float32)
    has_next[np.cumsum(biographies.lengths) - 1] = 0
    return np.roll(biographies.tokens, -1), has_next


def select_rows(biographies: Biographies, first: int, end: int) -> Biographies:
    """Rows ``first`` to ``end`` − 1."""
    edge = np.concatenate(([0], np.cumsum(biographies.lengths)))
    tokens = slice(edge[first], edge[end])
    return replace(
        biographies,
        tokens=biographies.tokens[tokens],
        roles=biographies.roles[tokens],
        attributes=biographies.attributes[tokens],
        lengths=biographies.lengths[first:end],
        people=biographies.people[first:end],
    )
