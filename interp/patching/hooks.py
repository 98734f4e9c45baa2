"""The same interventions on any model with TransformerLens's hooks, by hooks on whole forward
passes.

For a ``TransformerBridge`` or a ``HookedRootModule`` of one's own, whose blocks can't be called one
by one: items are run together from the first token on, with a hook at each changed layer. Results
equal those of ``recompute.Recompute``, but take longer. Grouped-query attention has one key and one
value per group of heads; parallel blocks have no ``resid_mid``.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.data.facts import NO_TOKEN, FactSet
from interp.model.decoder import HookedDecoder
from interp.model.model_check import is_causal
from interp.patching.activations import (
    ActivationCache,
    Prompts,
    ScoredCache,
    metrics_of,
    value_tokens,
)
from interp.patching.grid import PatchGrid, WorkItems
from interp.patching.paste import changes_of, differing_items, paste
from interp.patching.sites import SITES, Site

Edit = Callable[[Tensor], Tensor | None]
"""Returns an activation's new value; None leaves it as it is."""


def check_hooks(model: nn.Module, sites: Collection[str]) -> None:
    """Raises a ValueError if the model lacks a site's hook."""
    for site in sites:
        for name in (SITES[site].hook.format(layer) for layer in range(model.cfg.n_layers)):
            if name not in model.hook_dict:
                raise ValueError(
                    f"no site {site!r} in this {type(model).__name__}: it has no hook {name!r}; "
                    "leave it out"
                )


def reach(model: nn.Module, facts: FactSet, grid: PatchGrid) -> PatchGrid:
    """``grid``, unless the model's attention goes to later tokens too, as in BERT: then every
    position may differ, and sources may come after their destination. Found by running the model on
    one prompt (see ``is_causal``).

    Raises:
        ValueError: it does, and there are pads or later tokens of a value for it to read.
    """
    longest = facts[int(facts.lengths.argmax())].clean.to(next(model.parameters()).device)
    if isinstance(model, HookedDecoder) or is_causal(model, longest):
        return grid
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
    return replace(grid, causal=False, may_differ=np.ones_like(grid.may_differ))


def embedding_of(model: nn.Module) -> Float[Tensor, "d_vocab d_model"]:
    return model.embed.W_E if hasattr(model.embed, "W_E") else model.embed.weight


