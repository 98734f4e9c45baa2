"""Patching estimated from gradients: all cells together cost a few forward and backward passes.

With x the base run's activation, x′ what is pasted and m a metric, the effect of a patch is
estimated by (x′ − x) · ∂m/∂x, summed over what is patched together:

- ``atp`` (attribution patching, Kramár et al. 2024, https://arxiv.org/abs/2403.00745): the gradient
  is that of the base run.
- ``atp-star`` (the same authors): changes of queries, keys and attention scores are followed
  through the softmax exactly, (p′ − p) · ∂m/∂p; and the size of an estimate is the mean |estimate|
  over backward passes that drop one layer each (GradDrop), but for the layer that the site itself
  is in, so that effects that cancel along different paths are not missed. Its sign is that of the
  estimate without dropping, and means nothing where paths cancel.
- ``relp`` (Jafari et al. 2025, https://arxiv.org/abs/2508.21258): the gradient holds the scales
  of norms, and f(x) ÷ x of the non-linearity f.
- ``eap-ig`` (integrated gradients, Hanna et al. 2024, https://arxiv.org/abs/2403.17806): the mean
  gradient at ``N_POINTS`` midpoints between the two runs' embeddings.

All are first-order. Where they disagree with exact patching, as at saturated softmaxes, LayerNorms
and gates of several inputs, they are wrong.
"""

from collections.abc import Collection, Iterator

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.config import Method
from interp.model.attention import rotate, rotation, softmax
from interp.model.decoder import HookedDecoder
from interp.patching.activations import ActivationCache, Prompts, ScoredCache
from interp.patching.backward import NEEDED, run_blocks
from interp.patching.gradients import (
    LayerGradients,
    gradient_of_metric,
    hooked_gradients,
    own_gradients,
)
from interp.patching.grid import PatchGrid, WorkItems
from interp.patching.hooks import HookedRuns
from interp.patching.intervention import Intervention
from interp.patching.paste import differing_items
from interp.patching.recompute import Recompute
from interp.patching.sites import SITES, Site

N_POINTS = 5
_KEYS = ("k", "rot_k")
_BEFORE_SOFTMAX = ("q", "rot_q", *_KEYS, "attn_scores")
Slopes = Float[Tensor, "drop metric fact *rest"]
Effects = Float[Tensor, "drop metric part group source fact"]


def n_forwards(how: Intervention, n_layers: int) -> int:
    """Forward passes that take as long as an estimate, a backward pass counted as two."""
    n_metrics = 2 + how.whole_value + how.control
    n_backward = n_metrics * (1 + (n_layers if how.method == "atp-star" else 0))
    return 2 + (N_POINTS if how.method == "eap-ig" else 1) * (1 + 2 * n_backward)


