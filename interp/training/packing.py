"""Batches of biographies as tensors: the real tokens only, and where they lie in rows."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.data.biographies import Biographies
from interp.model.attention import qkv_pieces, rotation
from interp.model.decoder import DecoderConfig
from interp.model.packed_attention import Ragged


def to_ragged(
    biographies: Biographies, cfg: DecoderConfig, device: torch.device | str
) -> tuple[Int[Tensor, " token"], Ragged]:
    """Tokens end to end, and their places in rows padded to the longest, for a model of shape
    ``cfg``.
    """
    n_heads, lengths = cfg.n_heads, biographies.lengths
    pos, pieces = np.arange(lengths.max()), qkv_pieces(n_heads)
    real = pos < lengths[:, None]
    first = np.cumsum(lengths) - lengths
    token = np.where(real, first[:, None] + pos, 0)[:, None]
    to_rows = token * pieces.size + pieces[:, None, :, None]
    heads_to_rows = token * n_heads + np.arange(n_heads)[:, None]
    row, column = (index[:, None] for index in np.nonzero(real))
    heads_to_tokens = (row * n_heads + np.arange(n_heads)) * len(pos) + column
    to_tokens = np.empty((len(row), pieces.size), np.int64)
    to_tokens[:, pieces] = heads_to_tokens[:, None] + heads_to_rows.size * np.arange(3)[:, None]
    head_real = real.repeat(n_heads, 0)[..., None].astype(np.float32)
    tokens, *places = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (
            biographies.tokens,
            to_rows.reshape(3, -1, len(pos)),
            to_tokens,
            heads_to_rows.reshape(-1, len(pos)),
            heads_to_tokens,
            head_real,
        )
    )
    future = torch.full((len(pos), len(pos)), -torch.inf, device=device).triu(1)
    turn = rotation(torch.arange(len(pos), device=device), cfg)
    return tokens, Ragged(*places, future, turn)


def next_tokens(biographies: Biographies) -> tuple[np.ndarray, np.ndarray]:
    """Target of each token, and 1 where there is one; the last token of a row has none."""
    has_next = np.ones(len(biographies.tokens), np.float32)
    has_next[np.cumsum(biographies.lengths) - 1] = 0
    return np.roll(biographies.tokens, -1), has_next


def select_rows(biographies: Biographies, first: int, end: int) -> Biographies:
    """Rows ``first`` to ``end`` − 1."""
    edge = np.concatenate(([0], np.cumsum(biographies.lengths)))
    tokens = slice(edge[first], edge[end])
    return Biographies(
        biographies.tokens[tokens],
        biographies.roles[tokens],
        biographies.attributes[tokens],
        biographies.lengths[first:end],
        biographies.people[first:end],
    )
