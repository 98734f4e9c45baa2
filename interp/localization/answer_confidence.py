"""How confident a model is of the first value token of each prompt, and how active its MLPs are.

Higher means more certain, or more active, in every score here. All are correlational, but for
``without_mlp``, which ablates.
"""

from functools import partial

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.facts import FactSet
from interp.localization.inputs import check_inputs, check_layer
from interp.localization.probes import PLACES, last_of_roles
from interp.model.decoder import HookedDecoder
from interp.model.model_check import check_plain
from interp.model.weights import Weights, widened

MLP_SITES = {"mlp_out": "blocks.{}.hook_mlp_out", "mlp_post": "blocks.{}.mlp.hook_post"}
FACTS_AT_ONCE = 512


@torch.inference_mode()
def answer_confidence(
    model: HookedDecoder, facts: FactSet, values: dict[str, Int[np.ndarray, " value"]]
) -> pd.DataFrame:
    """One row per fact, of the distribution p at ``final`` on the clean prompt.

    Args:
        values: by attribute, the tokens that a value can begin with.

    Returns:
        ``max_probability``; ``negative_entropy``, Σ p ln p, nats; ``logit_margin``, the difference
        of the two largest logits, nats; ``geometric_margin``, that ÷ ‖difference of the two tokens'
        unembedding vectors‖, the distance of the normalised residual stream from the plane where
        both tokens are equally likely; ``value_margin``, the logit margin among ``values`` of the
        attribute, nats. ``said``, the likeliest token; ``correct``, whether it is the first of the
        right value; ``said_value``, whether it is one of ``values``.
    """
    check_inputs(model, facts)
    logits = _final_logits(model, facts)
    vectors = Weights(model).unembedding().cpu()
    log_p = logits.log_softmax(-1)
    (best, second), (said, next_) = (x.unbind(-1) for x in logits.topk(2, -1))
    apart = (vectors[said] - vectors[next_]).norm(dim=-1)
    attribute = facts.texts.attribute.to_numpy(object)
    value_margin, is_value = np.empty(len(facts)), np.empty(len(facts), bool)
    for name in dict.fromkeys(attribute):
        at, tokens = np.flatnonzero(attribute == name), torch.from_numpy(values[name])
        top = logits[at][:, tokens].topk(2, -1).values
        value_margin[at] = (top[:, 0] - top[:, 1]).numpy()
        is_value[at] = torch.isin(said[at], tokens).numpy()
    return pd.DataFrame(
        {
            "max_probability": log_p.amax(-1).exp(),
            "negative_entropy": (log_p.exp() * log_p).sum(-1),
            "logit_margin": best - second,
            "geometric_margin": (best - second) / apart,
            "value_margin": value_margin,
            "said": said,
            "correct": said == facts.answers[:, 0],
            "said_value": is_value,
        }
    )


def _final_logits(model: HookedDecoder, facts: FactSet, hooks: tuple = ()) -> Tensor:
    """Logits at ``final`` (fact, d_vocab) in float64, on the CPU."""
    device, parts = model.embed.weight.device, []
    for part in facts.batches(FACTS_AT_ONCE):
        logits = model.run_with_hooks(
            part.clean.to(device), fwd_hooks=[hook(part) for hook in hooks]
        )
        parts.append(logits[torch.arange(len(part)), part.lengths - 1].double().cpu())
    return torch.cat(parts)


@torch.inference_mode()
def mlp_activity(model: HookedDecoder, facts: FactSet) -> xr.DataArray:
    """The norm of every MLP's output and of its neurons' activations (layer, site, role, fact) at
    the last token of each of ``PLACES``; NaN where a prompt has none.
    """
    check_plain(model)
    check_inputs(model, facts, names=True)
    device, parts = model.embed.weight.device, []
    names = [x.format(i) for i in range(model.cfg.n_layers) for x in MLP_SITES.values()]
    for part in facts.batches(FACTS_AT_ONCE):
        _, cache = model.run_with_cache(part.clean.to(device), names_filter=names)
        at = last_of_roles(part).to(device)
        row = torch.arange(len(part), device=device)
        norms = [widened(cache[name])[row, at.clamp(min=0)].norm(dim=-1) for name in names]
        parts.append(torch.stack(norms).masked_fill(at < 0, torch.nan).cpu())
    whole = torch.cat(parts, -1).unflatten(0, (model.cfg.n_layers, len(MLP_SITES)))
    return xr.DataArray(
        whole.double().numpy(),
        dims=("layer", "site", "role", "fact"),
        coords={"site": list(MLP_SITES), "role": list(PLACES)},
        name="norm",
        attrs={"score": "correlational"},
    )


@torch.inference_mode()
def without_mlp(
    model: HookedDecoder, facts: FactSet, *, layer: int, role: str
) -> Float[np.ndarray, " fact"]:
    """The maximum probability at ``final`` of each clean prompt with an MLP's output at the last
    token of ``role`` replaced by its mean over all of ``facts`` (mean ablation).

    Raises:
        ValueError: no such layer; a fact without the role.
    """
    check_inputs(model, facts, names=True)
    check_layer(model, layer)
    name, device = MLP_SITES["mlp_out"].format(layer), model.embed.weight.device
    where = last_of_roles(facts)[PLACES.index(role)]
    if (where < 0).any():
        raise ValueError(f"fact {int((where < 0).nonzero()[0])} has no {role}; leave it out")
    kept = []
    for part in facts.batches(FACTS_AT_ONCE):
        _, cache = model.run_with_cache(part.clean.to(device), names_filter=[name])
        at = last_of_roles(part)[PLACES.index(role)].to(device)
        kept.append(cache[name][torch.arange(len(part), device=device), at])
    mean = torch.cat(kept).mean(0)

    def ablate(part: FactSet) -> tuple:
        at = last_of_roles(part)[PLACES.index(role)].to(device)
        return name, partial(_replaced, at=at, by=mean)

    return _final_logits(model, facts, (ablate,)).softmax(-1).amax(-1).numpy()


def _replaced(
    activation: Float[Tensor, "fact pos d_model"],
    hook: object,
    at: Int[Tensor, " fact"],
    by: Float[Tensor, " d_model"],
) -> Float[Tensor, "fact pos d_model"]:
    changed = activation.clone()
    changed[torch.arange(len(at), device=at.device), at] = by
    return changed
