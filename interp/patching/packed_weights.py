"""A decoder's weights laid out for fast products, and its block computed with them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.model.attention import Rotation, rotate, rotation, scores, split_qkv_weight
from interp.model.block import Tap, silent
from interp.model.decoder import Block, DecoderConfig, HookedDecoder, activate
from interp.patching.tensor_ops import Linear


class PackedBlock:
    """The matrix products of a block. Keys and values can also be computed without queries, which
    the last layer needs at fewer positions.
    """

    def __init__(self, block: Block) -> None:
        attention, mlp = block.attn, block.mlp
        self.block, self.parallel, self.norm_after = block, block.parallel, block.norm_after
        self.normed_together = attention.qk_norm == "all"
        self.n_heads, self.d_head = (
            attention.n_heads,
            attention.out.in_features // attention.n_heads,
        )
        self.counts = {"q": self.n_heads} | dict.fromkeys("kv", attention.n_key_value_heads)
        weights, biases = (
            [part.flatten(0, 1) for part in split_qkv_weight(x, self.n_heads, self.counts["k"])]
            for x in (attention.qkv.weight, attention.qkv.bias)
        )
        self.qkv = Linear(torch.cat(weights), torch.cat(biases))
        self.q = Linear(weights[0], biases[0])
        self.kv = Linear(torch.cat(weights[1:]), torch.cat(biases[1:]))
        self.head_out = Linear(attention.out.weight, attention.out.bias)
        self.up = Linear(mlp.up.weight, mlp.up.bias)
        self.gate = Linear(mlp.gate.weight, mlp.gate.bias) if mlp.gated else None
        self.neuron_out = Linear(mlp.down.weight, mlp.down.bias)

    def attention_input(self, resid: Float[Tensor, "*cell d_model"]) -> Tensor:
        return resid if self.norm_after else self.block.ln1.unhooked(resid)

    def mlp_input(self, resid: Float[Tensor, "*cell d_model"]) -> Tensor:
        return resid if self.norm_after else self.block.ln2.unhooked(resid)

    def out(self, z: Float[Tensor, "*cell width"]) -> Float[Tensor, "*cell d_model"]:
        """What attention writes."""
        written = self.head_out(z)
        return self.block.ln1_post.unhooked(written) if self.norm_after else written

    def down(self, neurons: Float[Tensor, "*cell d_mlp"]) -> Float[Tensor, "*cell d_model"]:
        """What the MLP writes."""
        written = self.neuron_out(neurons)
        return self.block.ln2_post.unhooked(written) if self.norm_after else written

    def heads(
        self,
        resid: Float[Tensor, "*cell d_model"],
        turn: Rotation,
        tap: Tap = silent,
        *,
        kinds: str = "qkv",
    ) -> tuple[Tensor, ...]:
        """Rotated queries and keys, and values (*cell, head, d_head), of the residual stream before
        the block at positions whose angles are ``turn``.
        """
        product: Linear = getattr(self, kinds)
        heads = product(self.attention_input(resid)).unflatten(-1, (-1, self.d_head))
        counts = [self.counts[kind] for kind in kinds]
        computed = dict(zip(kinds, heads.split(counts, -2)))
        parts = {kind: tap(kind, x) for kind, x in computed.items()}
        turned = kinds.replace("v", "")
        if self.block.attn.qk_norm != "none":
            x = torch.cat([self.normed(kind, parts[kind]) for kind in turned], -2)
        elif any(parts[kind] is not computed[kind] for kind in turned):
            x = torch.cat([parts[kind] for kind in turned], -2)
        else:
            x = heads[..., : sum(counts[: len(turned)]), :]
        rotated = rotate(x, turn).split(counts[: len(turned)], -2)
        parts |= {kind: tap(f"rot_{kind}", x) for kind, x in zip(turned, rotated)}
        return tuple(parts[kind] for kind in kinds)

    def normed(self, kind: str, x: Float[Tensor, "*cell head d_head"]) -> Tensor:
        """Queries or keys after their norm, where they have one."""
        return self.block.attn.normed(kind, x)

    def neurons(self, normed: Float[Tensor, "*cell d_model"], tap: Tap) -> Tensor:
        """Activations of the MLP's neurons."""
        inner, act = self.gate or self.up, self.block.mlp.activation
        if tap is silent or "mlp_pre" not in getattr(tap, "names", ("mlp_pre",)):
            activated = inner(normed, activation=act)  # in one operation
        else:
            activated = activate(tap("mlp_pre", inner(normed)), act)
        return activated if self.gate is None else activated * self.up(normed)

    def from_pre(
        self, pre: Float[Tensor, "*cell neuron"], mid: Float[Tensor, "*cell d_model"], units: slice
    ) -> Float[Tensor, "*cell neuron"]:
        """Activations of some neurons, given what their non-linearity is applied to and the
        residual stream that the MLP reads.
        """
        activated = activate(pre, self.block.mlp.activation)
        return (
            activated if self.gate is None else activated * self.up(self.mlp_input(mid))[..., units]
        )

    def mlp(self, mid: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_model"]:
        """``mlp_out`` from the residual stream that the MLP reads."""
        return self.down(self.neurons(self.mlp_input(mid), silent))


@dataclass(frozen=True)
class PackedModel:
    """The weights of a ``HookedDecoder``."""

    cfg: DecoderConfig
    blocks: list[PackedBlock]
    embedding: Float[Tensor, "d_vocab d_model"]
    positions: Float[Tensor, "pos d_model"] | None
    """What is added to token embeddings, if positions are learned."""
    ln_final: Callable[[Tensor], Tensor]
    unembed: Linear
    turn: Rotation
    """Of every position that is used."""

    def at_positions(
        self, embedded: Float[Tensor, "*cell d_model"], pos: Int[Tensor, "*cell"]
    ) -> Float[Tensor, "*cell d_model"]:
        """The residual stream before the first block, given token embeddings."""
        return embedded if self.positions is None else embedded + self.positions[pos]

    def logits(self, resid: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_vocab"]:
        """Logits of the last residual stream."""
        return self.unembed(self.ln_final(resid))

    def turn_at(self, pos: Int[Tensor, "*cell"]) -> Rotation:
        """Rotary angles of positions."""
        return Rotation(*(table[pos] for table in self.turn))

    def rotated(self, layer: int, kind: str, x: Float[Tensor, "fact pos head d_head"]) -> Tensor:
        """Queries or keys of whole prompts, after their norm and rotated to their positions."""
        turn = Rotation(*(table[: x.shape[1]] for table in self.turn))
        return rotate(self.blocks[layer].normed(kind, x), turn)


def pack(model: HookedDecoder, n_pos: int) -> PackedModel:
    """Weights for prompts of at most ``n_pos`` tokens."""
    weight = model.embed.weight
    turn = rotation(torch.arange(n_pos, device=weight.device), model.cfg)
    return PackedModel(
        model.cfg,
        [PackedBlock(block) for block in model.blocks],
        weight.detach(),
        model.pos_embed.weight.detach() if model.cfg.learned_positions else None,
        model.ln_final.unhooked,
        Linear(model.unembed.weight),
        Rotation(*(table.to(weight.dtype) for table in turn)),
    )


def all_scores(
    q: Float[Tensor, "fact pos head d_head"], k: Float[Tensor, "fact pos key_value_head d_head"]
) -> Float[Tensor, "fact head dest src"]:
    """Attention scores of whole prompts."""
    return scores(q, k, torch.arange(q.shape[1], device=q.device)[None])
