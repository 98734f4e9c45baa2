"""A decoder with TransformerLens hooks. Runs are trained and saved as GPT-NeoX; checkpoints of
other families have the same blocks with other norms, heads and non-linearities (see
``DecoderConfig``).

Its blocks hold weights and hook points; what is computed with them is written in ``block``. One
implementation, three uses: training runs it silently on the real tokens of a batch (``hidden``),
hooked runs fire every ``HookPoint`` (``forward``), and patching runs it at a few positions, with a
tap of its own.
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
    Scaling,
    attend,
    rotate,
    rotation,
    split_output_weight,
    split_qkv,
    split_qkv_weight,
)
from interp.model.block import Tap, run_block, silent
from interp.model.norm import Norm, NormKind
from interp.model.packed_attention import Ragged, embed, packed_attention

_IN_BLOCK = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
_IN_ATTENTION = ("q", "k", "v", "rot_q", "rot_k", "attn_scores", "pattern", "z")
HOOKS = (
    {name: f"hook_{name}" for name in _IN_BLOCK}
    | {name: f"attn.hook_{name}" for name in _IN_ATTENTION}
    | {"mlp_pre": "mlp.hook_pre", "mlp_post": "mlp.hook_post"}
)
"""A block's hook point for each name that a tap gets."""
Activation = Literal["gelu", "gelu_tanh", "silu"]


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
    rotary_scaling: Scaling = ()
    learned_positions: bool = False
    """Positions have embeddings, added to those of tokens; queries and keys are not rotated."""
    ln_eps: float = 1e-5
    norm: NormKind = "layer"
    norm_after: bool = False
    """Norms come after attention and MLP, on what these write, as in OLMo-2; else before them."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """Norm of queries and keys before rotation: of each head alone (Qwen3), of all heads together
    (OLMo-2)."""
    n_grouped: int = 1
    """Consecutive heads that share a key and a value (grouped-query attention)."""
    head_width: int | None = None
    """Dimensions of a head; None for d_model ÷ n_heads."""
    activation: Activation = "gelu"
    """The MLP's non-linearity; ``gelu_tanh`` is GELU's approximation by a tanh."""
    gated: bool = False
    """Neurons are multiplied by a second linear map of the MLP's input (SwiGLU)."""
    absent: tuple[str, ...] = ()
    """Ends of names of weights that checkpoints lack: biases, for which the model has zeros, and
    factors of norms, for which it has ones."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.head_width is None and self.d_model % self.n_heads:
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; change one "
                "of them"
            )
        if self.n_heads % self.n_grouped:
            raise ValueError(
                f"{self.n_heads} heads can't share keys in groups of {self.n_grouped}; the number "
                "of key and value heads must divide that of heads"
            )
        even = self.n_rotary % 2 == 0 and 0 < self.n_rotary <= self.d_head
        if not even and not self.learned_positions:
            raise ValueError(
                f"rotary positions need an even number of dimensions up to {self.d_head}, got "
                f"{self.n_rotary}"
            )

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads if self.head_width is None else self.head_width

    @property
    def n_rotary(self) -> int:
        if self.learned_positions:
            return 0
        return self.d_head if self.rotary_dim is None else self.rotary_dim

    @property
    def n_key_value_heads(self) -> int:
        return self.n_heads // self.n_grouped

    @property
    def widths(self) -> tuple[int, int, int]:
        """Numbers per token in the queries of all heads (and in z), in keys and values, and in what
        the MLP computes before its output.
        """
        of_keys = 2 * self.n_key_value_heads * self.d_head
        return self.n_heads * self.d_head, of_keys, self.d_mlp * (2 if self.gated else 1)


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
        self.ln_final = _norm(cfg)
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
            parts = (split_qkv_weight(x, n_heads, n_heads) for x in (weight, bias))
            zeros = [part[int(what)] for of in parts for part in of]
            zeros.append(split_output_weight(block.attn.out.weight, n_heads)[int(what)])
        for weight in zeros:
            weight.zero_()


class Block(nn.Module):
    """The weights of a block (``block.BlockWeights``) and its hook points."""

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.parallel, self.norm_after = cfg.parallel, cfg.norm_after
        after = "_post" if cfg.norm_after else ""
        self.add_module(f"ln1{after}", _norm(cfg))
        self.attn = Attention(cfg)
        self.add_module(f"ln2{after}", _norm(cfg))
        self.mlp = MLP(cfg)
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

    def attention_input(self, resid: Float[Tensor, "*cell d_model"]) -> Tensor:
        return resid if self.norm_after else self.ln1(resid)

    def mlp_input(self, resid: Float[Tensor, "*cell d_model"]) -> Tensor:
        return resid if self.norm_after else self.ln2(resid)

    def out(self, z: Float[Tensor, "*cell width"]) -> Float[Tensor, "*cell d_model"]:
        return self.ln1_post(self.attn.out(z)) if self.norm_after else self.attn.out(z)

    def down(self, neurons: Float[Tensor, "*cell d_mlp"]) -> Float[Tensor, "*cell d_model"]:
        return self.ln2_post(self.mlp.down(neurons)) if self.norm_after else self.mlp.down(neurons)

    def neurons(
        self, normed: Float[Tensor, "*cell d_model"], tap: Tap
    ) -> Float[Tensor, "*cell d_mlp"]:
        activated = activate(tap("mlp_pre", self.mlp.pre(normed)), self.mlp.activation)
        return activated * self.mlp.up(normed) if self.mlp.gated else activated


def activate(pre: Float[Tensor, "*cell neuron"], activation: Activation) -> Tensor:
    """Neurons after the non-linearity."""
    if activation == "silu":
        return F.silu(pre)
    return F.gelu(pre, approximate="tanh" if activation == "gelu_tanh" else "none")


def _norm(cfg: DecoderConfig) -> Norm:
    return Norm(cfg.d_model, cfg.norm, cfg.ln_eps)


class Attention(nn.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.n_heads, self.n_key_value_heads = cfg.n_heads, cfg.n_key_value_heads
        self.qkv = nn.Linear(cfg.d_model, (cfg.n_heads + 2 * cfg.n_key_value_heads) * cfg.d_head)
        self.out = nn.Linear(cfg.n_heads * cfg.d_head, cfg.d_model)
        self.qk_norm = cfg.qk_norm
        if cfg.qk_norm != "none":
            by_head = cfg.qk_norm == "head"
            widths = (1 if by_head else n for n in (self.n_heads, self.n_key_value_heads))
            self.q_norm, self.k_norm = (Norm(n * cfg.d_head, cfg.norm, cfg.ln_eps) for n in widths)
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_rot_q, self.hook_rot_k = HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern, self.hook_z = (
            HookPoint(),
            HookPoint(),
            HookPoint(),
        )

    def forward(
        self, normed: Float[Tensor, "batch pos d_model"], tap: Tap, turn: Rotation
    ) -> Float[Tensor, "batch pos width"]:
        """z of whole prompts, heads side by side. Taps: q, k, v, rot_q, rot_k, then those of
        ``attend``.
        """
        q, k, v = split_qkv(self.qkv(normed), self.n_heads, self.n_key_value_heads)
        q, k, v = tap("q", q), tap("k", k), tap("v", v)
        q, k = (rotate(self.normed(kind, x), turn) for kind, x in (("q", q), ("k", k)))
        q, k = tap("rot_q", q), tap("rot_k", k)
        return attend(q, k, v, torch.arange(normed.shape[1], device=normed.device)[None], tap)

    def normed(
        self, kind: Literal["q", "k"], x: Float[Tensor, "*cell head d_head"]
    ) -> Float[Tensor, "*cell head d_head"]:
        """Queries or keys after their norm, where they have one."""
        if self.qk_norm == "none":
            return x
        norm = self.q_norm if kind == "q" else self.k_norm
        if self.qk_norm == "head":
            return norm(x)
        return norm(x.flatten(-2)).unflatten(-1, x.shape[-2:])

    def packed(
        self, normed: Float[Tensor, "token d_model"], tap: Tap, ragged: Ragged
    ) -> Float[Tensor, "token d_model"]:
        """z of the real tokens of a batch, without taps."""
        return packed_attention(self.qkv(normed), ragged)

    def values(self, normed: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell width"]:
        """Values of every head, side by side; queries and keys are not computed."""
        weight, bias = (
            split_qkv_weight(x, self.n_heads, self.n_key_value_heads)[2].flatten(0, 1)
            for x in (self.qkv.weight, self.qkv.bias)
        )
        return F.linear(normed, weight, bias)


class MLP(nn.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.activation, self.gated = cfg.activation, cfg.gated
        self.up = nn.Linear(cfg.d_model, cfg.d_mlp)
        if cfg.gated:
            self.gate = nn.Linear(cfg.d_model, cfg.d_mlp)
        self.down = nn.Linear(cfg.d_mlp, cfg.d_model)
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def pre(self, normed: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_mlp"]:
        """What the non-linearity is applied to."""
        return self.gate(normed) if self.gated else self.up(normed)


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
