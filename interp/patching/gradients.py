"""Gradients of a run's metrics by its activations."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.patching.activations import ActivationCache, Prompts, scores_of, value_tokens
from interp.patching.sites import SITES

_STABLE = 1e-6
"""RelP divides by pre-activations that are at least so far from 0."""


@dataclass(frozen=True)
class Gradients:
    """A forward pass, and backward passes from it."""

    cache: ActivationCache
    """The activations whose gradients are taken, and others that were asked for."""
    of: list[list[ActivationCache | None]]
    """By backward pass and metric; None for a metric that can't be computed. The plain gradients
    come first, then those with the outputs of one layer detached, for each layer.
    """


def gradients(
    model: nn.Module,
    given: Prompts,
    fact: Int[Tensor, " row"],
    names: Collection[str],
    *,
    also: Collection[str] = (),
    embed: Float[Tensor, "row pos d_model"] | None = None,
    relp: bool = False,
    drop_layers: bool = False,
) -> Gradients:
    """Gradients of each fact's metrics by the activations ``names``.

    Args:
        also: further activations to keep.
        embed: embeddings to run on, in place of those of the prompts.
        relp: LayerNorm's scale and gelu(x) ÷ x are held (see ``attribution_patching``).
        drop_layers: take gradients with the outputs of one layer detached, too.

    Raises:
        ValueError: a metric does not depend on an activation, as where a hook is never called.
    """
    kept = _Kept(names, {*names, *also}, [{} for _ in range(model.cfg.n_layers)])
    noise = None if given.noise is None or embed is not None else given.noise[fact]
    start = partial(_start, added=noise, embed=embed)
    held = _held(model.cfg.n_layers) if relp else []
    hooks = [(SITES["embed"].hook, start), *held, *kept.hooks(drop_layers)]
    with torch.enable_grad():
        logits = model.run_with_hooks(given.tokens[fact], fwd_hooks=hooks)
        row, slot = value_tokens(given, fact)
        read = logits[row, given.n_prompt[fact][row] - 1 + slot]
        scores = scores_of(read, row, slot, fact, given)
        passes = []
        for kept.dropped in (None, *range(model.cfg.n_layers)) if drop_layers else (None,):
            passes.append([kept.backward(score) for score in scores])
    cache = [{name: x.detach() for name, x in layer.items()} for layer in kept.layers]
    return Gradients(cache, passes)


def _start(x: Tensor, hook: object, *, added: Tensor | None, embed: Tensor | None) -> Tensor:
    """The embeddings from which gradients are taken."""
    x = x if embed is None else embed
    return (x if added is None else x + added).detach().requires_grad_()


@dataclass
class _Kept:
    """Activations of a forward pass, kept with their graph."""

    names: Collection[str]
    """Activations whose gradients are taken."""
    all_names: Collection[str]
    layers: list[dict[str, Tensor]]
    dropped: int | None = None
    """The layer whose outputs have no gradient."""

    def hooks(self, drop_layers: bool) -> list[tuple]:
        hook_of = {site.activation: site.hook for site in SITES.values()}
        hooks = [
            (hook_of[name].format(layer), partial(self._keep, name=name, layer=layer))
            for name in sorted(self.all_names)
            for layer in range(len(self.layers) if "{}" in hook_of[name] else 1)
        ]
        if drop_layers:
            hooks += [
                (SITES[name].hook.format(layer), partial(self._droppable, layer=layer))
                for name in ("attn_out", "mlp_out")
                for layer in range(len(self.layers))
            ]
        return hooks

    def _keep(self, x: Tensor, hook: object, *, name: str, layer: int) -> Tensor:
        self.layers[layer][name] = x
        return x

    def _droppable(self, x: Tensor, hook: object, *, layer: int) -> Tensor:
        x.register_hook(lambda gradient: gradient * (self.dropped != layer))
        return x

    def backward(self, score: Float[Tensor, " row"]) -> ActivationCache | None:
        if not score.requires_grad:
            return None
        places = [
            (layer, name)
            for layer, of in enumerate(self.layers)
            for name in of
            if name in self.names
        ]
        found = torch.autograd.grad(
            score.sum(),
            [self.layers[layer][name] for layer, name in places],
            retain_graph=True,
            allow_unused=True,
        )
        gradient = [{} for _ in self.layers]
        for (layer, name), x in zip(places, found):
            if x is None:
                raise ValueError(
                    f"no metric depends on the activation {name!r} of layer {layer}, so effects "
                    "can't be estimated there; leave that site out, or use method exact"
                )
            gradient[layer][name] = x
        return gradient


def _held(n_layers: int) -> list[tuple]:
    """Hooks that hold LayerNorm's scale and gelu(x) ÷ x in the backward pass (RelP)."""
    pre: dict[str, Tensor] = {}

    def hold(x: Tensor, hook: object) -> Tensor:
        return x.detach()

    def keep(x: Tensor, hook: object) -> None:
        pre[hook.name.replace("hook_pre", "hook_post")] = x

    def linear(x: Tensor, hook: object) -> Tensor:
        before = pre[hook.name]
        away_from_0 = torch.where(before.abs() < _STABLE, _STABLE, before.detach())
        return x.detach() + (before - before.detach()) * (x / away_from_0).detach()

    hooks = [("ln_final.hook_scale", hold)]
    for layer in range(n_layers):
        hooks += [(f"blocks.{layer}.{norm}.hook_scale", hold) for norm in ("ln1", "ln2")]
        hooks += [(f"blocks.{layer}.mlp.hook_pre", keep), (f"blocks.{layer}.mlp.hook_post", linear)]
    return hooks
