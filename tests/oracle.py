"""What a user of TransformerLens would write: models, inputs and metrics by the shortest route."""

from functools import lru_cache

import torch
from torch import nn

from interp.model.decoder import DecoderConfig, HookedDecoder, initialise

HOOKS = {
    "embed": "hook_embed",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "mlp_pre": "blocks.{}.mlp.hook_pre",
    "mlp_post": "blocks.{}.mlp.hook_post",
    "z": "blocks.{}.attn.hook_z",
    "q": "blocks.{}.attn.hook_q",
    "k": "blocks.{}.attn.hook_k",
    "v": "blocks.{}.attn.hook_v",
    "rot_q": "blocks.{}.attn.hook_rot_q",
    "rot_k": "blocks.{}.attn.hook_rot_k",
    "attn_scores": "blocks.{}.attn.hook_attn_scores",
    "pattern": "blocks.{}.attn.hook_pattern",
    "edge": "blocks.{}.attn.hook_pattern",
    "knockout": "blocks.{}.attn.hook_attn_scores",
    "head_knockout": "blocks.{}.attn.hook_attn_scores",
}


GROUPED = dict(n_grouped=2, gated=True, activation="silu", norm="rms", qk_norm="head", head_width=6)
"""The shape of Qwen3: grouped keys, SwiGLU, RMSNorm, norms of queries and keys, wide heads."""
AFTER = dict(n_grouped=2, gated=True, activation="silu", norm="rms", qk_norm="all", norm_after=True)
"""The shape of OLMo-2: norms after attention and MLP, and of all queries and keys together."""


def random_model(suite, *, n_layers=3, n_heads=4, seed=1, **shape):
    """In float64, with weights so large that every cell matters."""
    d_vocab = suite.tokenizer.get_vocab_size()
    model = HookedDecoder(DecoderConfig(n_layers, n_heads, 16, 32, d_vocab, **shape))
    initialise(model, std=0.4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data.normal_(std=0.2, generator=generator)
        elif weight.ndim == 1 and shape.get("norm") == "rms":
            weight.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval().double()


def inputs(fact, direction="denoising"):
    """Tokens of the base and of the source run, with the value after them."""
    ends = [torch.cat((p, fact.answer[:-1]))[None] for p in (fact.corrupted, fact.clean)]
    return ends if direction == "denoising" else ends[::-1]


def unpatched(model, tokens):
    """Logits and activations of a run without hooks, computed once for all cells that are compared
    with it; the model must not change between calls.
    """
    return _unpatched(model, tuple(tokens[0].tolist()))


@lru_cache(maxsize=64)
def _unpatched(model: nn.Module, tokens: tuple[int, ...]):
    with torch.no_grad():
        return model.run_with_cache(torch.tensor([tokens]))


def metrics(logits, fact):
    log_p, final = logits[0].log_softmax(-1), len(fact.clean) - 1
    first = logits[0, final, fact.answer[0]] - logits[0, final, fact.corrupted_answer[0]]
    whole = sum(log_p[final + i, token] for i, token in enumerate(fact.answer))
    return [first.item(), log_p[final, fact.answer[0]].item(), whole.item()]
