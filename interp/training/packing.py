"""Batches of biographies as tensors: the real tokens only, and where they lie in rows."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.data.biographies import Biographies
from interp.model.decoder import DecoderConfig, rotation
from interp.model.packed_attention import Ragged


def to_ragged(
    biographies: Biographies, cfg: DecoderConfig, device: torch.device | str
) -> tuple[Int[Tensor, " token"], Ragged]:
    """Tokens end to end, and their places in rows padded to the longest, for a model of shape
    ``cfg``.
    """
    lengths, pos = biographies.lengths, np.arange(biographies.lengths.max())
    real = pos < lengths[:, None]
    first = np.cumsum(lengths) - lengths
    token = np.where(real, first[:, None] + pos, 0)[:, None]
    qkv, head = np.arange(3), np.arange(cfg.n_heads)[:, None]
    to_rows = 3 * (token * cfg.n_heads + head) + qkv[:, None, None, None]
    to_rows = to_rows.reshape(3, -1, len(pos))
    row, column = (index[:, None, None] for index in np.nonzero(real))
    to_tokens = ((qkv * len(real) + row) * cfg.n_heads + head) * len(pos) + column
    head_real = real.repeat(cfg.n_heads, 0)[..., None].astype(np.float32)
    tokens, *places = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (biographies.tokens, to_rows, to_tokens, head_real)
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
