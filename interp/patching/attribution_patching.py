"""Patching estimated from gradients: all cells together cost a few forward and backward passes.

With x the base run's activation, x′ what is pasted and m a metric, the effect of a patch is
estimated by (x′ − x) · ∂m/∂x, summed over what is patched together:

- ``atp`` (attribution patching, Kramár et al. 2024, https://arxiv.org/abs/2403.00745): the gradient
  is that of the base run.
- ``atp-star`` (the same authors): changes of queries, keys and attention scores are followed
  through the softmax exactly, (p′ − p) · ∂m/∂p; and the size of an estimate is Σ |estimate| ÷
  (layers − 1) over backward passes that drop one layer each (GradDrop), so that effects that cancel
  along different paths are not missed. Its sign is that of the estimate without dropping.
- ``relp`` (Jafari et al. 2025, https://arxiv.org/abs/2508.21258): the gradient holds LayerNorm's
  scale and each neuron's gelu(x) ÷ x.
- ``eap-ig`` (integrated gradients, Hanna et al. 2024, https://arxiv.org/abs/2403.17806): the mean
  gradient at ``N_POINTS`` midpoints between the two runs' embeddings.

All are first-order. Where they disagree with exact patching, as at saturated softmaxes, LayerNorms
and gates of several inputs, they are wrong.
"""

from collections.abc import Collection, Iterator
from functools import partial

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.config import Method
from interp.model.attention import softmax
from interp.patching.activations import ActivationCache, Prompts, ScoredCache
from interp.patching.gradients import gradients
from interp.patching.grid import PatchGrid, WorkItems
from interp.patching.hooks import HookedRuns
from interp.patching.intervention import Intervention
from interp.patching.paste import differing_items
from interp.patching.recompute import Recompute
from interp.patching.sites import SITES, Site