class GradientEstimates:
    """Runs of a model, and estimates in place of patches."""

    def __init__(
        self,
        model: nn.Module,
        runs: Recompute | HookedRuns,
        method: Method,
        sites: list[str],
        max_bytes: float,
    ) -> None:
        self.model, self.runs, self.method, self.max_bytes = model, runs, method, max_bytes
        self.cfg, self.embedding, self.sites = runs.cfg, runs.embedding, sites
        self.also = {"embed"} if method == "eap-ig" else set()
        if any(self.by_softmax(SITES[site]) for site in sites):
            self.also.add("attn_scores")

    def by_softmax(self, site: Site) -> bool:
        """Whether a change there is followed through the softmax; a cut, −inf, has no gradient."""
        return site.cut or (self.method == "atp-star" and site.activation in _BEFORE_SOFTMAX)

    def gradient_of(self, site: Site) -> str:
        """The activation whose gradient is used."""
        return "pattern" if self.by_softmax(site) else site.activation

    def run(self, prompts: Prompts, names: Collection[str] = ()) -> ScoredCache:
        """As ``Recompute.run``, with what the method needs besides."""
        return self.runs.run(prompts, {*names, *self.also})

    def sweep(
        self, sites: list[str], grid: PatchGrid, base: ScoredCache, source: ActivationCache
    ) -> Iterator[tuple[WorkItems, Float[np.ndarray, "metric item"]]]:
        """As ``Recompute.sweep``: the base run's metrics plus the estimated effects."""
        n_layers, n_facts = self.cfg.n_layers, len(base.given.tokens)
        swept = {
            (site, layer): differing_items(site, layer, base, source, grid, self.cfg)
            for site in sites
            for layer in grid.swept(site, n_layers)
        }
        size = self.rows_at_once(base.given, grid)
        for start in range(0, n_facts, size):
            facts = np.arange(start, min(n_facts, start + size))
            part = _FactGradients(self, facts, grid, base, source)
            effects = part.effects(sites, grid)
            for (site, layer), items in swept.items():
                here = items[np.isin(items.fact, facts)] if size < n_facts else items
                if not len(here):
                    continue
                layers = grid.layers(site, layer, n_layers)
                effect = sum(effects[site, at] for at in layers)
                place = (here.part, here.group, here.source, here.fact - start)
                yield here, base.scores[:, here.fact] + effect[:, *place].astype(np.float32)

    def rows_at_once(self, given: Prompts, grid: PatchGrid) -> int:
        """Prompts whose gradients fit into ``max_bytes``."""
        cfg, n_pos = self.cfg, given.tokens.shape[1]
        n_metrics = 3 + (given.control is not None)
        table, logits = cfg.n_heads * n_pos, 3 * n_metrics * cfg.d_vocab
        in_block = 8 * cfg.d_mlp + 32 * cfg.d_model + 8 * table
        if isinstance(self.model, HookedDecoder):
            n_gradients = n_metrics * (cfg.n_layers + 1 if self.method == "atp-star" else 1)
            n_runs = N_POINTS if self.method == "eap-ig" else 1
            streams = n_runs * cfg.n_layers * 6 * cfg.d_model
            keys = 4 * len(grid.positions) * table
            numbers = n_pos * (logits + streams + (1 + n_runs * n_gradients) * in_block + keys)
        else:
            numbers = n_pos * (3 * cfg.d_vocab + cfg.n_layers * n_metrics * in_block)
        return max(1, int(self.max_bytes // (numbers * self.embedding.element_size())))


class _FactGradients:
    """Some facts of a batch, and effects estimated by their gradients."""

    def __init__(
        self,
        estimates: GradientEstimates,
        facts: Int[np.ndarray, " fact"],
        grid: PatchGrid,
        base: ScoredCache,
        source: ActivationCache,
    ) -> None:
        device = estimates.embedding.device
        self.estimates, self.n_neurons = estimates, grid.n_neurons
        self.fact, self.base, self.source = torch.from_numpy(facts).to(device), base, source
        self.row = slice(facts[0], facts[-1] + 1)
        self.groups, self.sources = (
            torch.from_numpy(x[:, facts]).to(device) for x in (grid.positions, grid.sources)
        )

    @torch.no_grad()
    def effects(
        self, sites: list[str], grid: PatchGrid
    ) -> dict[tuple[str, int], Float[np.ndarray, "metric part group source fact"]]:
        """Estimated effects of changing each part and set of positions of each site and layer."""
        n_layers, found = self.estimates.cfg.n_layers, {}
        wanted = {
            (site, at)
            for site in sites
            for layer in grid.swept(site, n_layers)
            for at in grid.layers(site, layer, n_layers)
        }
        metrics = gradient_of_metric(self.base.given)
        for layer, slopes in self._gradients():
            for site in sites:
                if (site, layer) in wanted:
                    effect = self._effect(SITES[site], layer, slopes).cpu().numpy()
                    nothing = np.full(effect.shape[1:], np.nan, effect.dtype)
                    found[site, layer] = np.stack(
                        [nothing if at is None else effect[at] for at in metrics]
                    )
        return found

    def _gradients(self) -> LayerGradients:
        of, given, fact = self.estimates, self.base.given, self.fact
        names = {of.gradient_of(SITES[site]) for site in of.sites}
        own = isinstance(of.model, HookedDecoder)
        if of.method != "eap-ig":
            if not own:
                return hooked_gradients(of.model, given, fact, names)
            drop = of.method == "atp-star" and of.cfg.n_layers > 1
            relp = of.method == "relp"
            here = (given, fact, names, self.base, self.row)
            return own_gradients(of.model, *here, relp=relp, drop_layers=drop)
        first, last = (run[0]["embed"][self.row] for run in (self.base, self.source))
        points = [first + (i + 0.5) / N_POINTS * (last - first) for i in range(N_POINTS)]
        if not own:
            return _mean([hooked_gradients(of.model, given, fact, names, embed=x) for x in points])
        caches = [run_blocks(of.model, embed, NEEDED) for embed in points]
        return _mean([own_gradients(of.model, given, fact, names, cache) for cache in caches])

    def _effect(
        self, site: Site, layer: int, slopes: dict[str, Slopes]
    ) -> Float[Tensor, "metric part group source fact"]:
        """Estimated effects of changing each part and set of positions of one layer."""
        estimate = self._through_softmax if self.estimates.by_softmax(site) else self._products
        estimates = estimate(site, layer, slopes[self.estimates.gradient_of(site)])
        if self.estimates.method != "atp-star" or self.estimates.cfg.n_layers == 1:
            return estimates[0]
        # with an earlier layer dropped, gradients are the plain ones
        sizes = estimates.abs()
        total = layer * sizes[0] + sizes[1:].sum(0)
        sign = torch.where(estimates[0] < 0, -1.0, 1.0)  # 0 times a size would lose the size
        return sign * total / (layer + len(sizes) - 1)

    def _products(self, site: Site, layer: int, slope: Slopes) -> Effects:
        """Change · gradient."""
        base, source = (run[layer][site.activation][self.row] for run in (self.base, self.source))
        change = (source - base).to(slope)
        if site.is_table:
            change = change.nan_to_num()  # −inf − −inf at later tokens
        if site.is_edge:
            groups, sources = self.groups.to(slope), self.sources.to(slope)
            axes = "drop metric f part dest src, group f dest, source f src -> "
            axes += "drop metric part group source f"
            return einsum(change * slope, groups, sources, axes)
        if site.is_table:
            return self._of_queries(change, slope)
        if site.part == "neuron":
            change, slope = (x.unflatten(-1, (-1, self.n_neurons)) for x in (change, slope))
        elif not site.part:
            change, slope = change[..., None, :], slope[..., None, :]
        axes = "f pos part d, drop metric f pos part d -> drop metric f pos part"
        at, groups = einsum(change, slope, axes), self.groups.to(slope)
        axes = "drop metric f pos part, group f pos -> drop metric part group f"
        return einsum(at, groups, axes)[..., None, :]

    def _of_queries(self, change: Float[Tensor, "fact head dest src"], slope: Slopes) -> Effects:
        """Effects of changes of attention scores or patterns at each set of destinations."""
        axes = "f head dest src, drop metric f head dest src -> drop metric f head dest"
        at, groups = einsum(change, slope, axes), self.groups.to(slope)
        axes = "drop metric f head dest, group f dest -> drop metric head group f"
        return einsum(at, groups, axes)[..., None, :]

    def _through_softmax(self, site: Site, layer: int, slope: Slopes) -> Effects:
        """Σ (p′ − p) · ∂m/∂p with the pattern p′ that the changed scores make."""
        base, source = self.base[layer], self.source[layer]
        scores = base["attn_scores"][self.row].to(slope)
        pattern = softmax(scores)
        if site.cut:
            effects = []
            for sources in self.sources[:, :, None, None]:
                left = softmax(scores.masked_fill(sources, -torch.inf)).nan_to_num()
                effects.append(self._of_queries(left - pattern, slope))
            effect = torch.cat(effects, -2)
            return effect if site.part else effect.sum(2, keepdim=True)
        moved = scores + self._score_change(site, base, source).to(slope)
        if site.activation not in _KEYS:
            return self._of_queries(softmax(moved) - pattern, slope)
        groups = rearrange(self.groups, "group f src -> group f 1 1 src")
        change = softmax(torch.where(groups, moved, scores)) - pattern
        axes = "group f head dest src, drop metric f head dest src -> drop metric head group f"
        by_key = einsum(change, slope, axes).unflatten(2, (self._n_keys, -1)).sum(3)
        return by_key[..., None, :]

    @property
    def _n_keys(self) -> int:
        return self.estimates.cfg.n_key_value_heads or self.estimates.cfg.n_heads

    def _score_change(
        self, site: Site, base: dict[str, Tensor], source: dict[str, Tensor]
    ) -> Float[Tensor, "fact head dest src"]:
        """How the changed activation moves the attention scores, all of its positions changed."""
        change = (source[site.activation] - base[site.activation])[self.row]
        if site.activation == "attn_scores":
            return change.nan_to_num()  # −inf − −inf at later tokens
        if not site.activation.startswith("rot"):
            pos = torch.arange(change.shape[1], device=change.device)
            change = rotate(change, rotation(pos, self.estimates.cfg))
        keys = site.activation in _KEYS
        held = base["rot_q" if keys else "rot_k"][self.row]
        q, k = (held, change) if keys else (change, held)
        k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
        scores = einsum(q, k, "fact dest head d, fact src head d -> fact head dest src")
        return scores * q.shape[-1] ** -0.5


def _mean(points: list[LayerGradients]) -> LayerGradients:
    """The mean of the gradients at several points."""
    for same in zip(*points):
        layer = same[0][0]
        of_layer = [slopes for _, slopes in same]
        yield layer, {name: sum(x[name] for x in of_layer) / len(same) for name in of_layer[0]}
