"""A small decoder with TransformerLens hooks; with rotary positions, saved as GPT-NeoX.

Its blocks hold weights and hook points; what is computed with them is written in ``block``. One
implementation, three uses: training runs it silently on the real tokens of a batch (``hidden``),
hooked runs fire every ``HookPoint`` (``forward``), and patching runs it at a few positions, with a
tap of its own. Pre-LayerNorm, rotary or learned positions, GELU.
"""

import re
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

from interp.model.attention import (
    Rotation,
    padded_attention,
    rotation,
    split_output_weight,
    split_qkv_weight,
)
from interp.model.block import Tap, run_block, silent
from interp.model.packed_attention import Ragged, embed, packed_attention

_IN_BLOCK = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
_IN_ATTENTION = ("q", "k", "v", "rot_q", "rot_k", "attn_scores", "pattern", "z")
HOOKS = (
    {name: f"hook_{name}" for name in _IN_BLOCK}
    | {name: f"attn.hook_{name}" for name in _IN_ATTENTION}
    | {"mlp_pre": "mlp.hook_pre", "mlp_post": "mlp.hook_post"}
)
"""A block's hook point for each name that a tap gets."""


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a ``HookedDecoder``; sizes have TransformerLens's names."""

    n_layers: int
    n_heads: int
    d_model: int
    d_mlp: int
    d_vocab: int
    n_ctx: int = 512
    parallel: bool = False
    """Attention and MLP read the same residual stream, as in Pythia."""
    rotary_dim: int | None = None
    """Rotated dimensions of a head; None rotates all of them."""
    rotary_base: float = 10_000.0
    ln_eps: float = 1e-5
    attention_bias: bool = True
    """Without, a checkpoint has no biases of attention; the model holds zeros for them."""
    learned_positions: bool = False
    """Positions have embeddings, added to those of tokens; queries and keys are not rotated."""
    gelu: Literal["none", "tanh"] = "none"
    """How the GELU is approximated, as PyTorch names it."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; change one "
                "of them"
            )
        even = self.n_rotary % 2 == 0 and 0 < self.n_rotary <= self.d_head
        if not even and not self.learned_positions:
            raise ValueError(
                f"rotary positions need an even number of dimensions up to {self.d_head}, got "
                f"{self.n_rotary}"
            )

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def n_rotary(self) -> int:
        if self.learned_positions:
            return 0
        return self.d_head if self.rotary_dim is None else self.rotary_dim

    @property
    def n_key_value_heads(self) -> int:
        return self.n_heads


class HookedDecoder(HookedRootModule):
    """Decoder-only transformer whose activations are TransformerLens hook points."""

    vocabulary: str = ""
    """Digest of the vocabulary whose tokens it reads; empty if unknown."""

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed, self.hook_embed = _embedding(cfg.d_vocab, cfg.d_model), HookPoint()
        if cfg.learned_positions:
            self.pos_embed, self.hook_pos_embed = _embedding(cfg.n_ctx, cfg.d_model), HookPoint()
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.ln_final = LayerNorm(cfg)
        self.unembed = nn.Linear(cfg.d_model, cfg.d_vocab, bias=False)
        self.setup()

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits; every hook point fires."""
        if tokens.shape[1] > self.cfg.n_ctx:
            raise ValueError(
                f"got {tokens.shape[1]} tokens, the model takes at most n_ctx = "
                f"{self.cfg.n_ctx}; shorten them"
            )
        resid = self.hook_embed(self.embed(tokens))
        if self.cfg.learned_positions:
            positions = self.pos_embed.weight[: tokens.shape[1]].expand_as(resid)
            resid = resid + self.hook_pos_embed(positions)
        return self.unembed(self.ln_final(self.from_layer(resid, 0)))

    def from_layer(
        self, resid: Float[Tensor, "batch pos d_model"], layer: int
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after the last block, from that before ``layer``; hooks fire."""
        turn = rotation(torch.arange(resid.shape[1], device=resid.device), self.cfg)
        for block in self.blocks[layer:]:
            resid = block(resid, turn)
        return resid

    def hidden(
        self, tokens: Int[Tensor, " token"], ragged: Ragged
    ) -> Float[Tensor, "token d_model"]:
        """The input of ``unembed`` at each real token of a batch. The fast path of training: hook
        points of blocks do not fire.
        """
        if self.cfg.learned_positions:
            raise ValueError("batches of biographies need a model with rotary positions")
        resid = embed(self.embed.weight, tokens)
        for block in self.blocks:
            resid = run_block(block, resid, partial(block.attn.packed, ragged=ragged), silent)
        return self.ln_final(resid)

    def to_tokens(self, *_: object, **__: object) -> None:
        """Raises a ValueError: the method belongs to TransformerLens's model protocol, but a
        ``HookedDecoder`` has no tokenizer.
        """
        raise ValueError("a HookedDecoder takes token ids; make them with suite.tokenizer")


def _embedding(n: int, d_model: int) -> nn.Embedding:
    """An embedding of ``n`` tokens or positions. On the device ``meta`` none of torch's first
    values are drawn, because drawing there takes a second to import torch's compiler.
    """
    weight = torch.empty(n, d_model)
    if weight.is_meta:
        return nn.Embedding.from_pretrained(weight, freeze=False)
    return nn.Embedding(n, d_model)


def initialise(model: HookedDecoder, *, std: float, seed: int) -> None:
    """Sets fresh weights: normal(0, std), the two projections into the residual stream smaller by
    sqrt(2·n_layers), biases 0.

    Source: Radford et al. 2019, section 2.3.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            narrow = name.endswith(("attn.out.weight", "mlp.down.weight"))
            scale = std / (2 * model.cfg.n_layers) ** 0.5 if narrow else std
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * scale)
        else:
            weight.data.fill_(float(name.endswith("weight")))


