"""Gradients of a run's metrics by its activations: of a ``HookedDecoder`` by the backward pass that
is written out in ``backward``, of any other model with hooks by autograd.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.model.decoder import HookedDecoder
from interp.model.weights import widened
from interp.patching.activations import ActivationCache, Prompts, scores_of, value_tokens
from interp.patching.backward import (
    NEEDED,
    block_gradients,
    logits_backward,
    logits_of,
    run_blocks,
)
from interp.patching.sites import SITES

LayerGradients = Iterator[tuple[int, dict[str, Float[Tensor, "drop metric row *rest"]]]]
"""Layers from the last to the first, with gradients of each of ``distinct_metrics``."""


@dataclass(frozen=True)
class Gradients:
    """A forward pass, and a backward pass from it."""

    cache: ActivationCache
    """The activations whose gradients are taken, and others that were asked for."""
    of: list[ActivationCache | None]
    """By metric; None for one that can't be computed."""


def gradients(
    model: HookedDecoder,
    given: Prompts,
    fact: Int[Tensor, " row"],
    names: Collection[str],
    *,
    also: Collection[str] = (),
    embed: Float[Tensor, "row pos d_model"] | None = None,
    relp: bool = False,
) -> Gradients:
    """Gradients of each fact's metrics by the activations ``names``.

    Args:
        also: further activations to keep.
        embed: embeddings to run on, in place of those of the prompts.
        relp: scales of norms and f(x) ÷ x of the non-linearity f are held (see
            ``attribution_patching``).
    """
    if embed is None:
        embed = model.embed(given.tokens[fact]).detach()
        embed = embed if given.noise is None else embed + given.noise[fact]
    cache = run_blocks(model, embed, {*NEEDED, *names, *also})
    found = dict(own_gradients(model, given, fact, names, cache, relp=relp))
    of_metrics = [
        None
        if number is None
        else [{name: x[0, number] for name, x in found[layer].items()} for layer in sorted(found)]
        for number in gradient_of_metric(given)
    ]
    kept = {*names, *also}
    cache = [{name: x for name, x in layer.items() if name in kept} for layer in cache]
    return Gradients(cache, of_metrics)


def distinct_metrics(given: Prompts) -> list[int]:
    """Metrics, by their place in ``scores_of``, that have a gradient of their own: not a
    ``logit_diff`` without another answer, nor the log-probability of a whole value where all values
    are single tokens.
    """
    metrics = range(3 + (given.control is not None))
    missing = {0} if given.other is None else set()
    missing |= {2} if int(given.n_value.max()) == 1 else set()
    return [metric for metric in metrics if metric not in missing]


def gradient_of_metric(given: Prompts) -> list[int | None]:
    """The place of each metric's gradient among those of ``distinct_metrics``; None if it has no
    gradient.
    """
    distinct = distinct_metrics(given)
    place = {metric: i for i, metric in enumerate(distinct)}
    place.setdefault(2, place[1])
    return [place.get(metric) for metric in range(3 + (given.control is not None))]


@torch.no_grad()
def own_gradients(
    model: HookedDecoder,
    given: Prompts,
    fact: Int[Tensor, " row"],
    names: Collection[str],
    cache: ActivationCache,
    row: slice = slice(None),
    *,
    relp: bool = False,
    drop_layers: bool = False,
) -> LayerGradients:
    """Gradients of a ``HookedDecoder``.

    Args:
        cache: a run's ``NEEDED`` activations.
        row: the facts' rows in ``cache``; by default all.
        relp: scales of norms and f(x) ÷ x of the non-linearity f are held.
        drop_layers: see ``block_gradients``.
    """
    at, slot = value_tokens(given, fact)
    pos = given.n_prompt[fact][at] - 1 + slot
    last = cache[-1]["resid_post"][row]
    resid = widened(last[at, pos])
    logits = logits_of(model, resid)
    with torch.enable_grad():
        logits.requires_grad_()
        scores = scores_of(logits, at, slot, fact, given)
        slopes = [
            torch.autograd.grad(scores[metric].sum(), logits, retain_graph=True)[0]
            for metric in distinct_metrics(given)
        ]
    slope = resid.new_zeros(len(slopes), len(fact), *last.shape[1:])
    slope[:, at, pos] = logits_backward(model, resid, torch.stack(slopes), relp=relp)
    yield from block_gradients(model, cache, row, slope, names, relp=relp, drop_layers=drop_layers)


def hooked_gradients(
    model: nn.Module,
    given: Prompts,
    fact: Int[Tensor, " row"],
    names: Collection[str],
    *,
    embed: Float[Tensor, "row pos d_model"] | None = None,
) -> LayerGradients:
    """Gradients of any model with hooks, all layers at once.

    Args:
        embed: embeddings to run on, in place of those of the prompts.

    Raises:
        ValueError: a metric does not depend on an activation, as where a hook is never called.
    """
    noise = None if given.noise is None or embed is not None else given.noise[fact]
    start, kept = partial(_start, added=noise, embed=embed), {}
    hooks = [(SITES["embed"].hook, start), *_keeping(names, model.cfg.n_layers, kept)]
    with torch.enable_grad():
        logits = model.run_with_hooks(given.tokens[fact], fwd_hooks=hooks)
        row, slot = value_tokens(given, fact)
        read = logits[row, given.n_prompt[fact][row] - 1 + slot]
        scores = scores_of(read, row, slot, fact, given)
        by_metric = [_backward(scores[metric], kept) for metric in distinct_metrics(given)]
    for layer in reversed(range(model.cfg.n_layers)):
        here = [name for at, name in kept if at == layer]
        yield (
            layer,
            {name: torch.stack([of[layer, name] for of in by_metric])[None] for name in here},
        )


def _start(x: Tensor, hook: object, *, added: Tensor | None, embed: Tensor | None) -> Tensor:
    """The embeddings from which gradients are taken."""
    x = x if embed is None else embed
    return (x if added is None else x + added).detach().requires_grad_()


def _keeping(
    names: Collection[str], n_layers: int, kept: dict[tuple[int, str], Tensor]
) -> list[tuple]:
    """Hooks that put activations, with their graph, into ``kept``."""

    def keep(x: Tensor, hook: object, *, place: tuple[int, str]) -> Tensor:
        kept[place] = x
        return x

    hook_of = {site.activation: site.hook for site in SITES.values()}
    return [
        (hook_of[name].format(layer), partial(keep, place=(layer, name)))
        for name in sorted(names)
        for layer in range(n_layers if "{}" in hook_of[name] else 1)
    ]


def _backward(
    score: Float[Tensor, " row"], kept: dict[tuple[int, str], Tensor]
) -> dict[tuple[int, str], Tensor]:
    """Gradients of one metric by each activation that was kept."""
    inputs = list(kept.values())
    found = torch.autograd.grad(score.sum(), inputs, retain_graph=True, allow_unused=True)
    for (layer, name), x in zip(kept, found):
        if x is None:
            raise ValueError(
                f"no metric depends on the activation {name!r} of layer {layer}, so effects can't "
                "be estimated there; leave that site out, or use method exact"
            )
    return dict(zip(kept, found))
