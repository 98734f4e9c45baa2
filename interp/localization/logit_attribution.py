"""What each part of the model writes towards the right value at the answer position (direct logit
attribution, as in Elhage et al. 2021, https://transformer-circuits.pub/2021/framework).

The logit difference is linear in the residual stream once the final LayerNorm's scale is held at
that of the clean run: the parts' shares add up to it exactly. Direct effects only: a head whose
output is used by a later MLP may write nothing of it here. Correlational.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.facts import FactSet
from interp.localization.inputs import check_inputs
from interp.model.decoder import HookedDecoder
from interp.model.weights import Weights, norm_weights, widened


@dataclass(frozen=True)
class FinalRead:
    """The final LayerNorm and the unembedding as one linear map: logit of token t =
    scale · (unembed[t] · x) + constant[t], for a residual stream x or a part of one.
    """

    scale: Float[Tensor, " fact"]
    """What the norm divides the clean run's last residual stream by at the answer position, as a
    factor."""
    unembed: Float[Tensor, "d_vocab d_model"]
    constant: Float[Tensor, " d_vocab"]

    def towards_answers(self, facts: FactSet) -> Float[Tensor, "fact d_model"]:
        """The direction of the residual stream along which each fact's ``logit_diff`` grows."""
        answers, others = _first_tokens(facts, self.scale.device)
        return (self.unembed[answers] - self.unembed[others]) * self.scale[:, None]


@torch.inference_mode()
def final_directions(model: HookedDecoder, facts: FactSet) -> FinalRead:
    """The linear map from the residual stream to logits, at each fact's answer position."""
    check_inputs(model, facts)
    device, name = model.embed.weight.device, f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    _, cache = model.run_with_cache(facts.clean.to(device), names_filter=[name])
    final = cache[name][torch.arange(len(facts), device=device), facts.lengths.to(device) - 1]
    return _directions_at(model, final)


def _directions_at(model: HookedDecoder, final: Float[Tensor, "fact d_model"]) -> FinalRead:
    """The linear map, from the last residual stream at each fact's answer position."""
    weights, norm = Weights(model), model.ln_final
    factors, bias = norm_weights(norm)
    return FinalRead(
        scale=norm.factor(widened(final))[:, 0],
        unembed=norm.centred(weights.unembedding() * factors),  # as it takes the mean off
        constant=weights.unembedding() @ bias,
    )


@torch.inference_mode()
def answer_directions(model: HookedDecoder, facts: FactSet) -> Float[Tensor, "fact d_model"]:
    """The direction of the residual stream along which each fact's ``logit_diff`` grows, with the
    final LayerNorm's scale held.
    """
    return final_directions(model, facts).towards_answers(facts)


def _first_tokens(
    facts: FactSet, device: torch.device
) -> tuple[Int[Tensor, " fact"], Int[Tensor, " fact"]]:
    """Of the clean and of the corrupted answer."""
    return facts.answers[:, 0].to(device), facts.corrupted_answers[:, 0].to(device)


@torch.inference_mode()
def direct_attribution(model: HookedDecoder, facts: FactSet) -> xr.Dataset:
    """The clean run's ``logit_diff`` as the sum of the contributions that its components write at
    ``final``.

    Returns:
        ``embed`` (fact), ``head`` (layer, head, fact), ``attn_bias`` and ``mlp`` (layer, fact),
        ``constant`` (fact): nats, positive towards the clean answer; they add up to ``logit_diff``
        (fact).
    """
    check_inputs(model, facts, twins=True)
    weights, device = Weights(model), model.embed.weight.device
    layers = range(model.cfg.n_layers)
    sites = ("attn.hook_z", "hook_mlp_out")
    first = "blocks.0.hook_resid_pre"  # with what positions add
    last = f"blocks.{layers[-1]}.hook_resid_post"
    names = [first, last, *(f"blocks.{i}.{site}" for i in layers for site in sites)]
    logits, cache = model.run_with_cache(facts.clean.to(device), names_filter=names)
    row = torch.arange(len(facts), device=device)
    at = facts.lengths.to(device) - 1
    answers, others = _first_tokens(facts, device)
    read = _directions_at(model, cache[last][row, at])
    towards = read.towards_answers(facts)
    at_final = {name: widened(cache[name][row, at]) for name in names}
    z = [at_final[f"blocks.{i}.attn.hook_z"] for i in layers]
    mlp = torch.stack([at_final[f"blocks.{i}.hook_mlp_out"] for i in layers])
    written = torch.stack([weights.written_by_heads(i, z[i]) for i in layers])
    bias = torch.stack([weights.attention_bias(i) for i in layers])
    final = widened(logits[row, at])
    parts = {
        "embed": ("fact", (at_final[first] * towards).sum(-1)),
        "head": (
            ("layer", "head", "fact"),
            einsum(written, towards, "layer fact head o, fact o -> layer head fact"),
        ),
        "attn_bias": (("layer", "fact"), bias @ towards.mT),
        "mlp": (("layer", "fact"), einsum(mlp, towards, "layer fact o, fact o -> layer fact")),
        "constant": ("fact", read.constant[answers] - read.constant[others]),
        "logit_diff": ("fact", final[row, answers] - final[row, others]),
    }
    attrs = {"units": "nats", "sign": "positive towards the clean answer", "score": "correlational"}
    return xr.Dataset(
        {name: (dims, x.cpu().numpy(), attrs) for name, (dims, x) in parts.items()},
        {"attribute": ("fact", facts.texts.attribute.to_numpy(object))},
    )


@torch.inference_mode()
def copying(model: HookedDecoder, facts: FactSet) -> xr.DataArray:
    """How often a head's OV circuit, applied to the embedding of a value's first token, raises that
    value most among all values of its attribute (layer, head, attribute), as a share of the values
    in ``facts``. Coordinate ``chance`` (attribute): 1 ÷ number of values. Correlational.

    Source: Elhage et al. 2021, "Copying / primitive in-context learning"; without eigenvalues, so
    that it reads as a share.
    """
    check_inputs(model, facts)
    weights = Weights(model)
    attribute, answers = facts.texts.attribute.to_numpy(object), facts.answers[:, 0]
    unembed = final_directions(model, facts[:1]).unembed
    names, shares, chance = list(dict.fromkeys(attribute)), [], []
    for name in names:
        values = answers[torch.from_numpy(attribute == name)].unique().to(unembed.device)
        chance.append(1 / len(values))
        of_layers = []
        for layer in range(model.cfg.n_layers):
            read = weights.attention_input(layer, weights.embedding()[values])
            heads = einsum(read, weights.head_inputs(layer, "v"), "given m, h d m -> given h d")
            heads = weights.by_head(heads + weights.head_input_biases(layer, "v"))
            logits = einsum(
                heads,
                weights.head_outputs(layer),
                unembed[values],
                "given h d, h o d, value o -> h given value",
            )
            own = torch.arange(len(values), device=values.device)
            of_layers.append((logits.argmax(-1) == own).double().mean(-1))
        shares.append(torch.stack(of_layers))
    return xr.DataArray(
        np.asarray(torch.stack(shares, -1).cpu(), np.float32),
        dims=("layer", "head", "attribute"),
        coords={"attribute": names, "chance": ("attribute", chance)},
        attrs={"units": "share of values", "score": "correlational"},
    )
