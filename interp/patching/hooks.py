"""The same interventions on any model with TransformerLens's hooks, by hooks on whole forward
passes.

For a ``TransformerBridge`` or the user's own ``HookedRootModule``, whose blocks cannot be called
one by one: rows are run together from the first token on, with a hook at each changed layer. Equals
``recompute.Recompute``, and slower. Grouped-query attention has one key and one value per group of
heads; parallel blocks have no ``resid_mid``.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.data.facts import NO_TOKEN, FactSet
from interp.model.decoder import HookedDecoder
from interp.model.model_check import is_causal
from interp.patching.activations import ActivationCache, Prompts, metrics_of
from interp.patching.grid import PatchGrid, WorkItems, items_of
from interp.patching.paste import differing, paste, pasted_values
from interp.patching.sites import SITES, Site

Change = Callable[[Tensor], Tensor | None]
"""Of an activation; None leaves it as it is."""


class ScoredCache(list[dict[str, Tensor]]):
    """An activation cache with its prompts and the run's metrics."""

    def __init__(
        self,
        layers: ActivationCache,
        given: Prompts,
        scores: Float[np.ndarray, "metric fact"],
    ) -> None:
        super().__init__(layers)
        self.given, self.scores = given, scores


def check_hooks(model: nn.Module, sites: Collection[str]) -> None:
    """Raises a ValueError if the model lacks a site's hook."""
    for site in sites:
        for name in (SITES[site].hook.format(layer) for layer in range(model.cfg.n_layers)):
            if name not in model.hook_dict:
                raise ValueError(
                    f"no site {site!r} in this {type(model).__name__}: it has no hook {name!r}; "
                    "leave it out"
                )


def reach(
    model: nn.Module, facts: FactSet, grid: PatchGrid, may_differ: Bool[np.ndarray, "fact pos"]
) -> tuple[PatchGrid, Bool[np.ndarray, "fact pos"]]:
    """``grid`` and ``may_differ`` for a model whose attention also goes to later tokens, as in
    BERT: every position may differ, and sources may come after their destination. Unchanged for a
    causal model. Found by running the model on one prompt (see ``is_causal``).

    Raises:
        ValueError: it does, and there are pads or later tokens of a value for it to read.
    """
    longest = facts[int(facts.lengths.argmax())].clean.to(next(model.parameters()).device)
    if isinstance(model, HookedDecoder) or is_causal(model, longest):
        return grid, may_differ
    kind = f"this {type(model).__name__} attends to later tokens"
    if len(lengths := facts.lengths.unique().tolist()) > 1:
        raise ValueError(
            f"{kind}, so it would read the pads of prompts of {lengths[0]} to {lengths[-1]} "
            "tokens; give prompts of one length, as suite.facts(..., length=...) draws them"
        )
    if (n_value := int((facts.answers != NO_TOKEN).sum(1).max())) > 1:
        raise ValueError(
            f"{kind}, so it would read values of up to {n_value} tokens before it predicts them; "
            "use whole_value=False"
        )
    return replace(grid, causal=False), np.ones_like(may_differ)


def embedding_of(model: nn.Module) -> Float[Tensor, "d_vocab d_model"]:
    return model.embed.W_E if hasattr(model.embed, "W_E") else model.embed.weight


