"""How few neurons carry a fact, and whether facts share them (knowledge neurons: Dai et al. 2022,
https://arxiv.org/abs/2104.08696; key–value memories: Geva et al. 2021,
https://arxiv.org/abs/2012.14913).

Statistics of effects (neuron…, fact), nats: all dims but ``fact`` together name a neuron. They are
``interp.effect`` of ``interp.patch(model, facts, site="mlp_post", n_neurons=1, groups=("final",),
direction="noising", whole_value=False)``, or what ``written`` returns.

Few neurons a fact is no evidence that they are its own: some serve every fact. Compare ``sharing``
with chance and with relabelled facts. Neurons changed one at a time miss what others make up for.
"""

import numpy as np
import torch
import xarray as xr
from einops import einsum
from jaxtyping import Bool, Float

from interp.data.facts import FactSet
from interp.localization.inputs import check_inputs, check_layer
from interp.localization.logit_attribution import answer_directions
from interp.model.decoder import HookedDecoder
from interp.model.weights import Weights, widened

RELATIONS = ("any", "same_value", "same_attribute", "same_person", "none")
TEXTS = ("person", "corrupted_person", "attribute", "answer", "corrupted_answer")


def gini(effect: xr.DataArray) -> xr.DataArray:
    """How unequally |effect| is spread over the n neurons (fact): 0 = evenly, 1 − 1/n = on one; NaN
    where every effect is 0.

    G = Σ (2i − n − 1) x_i ÷ (n Σ x_i), x = |effect| in rising order, i = 1 … n (Hurley and Rickard
    2009, https://arxiv.org/abs/0811.4706).
    """
    x = np.sort(np.abs(_flat(effect)), axis=0)
    n = len(x)
    weight = 2 * np.arange(1, n + 1) - n - 1
    return _per_fact(effect, _ratio(weight @ x, n * x.sum(0)), "Gini coefficient", "1")


def effective_number(effect: xr.DataArray) -> xr.DataArray:
    """How many neurons of one size would spread |effect| as widely (fact): (Σ|e|)² ÷ Σe², 1 = one,
    n = all alike; NaN where every effect is 0.

    The Hill number of order 2 of the shares |e| ÷ Σ|e| (Hill 1973,
    https://doi.org/10.2307/1934352).
    """
    x = np.abs(_flat(effect))
    number = _ratio(x.sum(0) ** 2, np.square(x).sum(0))
    return _per_fact(effect, number, "effective number of neurons", "neurons")


def top_neurons(effect: xr.DataArray, *, k: int = 10) -> xr.Dataset:
    """The ``k`` neurons of largest |effect| of each fact, largest first: ``effect`` (rank, fact),
    nats and signed, and a variable with the label in each of the neuron's dims.
    """
    order = _order(effect, k)
    stacked = effect.stack(place=_dims(effect)).transpose("place", "fact")
    found = {name: stacked[name].values[order] for name in _dims(effect)}
    found["effect"] = np.take_along_axis(stacked.values, order, 0)
    return xr.Dataset(
        {name: (("rank", "fact"), x) for name, x in found.items()},
        {"rank": np.arange(1, k + 1)} | _fact_coords(effect),
    )


def sharing(effect: xr.DataArray, *, k: int = 10, n_draws: int = 200, seed: int = 0) -> xr.Dataset:
    """The share of two facts' top ``k`` neurons that they have in common.

    Pairs of facts are of one relation each: ``same_value``, in whatever attribute;
    ``same_attribute`` with other values; ``same_person`` with other attributes and values; or
    ``none``. ``any`` is all of them.

    Returns:
        ``overlap`` (relation): mean over pairs of |top ∩ top'| ÷ k, NaN where there is no pair.
        ``n_pairs`` (relation). ``low``, ``high`` (relation): 95% of what ``overlap`` is once the
        facts' labels are dealt out anew, each fact keeping its neurons; outside them the relation
        matters. ``chance``: k ÷ n, the hypergeometric mean k² ÷ n over k, as if every neuron of
        the n were as likely; above it some serve many facts. ``n_facts`` (neuron…): facts in whose
        top k the neuron is.

    Raises:
        ValueError: fewer than 2 facts; they lack person, attribute or answer; k is not 1 to n.
    """
    order, n = _order(effect, k), _flat(effect).shape
    top = np.zeros(n, bool)
    np.put_along_axis(top, order, True, 0)
    overlap = top.T.astype(float) @ top / k
    relations = _relations(effect)
    rng = np.random.default_rng([seed, 12])
    deals = [rng.permutation(n[1]) for _ in range(n_draws)]
    dealt = np.stack([_means(overlap[np.ix_(deal, deal)], relations) for deal in deals])
    low, high = np.quantile(dealt, [0.025, 0.975], axis=0)
    share = {"units": "share of the top k", "k": k}
    sizes = [effect.sizes[name] for name in _dims(effect)]
    return xr.Dataset(
        {
            "overlap": ("relation", _means(overlap, relations), share),
            "n_pairs": ("relation", relations.sum((1, 2))),
            "low": ("relation", low, share),
            "high": ("relation", high, share),
            "chance": ((), k / n[0], share),
            "n_facts": (_dims(effect), top.sum(1).reshape(sizes), {"units": "facts", "k": k}),
        },
        {"relation": list(RELATIONS)} | {name: effect[name] for name in _dims(effect)},
    )


