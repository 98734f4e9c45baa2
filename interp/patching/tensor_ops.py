"""Tensor operations of patching, each in the form that is fastest on the machine at hand."""

import os

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from interp.model.decoder import Activation, activate, has_bf16
from interp.model.flop_count import add_flops

# oneDNN keeps half a megabyte for every number of rows that a product has had, 1,024 of them in
# each of two caches. A sweep comes back to fewer. Read when oneDNN is first used.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "160")

_AFTER = {
    None: ("none", [], ""),
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
    "silu": ("swish", [], ""),
}
"""oneDNN's names of what follows a product."""


def padded_index(index: np.ndarray) -> np.ndarray:
    """``index`` padded to one of few lengths, at most an eighth longer: oneDNN takes about 0.2 ms
    to prepare a product for each new number of rows. Entries from all over it are repeated, so that
    no fact gets many more rows than others.
    """
    n = len(index)
    more = np.linspace(0, n - 1, _round_up(n) - n).astype(int)
    return np.append(index, index[more])


def _round_up(n: int) -> int:
    step = max(1, 1 << n.bit_length() >> 4)
    return -(-n // step) * step


class Linear:
    """``x @ weight.T + bias`` for inference, with the weight laid out once for oneDNN.

    Its fp32 products use vector units that torch's default BLAS leaves idle on some CPUs, and are
    more than twice as fast there. Elsewhere ``torch.nn.functional.linear``; equal to rounding.
    """

    def __init__(
        self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None = None
    ) -> None:
        self.weight = weight.detach().contiguous()
        self.bias = None if bias is None else bias.detach().contiguous()
        packable = weight.device.type == "cpu" and (
            (weight.dtype == torch.float32 and torch.backends.mkldnn.is_available())
            or (weight.dtype == torch.bfloat16 and has_bf16("cpu"))
        )
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight) if packable else None

    def __call__(
        self, x: Float[Tensor, "*cell in"], *, activation: Activation | None = None
    ) -> Float[Tensor, "*cell out"]:
        """The product; with ``activation`` after it."""
        add_flops(2 * x.numel() * len(self.weight))
        if self.packed is None:
            out = F.linear(x, self.weight, self.bias)
            return out if activation is None else activate(out, activation)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *_AFTER[activation])


def put(
    x: Float[Tensor, "row dest *rest"],
    dest: Int[Tensor, "row dest"],
    row: Int[Tensor, " change"],
    pos: Int[Tensor, " change"],
    new: Float[Tensor, "change *rest"],
) -> int:
    """Writes ``new`` into ``x`` at the rows and positions that ``dest`` holds, which are
    consecutive; returns how many it wrote.
    """
    if dest.shape[1] == 0 or len(row) == 0:
        return 0
    at = pos - dest[row, 0]
    inside = ((at >= 0) & (at < dest.shape[1])).nonzero()[:, 0]
    x[row[inside], at[inside]] = new[inside]
    return len(inside)


def with_rows(
    base: Float[Tensor, "fact pos head d_head"],
    fact: Int[Tensor, " row"],
    row: Int[Tensor, "*change"],
    pos: Int[Tensor, "*change"],
    new: Float[Tensor, "*change head d_head"],
) -> Float[Tensor, "row pos head d_head"]:
    """``base`` of each row's fact, with ``new`` at the given rows and positions."""
    out = base.flatten(2).index_select(0, fact)
    flat = (row * out.shape[1] + pos).flatten()
    out.flatten(0, 1).index_copy_(0, flat, new.reshape(len(flat), -1))
    return out.unflatten(2, base.shape[2:])