class HookedRuns:
    """Patches on one batch of prompts, by hooks on whole forward passes of any hooked model."""

    def __init__(self, model: nn.Module, prompts: Prompts, max_bytes: float) -> None:
        self.model, self.prompts, self.max_bytes = model, prompts, max_bytes
        self.device = prompts.tokens.device
        self.n_layers, self.n_heads = model.cfg.n_layers, model.cfg.n_heads
        self.embedding = embedding_of(model)

    @torch.no_grad()
    def run(self, prompts: Prompts, names: Collection[str] = ()) -> ScoredCache:
        """The activation cache of a whole forward pass, with ``names`` only."""
        places = [
            (site, layer)
            for site in {site.activation: site for site in SITES.values()}.values()
            if site.activation in names
            for layer in range(self.n_layers if site.has_layers else 1)
        ]
        pieces, scores = [], []
        for fact in torch.arange(len(prompts.tokens)).split(self._rows_at_once(prompts)):
            fact, cache = fact.to(self.device), [{} for _ in range(self.n_layers)]
            hooks = [
                (
                    site.hook.format(layer),
                    partial(_keep, kept=cache[layer], name=site.activation),
                )
                for site, layer in places
            ]
            scores.append(self._scores(self._forward(prompts, fact, hooks), fact))
            for site, layer in places:
                self._check_axes(site, cache[layer][site.activation], prompts.tokens[fact])
            pieces.append(cache)
        layers = [
            {name: torch.cat([piece[name] for piece in same]) for name in same[0]}
            for same in zip(*pieces)
        ]
        return ScoredCache(layers, prompts, np.concatenate(scores, 1))

    def _check_axes(self, site: Site, x: Tensor, tokens: Int[Tensor, "row pos"]) -> None:
        """Raises a ValueError unless an activation has TransformerLens's axes."""
        rows, n_pos = tokens.shape
        n_parts, axes = site.n_parts(self.model.cfg, 1), "(batch, pos, d_model)"
        fits = x.ndim == 3 and x.shape[:2] == (rows, n_pos)
        if site.is_table:
            axes = "(batch, head, dest, src)"
            fits = x.shape == (rows, self.n_heads, n_pos, n_pos)
        elif site.part in ("head", "key_value_head"):
            axes = "(batch, pos, head, d_head)"
            fits = x.ndim == 4 and x.shape[:3] == (rows, n_pos, n_parts)
        if not fits:
            raise ValueError(
                f"the hook of site {site.name!r} in this {type(self.model).__name__} has shape "
                f"{tuple(x.shape)}, not {axes}; leave that site out"
            )

    def scores_of(self, run: ScoredCache) -> Float[np.ndarray, "metric fact"]:
        return run.scores

    def sweep(
        self,
        sites: list[str],
        grid: PatchGrid,
        base: ScoredCache,
        source: ActivationCache,
        may_differ: Bool[np.ndarray, "fact pos"],
        *,
        max_bytes: float = 1e9,
    ) -> Iterator[tuple[WorkItems, Float[np.ndarray, "metric item"]]]:
        """As ``recompute.Recompute.sweep``.

        Raises:
            ValueError: the model goes on without what its hook returned.
        """
        cfg, size = self.model.cfg, self._rows_at_once(base.given)
        for name in sites:
            site, swept = SITES[name], grid.swept(name, self.n_layers)
            windows = {layer: grid.layers(name, layer, self.n_layers) for layer in swept}
            self._check_listens(site, base.given, sorted(set().union(*windows.values())))
            for layer, window in windows.items():
                differs = np.logical_or.reduce(
                    [differing(base[at], source[at], site, grid, cfg) for at in window]
                )
                items = items_of(name, layer, differs if site.cut else differs & may_differ, grid)
                for start in range(0, len(items), size):
                    part = items[np.arange(start, min(len(items), start + size))]
                    fact = torch.from_numpy(part.fact).to(self.device)
                    changes = _changes(site, window, part, grid, base, source)
                    yield part, self._scores(self._forward(base.given, fact, changes), fact)

    @torch.no_grad()
    def _forward(
        self, given: Prompts, fact: Int[Tensor, " row"], changes: list[tuple[str, Change]]
    ) -> Float[Tensor, "row pos d_vocab"]:
        """Logits of the rows' prompts; raises if a hook that makes a change did not fire."""
        called = set()

        def hooked(x: Tensor, hook: object, number: int) -> Tensor | None:
            called.add(number)
            return changes[number][1](x)

        hooks = [(name, partial(hooked, number=i)) for i, (name, _) in enumerate(changes)]
        if given.noise is not None:
            hooks.insert(0, (SITES["embed"].hook, lambda x, hook: x + given.noise[fact]))
        logits = self.model.run_with_hooks(given.tokens[fact], fwd_hooks=hooks)
        for i, (name, _) in enumerate(changes):
            if i not in called:
                raise ValueError(
                    f"this {type(self.model).__name__} never calls its hook {name!r}, so nothing "
                    "can be changed there; leave that site out"
                )
        return logits

    def _scores(
        self, logits: Float[Tensor, "row pos d_vocab"], fact: Int[Tensor, " row"]
    ) -> Float[np.ndarray, "metric row"]:
        given, n_value = self.prompts, self.prompts.n_value[fact]
        slots = torch.arange(int(n_value.max()), device=fact.device)
        row, slot = torch.nonzero(slots < n_value[:, None], as_tuple=True)
        return metrics_of(logits[row, given.n_prompt[fact][row] - 1 + slot], row, slot, fact, given)

    def _check_listens(self, site: Site, given: Prompts, layers: list[int]) -> None:
        """Raises a ValueError where the model ignores what a hook returns, which would make every
        effect 0.

        NaN returned by a hook goes through weights of 0 too (0 · NaN = NaN): an effect of exactly 0
        is a result. Attention that sets NaN to 0 shows it at ``hook_z`` if not in the logits.
        """
        fact = torch.zeros(1, dtype=torch.long, device=self.device)
        poison = _poison_in_place if site.name == "resid_mid" else _poison
        for at in layers:
            name = site.hook.format(at)
            plain, poisoned = (
                self._heard(given, fact, at, [(name, change)]) for change in (_leave, poison)
            )
            if all(torch.equal(x, y) for x, y in zip(plain, poisoned)):
                raise ValueError(
                    f"nothing in this {type(self.model).__name__} depends on what its hook "
                    f"{name!r} returns, so site {site.name!r} can't be changed; leave it out"
                )
        if site.name == "resid_mid":
            self._check_residual(given, fact, layers)

    def _heard(
        self, given: Prompts, fact: Int[Tensor, " row"], layer: int, changes: list
    ) -> list[Tensor]:
        """Logits with some changes made, and the heads' output of a layer whose attention scores
        were changed.
        """
        kept, (z, scores) = {}, (SITES[x].hook.format(layer) for x in ("z", "knockout"))
        if changes[0][0] == scores and z in self.model.hook_dict:
            changes = [*changes, (z, partial(_keep, kept=kept, name="z"))]
        return [self._forward(given, fact, changes), *kept.values()]

    def _check_residual(self, given: Prompts, fact: Int[Tensor, " row"], layers: list[int]) -> None:
        """Raises a ValueError where a change at a bridge's resid_mid does not reach the residual
        stream. The bridge hooks the input of the MLP's LayerNorm, where returning a new tensor
        would not change the residual stream, so the change is made in place.
        """
        names, noise = ("resid_mid", "mlp_out", "resid_post"), torch.Generator(self.device)

        def disturb(x: Tensor) -> Tensor:
            size = torch.randn(x.shape, generator=noise, device=x.device, dtype=x.dtype)
            return x.add_(size * (1 + x.abs().mean()))

        for at in layers:
            kept, noise = {}, noise.manual_seed(0)
            keep = [
                (SITES[name].hook.format(at), partial(_keep, kept=kept, name=name))
                for name in names
            ]
            self._forward(given, fact, [(keep[0][0], disturb), *keep])
            mid, mlp_out, post = (kept[name] for name in names)
            largest = float(post.abs().max())
            if not torch.allclose(mid + mlp_out, post, rtol=1e-2, atol=1e-2 * largest):
                raise ValueError(
                    f"in this {type(self.model).__name__} a change of 'hook_resid_mid' does not "
                    "reach the residual stream; leave site 'resid_mid' out"
                )

    def _rows_at_once(self, given: Prompts) -> int:
        """The number of prompts whose forward pass fits into ``max_bytes``."""
        cfg, n_pos = self.model.cfg, given.tokens.shape[1]
        token = 3 * cfg.d_vocab + 4 * cfg.d_mlp + 16 * cfg.d_model + 4 * cfg.n_heads * n_pos
        return max(1, int(self.max_bytes // (n_pos * token * self.embedding.element_size())))


def _leave(x: Tensor) -> None:
    """A hook that changes nothing."""


def _poison(x: Tensor) -> Tensor:
    return torch.full_like(x, torch.nan)


def _poison_in_place(x: Tensor) -> Tensor:
    return x.fill_(torch.nan)


def _keep(x: Tensor, *, kept: dict[str, Tensor], name: str) -> None:
    kept[name] = x.detach().clone()


def _changes(
    site: Site,
    window: Sequence[int],
    items: WorkItems,
    grid: PatchGrid,
    base: ScoredCache,
    source: ActivationCache,
) -> list[tuple[str, Change]]:
    """The hooks that apply each item's patch, in all layers of a window."""
    device = base.given.tokens.device
    at = grid.positions[items.group, items.fact]
    row, pos = (torch.from_numpy(x).to(device) for x in at.nonzero())
    fact, part = (torch.from_numpy(x).to(device)[row] for x in (items.fact, items.part))
    sources = torch.from_numpy(grid.sources[items.source, items.fact]).to(device)[row]

    def change(x: Tensor, layer: int) -> Tensor:
        x = x if site.name == "resid_mid" else x.clone()
        size, new = grid.n_neurons, None
        if not site.cut:
            new = pasted_values(source[layer], site, fact, pos, part, size)
        paste(x, site, row, pos, part, size, new, sources)
        return x

    changes = [(site.hook.format(layer), partial(change, layer=layer)) for layer in window]
    if site.cut:  # a destination without any source attends to nothing
        left = torch.arange(sources.shape[1], device=device) <= pos[:, None]
        left |= not grid.causal
        alone = ~(left & ~sources).any(1)

        def silence(x: Tensor) -> Tensor:
            x = x.clone()
            x[row[alone], part[alone] if site.part else slice(None), pos[alone]] = 0.0
            return x

        changes += [(SITES["pattern"].hook.format(layer), silence) for layer in window]
    if grid.frozen is not None:

        def hold(x: Tensor, layer: int) -> Tensor:
            x = x.clone()
            x[row, pos] = base[layer][grid.frozen][fact, pos]
            return x

        hook = SITES[grid.frozen].hook
        later = range(window[0], len(base))
        changes += [(hook.format(layer), partial(hold, layer=layer)) for layer in later]
    return changes