@torch.inference_mode()
def written(model: HookedDecoder, facts: FactSet, *, layer: int) -> xr.DataArray:
    """What each neuron of an MLP writes towards the right value at ``final`` in the clean run
    (neuron, fact): its direct effect on ``logit_diff``, nats.

    activation · w_out · (the final LayerNorm at the clean run's scale, then unembed(answer) −
    unembed(corrupted answer)). With embedding, attention, all other MLPs and the biases it adds up
    to ``logit_diff``; the MLP's own bias is no neuron's. There is no role to choose: logits are
    read at ``final``, so what a neuron writes elsewhere has no direct effect. Correlational.
    """
    check_inputs(model, facts, twins=True)
    check_layer(model, layer)
    device, name = model.embed.weight.device, f"blocks.{layer}.mlp.hook_post"
    _, cache = model.run_with_cache(facts.clean.to(device), names_filter=[name])
    row, final = torch.arange(len(facts), device=device), facts.lengths.to(device) - 1
    towards = answer_directions(model, facts)
    activations, weights = widened(cache[name][row, final]), Weights(model)
    activations = activations * weights.mlp_output_factor(layer, cache[name][row, final])
    out = weights.neuron_outputs(layer)
    values = einsum(activations, out, towards, "fact neuron, neuron d, fact d -> neuron fact")
    coords = {text: ("fact", facts.texts[text].to_numpy()) for text in TEXTS}
    return xr.DataArray(
        values.cpu().numpy(),
        dims=("neuron", "fact"),
        coords={"layer": layer, "neuron": np.arange(len(values))} | coords,
        name="written",
        attrs={"units": "nats", "sign": "positive towards the clean answer"},
    )


def _dims(effect: xr.DataArray) -> tuple[str, ...]:
    """The dims that together identify a neuron."""
    return tuple(name for name in effect.dims if name != "fact")


def _flat(effect: xr.DataArray) -> Float[np.ndarray, "neuron fact"]:
    if "fact" not in effect.dims or len(effect.dims) < 2:
        raise ValueError(
            f"the effects have dims {', '.join(map(str, effect.dims)) or 'none'}; give effects "
            "(neuron…, fact)"
        )
    values = effect.transpose(*_dims(effect), "fact").values.astype(float)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{np.sum(~np.isfinite(values))} of the effects are NaN or infinite; select one role "
            "that every fact has"
        )
    return values.reshape(-1, values.shape[-1])


def _order(effect: xr.DataArray, k: int) -> np.ndarray:
    """Indices of the ``k`` neurons with the largest |effect|; ties in their original order."""
    sizes = np.abs(_flat(effect))
    if not 1 <= k <= len(sizes):
        raise ValueError(f"k is {k}; ask for 1 to {len(sizes)}, as many as there are neurons")
    return np.argsort(-sizes, axis=0, kind="stable")[:k]


def _relations(effect: xr.DataArray) -> Bool[np.ndarray, "relation fact fact"]:
    """Which pairs of facts, first < second, stand in each of ``RELATIONS``."""
    labels = ("person", "attribute", "answer")
    if missing := [name for name in labels if name not in effect.coords]:
        raise ValueError(f"the effects have no {', '.join(missing)}; keep the coordinates of patch")
    if (n := effect.sizes["fact"]) < 2:
        raise ValueError(f"got {n} fact; sharing is between facts, give 2 or more")
    person, attribute, value = (
        effect[name].values[:, None] == effect[name].values for name in labels
    )
    person = person & (effect.person.values >= 0)  # −1: no person
    attribute, person = attribute & ~value, person & ~value & ~attribute
    none = ~(value | attribute | person)
    any_ = np.ones_like(none)
    return np.stack([any_, value, attribute, person, none]) & np.triu(any_, 1)


def _means(
    overlap: Float[np.ndarray, "fact fact"], relations: Bool[np.ndarray, "relation fact fact"]
) -> Float[np.ndarray, " relation"]:
    return _ratio((overlap * relations).sum((1, 2)), relations.sum((1, 2)))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """``above`` ÷ ``below``; NaN where ``below`` is 0."""
    return above / np.where(below == 0, np.nan, below)


def _per_fact(effect: xr.DataArray, values: np.ndarray, what: str, units: str) -> xr.DataArray:
    attrs = {"long_name": what, "units": units}
    return xr.DataArray(values, _fact_coords(effect), ("fact",), attrs=attrs)


def _fact_coords(effect: xr.DataArray) -> dict[str, xr.DataArray]:
    return {name: x for name, x in effect.coords.items() if x.dims == ("fact",)}
