"""What each component writes into the residual stream."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.model.weights import Weights, widened


@torch.inference_mode()
def component_outputs(
    weights: Weights, tokens: Int[Tensor, "fact pos"]
) -> tuple[Float[Tensor, "fact pos d_vocab"], list[Float[Tensor, "fact pos d_model"]]]:
    """Logits of a run, and what its embedding (with learned positions), then every layer's heads
    and MLP, write. Attention's output biases are written by none.

    Raises:
        ValueError: the logits are not finite.
    """
    layers, names = range(weights.model.cfg.n_layers), ["blocks.0.hook_resid_pre"]
    names += [f"blocks.{i}.{x}" for i in layers for x in ("attn.hook_z", "hook_mlp_out")]
    logits, cache = weights.model.run_with_cache(tokens, names_filter=names)
    if not logits.isfinite().all():
        raise ValueError("the model's logits on these facts are not finite; load it again")
    parts = [widened(cache[names[0]])]
    for layer in layers:
        z = cache[f"blocks.{layer}.attn.hook_z"]
        parts += weights.written_by_heads(layer, z).unbind(2)
        parts.append(widened(cache[f"blocks.{layer}.hook_mlp_out"]))
    return logits, parts
