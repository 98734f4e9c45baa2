"""Attention patching: training with the attention patterns of a reference checkpoint (arXiv
2503.21676, section 4.2; not the patching of activations).

At every step the reference sees the same batch, and layer by layer its softmax patterns take the
place of the trained model's own, without gradient: the model learns values, outputs, MLPs,
embeddings and norms, but no queries and keys. One pass computes both side by side. The reference
is not run further than its last patterns.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.model.block import Tap, run_block, silent
from interp.model.decoder import Block, HookedDecoder
from interp.model.packed_attention import Ragged, embed, mix, patterns


def patched_hidden(
    model: HookedDecoder, reference: HookedDecoder, tokens: Int[Tensor, " token"], ragged: Ragged
) -> Float[Tensor, "token d_model"]:
    """The input of ``model.unembed`` at each real token, with the attention patterns of
    ``reference``.
    """
    resid, theirs = embed(model.embed.weight, tokens), reference.embed.weight[tokens]
    last = len(model.blocks) - 1
    for layer, (block, other) in enumerate(zip(model.blocks, reference.blocks)):
        with torch.no_grad():
            pattern = patterns(other.attn.qkv(other.attention_input(theirs)), ragged)
            if layer < last:
                theirs = _after(other, theirs, pattern, ragged)
        resid = _after(block, resid, pattern, ragged)
    return model.ln_final(resid)


def _after(
    block: Block,
    resid: Float[Tensor, "token d_model"],
    pattern: Float[Tensor, "batch_head dest src"],
    ragged: Ragged,
) -> Float[Tensor, "token d_model"]:
    """The residual stream after a block with given patterns."""

    def attention(normed: Tensor, tap: Tap) -> Tensor:
        return mix(block.attn.values(normed), pattern, ragged)

    return run_block(block, resid, attention, silent)