N_POINTS = 5
_QUERIES, _KEYS = ("q", "rot_q"), ("k", "rot_k")
_BEFORE_SOFTMAX = (*_QUERIES, *_KEYS, "attn_scores")
Table = Float[Tensor, "part group source fact"]
Tables = Float[Tensor, "metric part group source fact"]


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
            self.also |= {"attn_scores", "rot_q", "rot_k"}

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
        n_layers = self.cfg.n_layers
        swept = {
            (site, layer): differing_items(site, layer, base, source, grid, self.cfg)
            for site in sites
            for layer in grid.swept(site, n_layers)
        }
        for start in range(0, len(base.given.tokens), self.rows_at_once(base.given)):
            facts = np.arange(len(base.given.tokens))[start:][: self.rows_at_once(base.given)]
            part = _FactGradients(self, facts, grid, base, source)
            for (site, layer), items in swept.items():
                here = items[np.isin(items.fact, facts)]
                if not len(here):
                    continue
                layers = grid.layers(site, layer, n_layers)
                effect = sum(part.effects(SITES[site], at) for at in layers).cpu().numpy()
                place = (here.part, here.group, here.source, here.fact - start)
                yield here, base.scores[:, here.fact] + effect[:, *place].astype(np.float32)

    def rows_at_once(self, given: Prompts) -> int:
        """Prompts whose forward pass, kept for the backward passes, fits into ``max_bytes``."""
        cfg, n_pos = self.cfg, given.tokens.shape[1]
        in_block = 8 * cfg.d_mlp + 32 * cfg.d_model + 8 * cfg.n_heads * n_pos
        numbers = n_pos * (3 * cfg.d_vocab + cfg.n_layers * in_block)
        return max(1, int(self.max_bytes // (numbers * self.embedding.element_size())))


class _FactGradients:
    """Some facts of a batch, and their gradients."""

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
        self.groups, self.sources = (
            torch.from_numpy(x[:, facts]).to(device) for x in (grid.positions, grid.sources)
        )
        self.gradients = self._gradients()

    def _gradients(self) -> list[list[ActivationCache | None]]:
        """By backward pass and metric."""
        of, method = self.estimates, self.estimates.method
        names = {of.gradient_of(SITES[site]) for site in of.sites}
        found = partial(gradients, of.model, self.base.given, self.fact, names)
        if method != "eap-ig":
            drop = method == "atp-star" and of.cfg.n_layers > 1
            return found(relp=method == "relp", drop_layers=drop).of
        first, last = (run[0]["embed"][self.fact].clone() for run in (self.base, self.source))
        shares = [(i + 0.5) / N_POINTS for i in range(N_POINTS)]
        return [_mean([found(embed=first + share * (last - first)).of[0] for share in shares])]

    @torch.no_grad()
    def effects(self, site: Site, layer: int) -> Tables:
        """Estimated effects of changing each part and set of positions in one layer."""
        slopes = [
            None if of is None else of[layer][self.estimates.gradient_of(site)]
            for metrics in self.gradients
            for of in metrics
        ]
        table = self._through_softmax if self.estimates.by_softmax(site) else self._products
        n_parts = site.n_parts(self.estimates.cfg, self.n_neurons)
        shape = (n_parts, len(self.groups), len(self.sources), len(self.fact))
        nothing = torch.full(shape, torch.nan, device=self.fact.device)
        found = iter(table(site, layer, [slope for slope in slopes if slope is not None]))
        tables = torch.stack([nothing if slope is None else next(found) for slope in slopes])
        plain, *dropped = tables.unflatten(0, (len(self.gradients), -1))
        if not dropped:
            return plain
        inside = not site.name.startswith(("embed", "resid"))
        return plain.sign() * torch.stack(dropped).abs().sum(0) / (len(dropped) - inside)

    def _products(self, site: Site, layer: int, slopes: list[Tensor]) -> Iterator[Table]:
        """Change · gradient, for each of several gradients."""
        base, source = (run[layer][site.activation][self.fact] for run in (self.base, self.source))
        change = (source - base).nan_to_num()  # −inf − −inf at later tokens
        groups, sources = self.groups.to(change), self.sources.to(change)
        for slope in slopes:
            product = change * slope
            if site.is_edge:
                axes = "f part dest src, group f dest, source f src -> part group source f"
                yield einsum(product, groups, sources, axes)
                continue
            if site.part == "neuron":
                product = product.unflatten(-1, (-1, self.n_neurons))
            at = product.sum(-1)
            if site.is_table:
                at = at.mT
            elif not site.part:
                at = at[..., None]
            yield einsum(at, groups, "fact pos part, group fact pos -> part group fact")[:, :, None]

    def _through_softmax(self, site: Site, layer: int, slopes: list[Tensor]) -> Iterator[Table]:
        """Σ (p′ − p) · ∂m/∂p with the pattern p′ that the changed scores make, for each of several
        ∂m/∂p.
        """
        base, source = self.base[layer], self.source[layer]
        scores, keys = base["attn_scores"][self.fact], site.activation in _KEYS
        pattern = softmax(scores)
        moved = -torch.inf if site.cut else scores + self._score_change(site, base, source)
        found = [[] for _ in slopes]
        for group in self.groups:
            for sources in self.sources:
                here = group[:, None, :, None] & (sources[:, None, None] | (not site.is_edge))
                here = here.mT if keys else here
                change = softmax(torch.where(here, moved, scores)).nan_to_num() - pattern
                for of_slope, slope in zip(found, slopes):
                    of_slope.append((change * slope).sum((2, 3)))
        for of_slope in found:
            table = torch.stack(of_slope).unflatten(0, (len(self.groups), len(self.sources)))
            if not site.part:
                table = table.sum(-1, keepdim=True)
            yield rearrange(table, "group source fact part -> part group source fact")

    def _score_change(
        self, site: Site, base: dict[str, Tensor], source: dict[str, Tensor]
    ) -> Float[Tensor, "fact head dest src"]:
        """How the changed activation moves the attention scores, all of its positions changed."""
        if site.activation == "attn_scores":
            return (source["attn_scores"] - base["attn_scores"])[self.fact].nan_to_num()
        moved = "rot_q" if site.activation in _QUERIES else "rot_k"
        change = (source[moved] - base[moved])[self.fact]
        held = base["rot_k" if moved == "rot_q" else "rot_q"][self.fact]
        q, k = (change, held) if moved == "rot_q" else (held, change)
        scores = einsum(q, k, "fact dest head d, fact src head d -> fact head dest src")
        return scores * q.shape[-1] ** -0.5


def _mean(points: list[list[ActivationCache | None]]) -> list[ActivationCache | None]:
    """By metric, the mean of its gradients at several points."""
    means = []
    for gradients_of_metric in zip(*points):
        if gradients_of_metric[0] is None:
            means.append(None)
            continue
        layers = zip(*gradients_of_metric)
        means.append(
            [{name: sum(x[name] for x in same) / len(same) for name in same[0]} for same in layers]
        )
    return means
