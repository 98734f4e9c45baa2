"""LayerNorm and RMSNorm, with TransformerLens's hook points.

LayerNorm: (x − mean) ÷ √(variance + ε) · weight + bias,  RMSNorm: x ÷ √(mean of x² + ε) · weight
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.hook_points import HookPoint

NormKind = Literal["layer", "rms"]


class Norm(nn.Module):
    """A norm over the last axis."""

    def __init__(self, width: int, kind: NormKind, eps: float) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if kind == "layer" else None
        self.hook_scale, self.hook_normalized = HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "*cell width"]) -> Float[Tensor, "*cell width"]:
        if not (self.hook_scale.has_hooks() or self.hook_normalized.has_hooks()):
            return self.unhooked(x)
        x = self.centred(x)
        scale = self.hook_scale((x.square().mean(-1, keepdim=True) + self.eps).sqrt())
        normed = self.hook_normalized(x / scale) * self.weight
        return normed if self.bias is None else normed + self.bias

    def unhooked(self, x: Float[Tensor, "*cell width"]) -> Float[Tensor, "*cell width"]:
        """The same in one operation, without hook points."""
        if self.kind == "rms":
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def centred(self, x: Float[Tensor, "*cell width"]) -> Float[Tensor, "*cell width"]:
        """What is divided by the scale: ``x`` without its mean, or for RMSNorm ``x``."""
        return x - x.mean(-1, keepdim=True) if self.kind == "layer" else x

    def factor(self, x: Float[Tensor, "*cell width"]) -> Float[Tensor, "*cell 1"]:
        """What the norm multiplies ``centred(x)`` by, before its weight."""
        return (self.centred(x).square().mean(-1, keepdim=True) + self.eps).rsqrt()