def remove(model: HookedDecoder, component: str) -> None:
    """Sets a head (L0H2) or MLP (L1-MLP) to 0. It then writes nothing and never will, because every
    gradient of its weights is 0. An MLP's output bias, the same for every token, stays.
    """
    layer, what = component[1:].replace("H", "-").split("-")
    block, n_heads = model.blocks[int(layer)], model.cfg.n_heads
    with torch.no_grad():
        if what == "MLP":
            zeros = [block.mlp.up.weight, block.mlp.up.bias, block.mlp.down.weight]
        else:
            weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
            zeros = [split_qkv_weight(x, n_heads)[:, int(what)] for x in (weight, bias)]
            zeros.append(split_output_weight(block.attn.out.weight, n_heads)[int(what)])
        for weight in zeros:
            weight.zero_()


class Block(nn.Module):
    """The weights of a block (``block.BlockWeights``) and its hook points."""

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.parallel = cfg.parallel
        self.ln1, self.attn = LayerNorm(cfg), Attention(cfg)
        self.ln2, self.mlp = LayerNorm(cfg), MLP(cfg)
        self.hook_resid_pre, self.hook_resid_post = HookPoint(), HookPoint()
        self.hook_attn_out, self.hook_mlp_out = HookPoint(), HookPoint()
        if not cfg.parallel:
            self.hook_resid_mid = HookPoint()

    def forward(
        self, resid: Float[Tensor, "batch pos d_model"], turn: Rotation
    ) -> Float[Tensor, "batch pos d_model"]:
        return run_block(self, resid, partial(self.attn, turn=turn), self.fire)

    def fire(self, name: str, x: Tensor) -> Tensor:
        """The tap of hooked runs: passes an activation through its hook point."""
        return self.get_submodule(HOOKS[name])(x)

    @property
    def out(self) -> nn.Linear:
        return self.attn.out

    @property
    def down(self) -> nn.Linear:
        return self.mlp.down

    def neurons(
        self, normed: Float[Tensor, "*cell d_model"], tap: Tap
    ) -> Float[Tensor, "*cell d_mlp"]:
        return F.gelu(tap("mlp_pre", self.mlp.up(normed)), approximate=self.mlp.gelu)


class LayerNorm(nn.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.eps = cfg.ln_eps
        self.weight = nn.Parameter(torch.ones(cfg.d_model))
        self.bias = nn.Parameter(torch.zeros(cfg.d_model))
        self.hook_scale, self.hook_normalized = HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_model"]:
        if not (self.hook_scale.has_hooks() or self.hook_normalized.has_hooks()):
            return self.unhooked(x)
        x = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((x.square().mean(-1, keepdim=True) + self.eps).sqrt())
        return self.hook_normalized(x / scale) * self.weight + self.bias

    def unhooked(self, x: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_model"]:
        """The same in one operation, without hook points."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.n_heads = cfg.n_heads
        self.qkv = nn.Linear(cfg.d_model, 3 * cfg.d_model)
        self.out = nn.Linear(cfg.d_model, cfg.d_model)
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_rot_q, self.hook_rot_k = HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern, self.hook_z = (
            HookPoint(),
            HookPoint(),
            HookPoint(),
        )

    def forward(
        self, normed: Float[Tensor, "batch pos d_model"], tap: Tap, turn: Rotation
    ) -> Float[Tensor, "batch pos d_model"]:
        """z of whole prompts, heads side by side."""
        return padded_attention(self.qkv(normed), self.n_heads, turn, tap)

    def packed(
        self, normed: Float[Tensor, "token d_model"], tap: Tap, ragged: Ragged
    ) -> Float[Tensor, "token d_model"]:
        """z of the real tokens of a batch, without taps."""
        return packed_attention(self.qkv(normed), ragged)

    def values(self, normed: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_model"]:
        """Values of every head, side by side; queries and keys are not computed."""
        weight, bias = (
            split_qkv_weight(x, self.n_heads)[2].flatten(0, 1)
            for x in (self.qkv.weight, self.qkv.bias)
        )
        return F.linear(normed, weight, bias)


class MLP(nn.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.gelu = cfg.gelu
        self.up = nn.Linear(cfg.d_model, cfg.d_mlp)
        self.down = nn.Linear(cfg.d_mlp, cfg.d_model)
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()


def device_of(device: str, *, here: bool = True) -> str:
    """``device`` itself, or for ``auto`` CUDA where there is one.

    Args:
        here: it is to be on this machine, not on one that is asked to compute.
    """
    if device not in ("auto", "cpu", "cuda") and not re.fullmatch("cuda:[0-9]{1,3}", str(device)):
        raise ValueError(f"no device {device!r}; there are auto, cpu, cuda and cuda:0, ...")
    if here and str(device).startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("no CUDA device on this machine; use --device cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def has_bf16(device: str) -> bool:
    """Whether ``device`` has bfloat16 instructions; without them, products are emulated."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