class HookedRuns:
    """Runs and patches of any hooked model, by hooks on whole forward passes."""

    def __init__(self, model: nn.Module, max_bytes: float) -> None:
        self.model, self.cfg, self.max_bytes = model, model.cfg, max_bytes
        self.embedding = embedding_of(model)
        self.device = self.embedding.device
        self._listens: set[tuple[str, int]] = set()

    @torch.no_grad()
    def run(self, prompts: Prompts, names: Collection[str] = ()) -> ScoredCache:
        """The activation cache of a whole forward pass, with ``names`` only."""
        places = [
            (site, layer)
            for site in {site.activation: site for site in SITES.values()}.values()
            if site.activation in names
            for layer in range(self.cfg.n_layers if site.has_layers else 1)
        ]
        pieces, scores = [], []
        for fact in torch.arange(len(prompts.tokens)).split(self._rows_at_once(prompts)):
            fact, cache = fact.to(self.device), [{} for _ in range(self.cfg.n_layers)]
            hooks = [_keeping(site, layer, cache[layer]) for site, layer in places]
            scores.append(self._scores(prompts, fact, hooks))
            for site, layer in places:
                self._check_axes(site, cache[layer][site.activation], prompts.tokens[fact])
            pieces.append(cache)
        layers = [
            {name: torch.cat([piece[name] for piece in same]) for name in same[0]}
            for same in zip(*pieces)
        ]
        return ScoredCache(layers, prompts, np.concatenate(scores, 1))

    def _check_axes(self, site: Site, x: Tensor, tokens: Int[Tensor, "row pos"]) -> None:
        """Raises a ValueError unless an activation has the axes that it has in TransformerLens."""
        rows, n_pos = tokens.shape
        n_parts, axes = site.n_parts(self.cfg, 1), "(batch, pos, d_model)"
        fits = x.ndim == 3 and x.shape[:2] == (rows, n_pos)
        if site.is_table:
            axes = "(batch, head, dest, src)"
            fits = x.shape == (rows, self.cfg.n_heads, n_pos, n_pos)
        elif site.part in ("head", "key_value_head"):
            axes = "(batch, pos, head, d_head)"
            fits = x.ndim == 4 and x.shape[:3] == (rows, n_pos, n_parts)
        if not fits:
            raise ValueError(
                f"the hook of site {site.name!r} in this {type(self.model).__name__} has shape "
                f"{tuple(x.shape)}, not {axes}; leave that site out"
            )

    def sweep(
        self, sites: list[str], grid: PatchGrid, base: ScoredCache, source: ActivationCache
    ) -> Iterator[tuple[WorkItems, Float[np.ndarray, "metric item"]]]:
        """As ``recompute.Recompute.sweep``.

        Raises:
            ValueError: the model ignores what its hook returned.
        """
        size = self._rows_at_once(base.given)
        for name in sites:
            site, swept = SITES[name], grid.swept(name, self.cfg.n_layers)
            windows = {layer: grid.layers(name, layer, self.cfg.n_layers) for layer in swept}
            layers = {(name, at) for window in windows.values() for at in window} - self._listens
            self._check_listens(site, base.given, sorted(at for _, at in layers))
            self._listens |= layers
            for layer, window in windows.items():
                items = differing_items(name, layer, base, source, grid, self.cfg)
                for start in range(0, len(items), size):
                    part = items[np.arange(start, min(len(items), start + size))]
                    fact = torch.from_numpy(part.fact).to(self.device)
                    edits = _edits(site, window, part, grid, base, source)
                    yield part, self._scores(base.given, fact, edits)

    @torch.no_grad()
    def _forward(
        self, given: Prompts, fact: Int[Tensor, " row"], edits: list[tuple[str, Edit]]
    ) -> Float[Tensor, "row pos d_vocab"]:
        """Logits of the rows' prompts; the model must have called every hook that edits."""
        called = set()

        def hooked(x: Tensor, hook: object, number: int) -> Tensor | None:
            called.add(number)
            return edits[number][1](x)

        hooks = [(name, partial(hooked, number=i)) for i, (name, _) in enumerate(edits)]
        if given.noise is not None:
            hooks.insert(0, (SITES["embed"].hook, lambda x, hook: x + given.noise[fact]))
        logits = self.model.run_with_hooks(given.tokens[fact], fwd_hooks=hooks)
        for i, (name, _) in enumerate(edits):
            if i not in called:
                raise ValueError(
                    f"this {type(self.model).__name__} never calls its hook {name!r}, so nothing "
                    "can be changed there; leave that site out"
                )
        return logits

    def _scores(
        self, given: Prompts, fact: Int[Tensor, " row"], edits: list[tuple[str, Edit]]
    ) -> Float[np.ndarray, "metric row"]:
        """Metrics of the rows' prompts."""
        logits = self._forward(given, fact, edits)
        row, slot = value_tokens(given, fact)
        return metrics_of(logits[row, given.n_prompt[fact][row] - 1 + slot], row, slot, fact, given)

    def _check_listens(self, site: Site, given: Prompts, layers: list[int]) -> None:
        """Raises a ValueError if the model ignores what a hook returns: every effect would be 0.

        NaN returned by a hook passes through weights of 0 too (0 · NaN = NaN), so an effect of
        exactly 0 is still a result. Attention that sets NaN to 0 shows it at ``hook_z`` if not in
        the logits.
        """
        fact = torch.zeros(1, dtype=torch.long, device=self.device)
        poison = torch.Tensor.fill_ if site.name == "resid_mid" else torch.full_like
        for at in layers:
            name = site.hook.format(at)
            plain, poisoned = (
                self._heard(given, fact, at, (name, edit))
                for edit in (lambda x: None, lambda x: poison(x, torch.nan))
            )
            if all(torch.equal(x, y) for x, y in zip(plain, poisoned)):
                raise ValueError(
                    f"nothing in this {type(self.model).__name__} depends on what its hook "
                    f"{name!r} returns, so site {site.name!r} can't be changed; leave it out"
                )
        if site.name == "resid_mid":
            self._check_residual(given, fact, layers)

    def _heard(
        self, given: Prompts, fact: Int[Tensor, " row"], layer: int, edit: tuple[str, Edit]
    ) -> list[Tensor]:
        """Logits with an edit, and z of the layer if its attention scores are edited."""
        kept, z = {}, SITES["z"]
        scores = edit[0] == SITES["knockout"].hook.format(layer)
        keep = scores and z.hook.format(layer) in self.model.hook_dict
        edits = [edit, _keeping(z, layer, kept)] if keep else [edit]
        return [self._forward(given, fact, edits), *kept.values()]

    def _check_residual(self, given: Prompts, fact: Int[Tensor, " row"], layers: list[int]) -> None:
        """Raises a ValueError if an edit of ``resid_mid`` does not reach ``resid_post``.

        A bridge's hook is at the input of the MLP's LayerNorm: returning a new tensor there would
        leave the residual stream as it was, so the edit is made in place.
        """
        names, noise = ("resid_mid", "mlp_out", "resid_post"), torch.Generator(self.device)

        def disturb(x: Tensor) -> Tensor:
            size = torch.randn(x.shape, generator=noise, device=x.device, dtype=x.dtype)
            return x.add_(size * (1 + x.abs().mean()))

        for at in layers:
            kept, noise = {}, noise.manual_seed(0)
            keep = [_keeping(SITES[name], at, kept) for name in names]
            self._forward(given, fact, [(keep[0][0], disturb), *keep])
            mid, mlp_out, post = (kept[name] for name in names)
            largest = float(post.abs().max())
            if not torch.allclose(mid + mlp_out, post, rtol=1e-2, atol=1e-2 * largest):
                raise ValueError(
                    f"in this {type(self.model).__name__} a change of 'hook_resid_mid' does not "
                    "reach the residual stream; leave site 'resid_mid' out"
                )

    def _rows_at_once(self, given: Prompts) -> int:
        """Prompts whose forward pass fits into ``max_bytes``."""
        cfg, n_pos = self.cfg, given.tokens.shape[1]
        token = 3 * cfg.d_vocab + 4 * cfg.d_mlp + 16 * cfg.d_model + 4 * cfg.n_heads * n_pos
        return max(1, int(self.max_bytes // (n_pos * token * self.embedding.element_size())))


def _keeping(site: Site, layer: int, kept: dict[str, Tensor]) -> tuple[str, Edit]:
    """A hook that edits nothing and puts a copy of the activation into ``kept``."""

    def keep(x: Tensor) -> None:
        kept[site.activation] = x.detach().clone()

    return site.hook.format(layer), keep


def _edits(
    site: Site,
    window: Sequence[int],
    items: WorkItems,
    grid: PatchGrid,
    base: ScoredCache,
    source: ActivationCache,
) -> list[tuple[str, Edit]]:
    """The hooks that make each item's change, in all layers of a window."""
    at = changes_of(items, grid.positions[items.group, items.fact], base.given.tokens.device)

    def change(x: Tensor, layer: int) -> Tensor:
        x = x if site.name == "resid_mid" else x.clone()
        paste(x, site, at, at.pos, grid, source[layer])
        return x

    edits = [(site.hook.format(layer), partial(change, layer=layer)) for layer in window]
    if site.cut:  # a destination without any source attends to nothing
        sources = at.sources(grid)
        left = torch.arange(sources.shape[1], device=sources.device) <= at.pos[:, None]
        left |= not grid.causal
        alone = at[~(left & ~sources).any(1)]

        def silence(x: Tensor) -> Tensor:
            x = x.clone()
            x[alone.row, alone.part if site.part else slice(None), alone.pos] = 0.0
            return x

        edits += [(SITES["pattern"].hook.format(layer), silence) for layer in window]
    if grid.frozen is not None:

        def hold(x: Tensor, layer: int) -> Tensor:
            x = x.clone()
            x[at.row, at.pos] = base[layer][grid.frozen][at.fact, at.pos]
            return x

        hook = SITES[grid.frozen].hook
        later = range(window[0], len(base))
        edits += [(hook.format(layer), partial(hold, layer=layer)) for layer in later]
    return edits
