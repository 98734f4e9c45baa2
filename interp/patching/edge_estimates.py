"""Effects along paths of two stops estimated from gradients (edge attribution patching).

With w and w′ what the first stop writes into the residual stream in the base run and in the other,
x the residual stream that the second stop reads, and m a metric, the effect of the path is
estimated by (w′ − w) · ∂m/∂x, summed over the positions that are changed together:

- ``eap`` (Syed et al. 2023, https://arxiv.org/abs/2310.10348): the gradient of the base run.
- ``relp`` (Jafari et al. 2025, https://arxiv.org/abs/2508.21258): that with the scales of norms
  and f(x) ÷ x of the non-linearity f held.
- ``eap-ig`` (Hanna et al. 2024, https://arxiv.org/abs/2403.17806): the mean gradient at
  ``N_POINTS`` midpoints between the two runs' embeddings.

∂m/∂x is through the second stop alone: the gradient by its query, key or value, or by what its MLP
writes, taken back through its weights and the norm before them. A large estimate is no evidence of
an effect.
"""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.model.weights import HeadInput, Weights, widened
from interp.patching.activations import ActivationCache, Prompts, ScoredCache
from interp.patching.attribution_patching import N_POINTS, GradientEstimates
from interp.patching.backward import through_norm
from interp.patching.gradients import gradients
from interp.patching.grid import PatchGrid
from interp.patching.path_patching import LOGITS, Stop, first_readers, parse_path

KINDS: tuple[HeadInput, ...] = ("q", "k", "v")
_GRADIENT_OF = {"mlp_out": "mlp_in", LOGITS: "resid_post"}
"""The activation whose gradient is taken for a second stop; by default its own."""
Effects = Float[np.ndarray, "metric layer part group way fact"]
Embeddings = Float[Tensor, "row pos d_model"]
InputGradients = Float[Tensor, "metric row pos read_layer read_part d_model"]


@torch.no_grad()
def path_estimates(
    runs: GradientEstimates,
    paths: list[str],
    grid: PatchGrid,
    base: ScoredCache,
    source: ActivationCache,
) -> dict[str, Effects]:
    """By path of two stops, the base run's metrics plus the estimated effects.

    ``layer`` and ``part`` are those of the second stop, ``way`` the layer and part of the first.
    NaN where the stops are not in order or a fact has no such positions.
    """
    stops = {path: parse_path(path) for path in paths}
    at_once, pieces = _facts_at_once(runs, list(stops.values()), grid, base), []
    for start in range(0, len(base.given.tokens), at_once):
        piece = _FactEffects(runs, slice(start, start + at_once), grid, base, source)
        pieces.append(piece.of_paths(stops))
    there = np.where(grid.positions.any(2), base.scores[:, None], np.float32(np.nan))
    return {
        path: there[:, None, None, :, None] + np.concatenate([piece[path] for piece in pieces], -1)
        for path in paths
    }


def input_gradients(
    weights: Weights,
    given: Prompts,
    fact: Int[Tensor, " row"],
    stops: Collection[str],
    metrics: Sequence[int],
    *,
    embeds: Sequence[Embeddings | None] = (None,),
    relp: bool = False,
) -> dict[str, InputGradients]:
    """The gradient of each metric by the residual stream that second stops read, by their site:
    what reaches the metric through that layer and head alone. The logits have one layer.

    Args:
        stops: their sites: q, k, v, mlp_out, logits.
        metrics: which, in the order of ``scores_of``; each must have a gradient.
        embeds: embeddings to run on, in place of those of the prompts; gradients are means over
            them.
        relp: scales of norms and f(x) ÷ x of the non-linearity f are held.
    """
    total: dict[str, Tensor] = {}
    for embed in embeds:
        found = _gradients_at(weights, given, fact, stops, metrics, embed, relp)
        total = {site: total[site] + x if total else x for site, x in found.items()}
    return {site: x / len(embeds) for site, x in total.items()}


def midpoints(start: Embeddings, end: Embeddings) -> list[Embeddings]:
    """The ``N_POINTS`` embeddings of integrated gradients."""
    return [start + (i + 0.5) / N_POINTS * (end - start) for i in range(N_POINTS)]


def _gradients_at(
    weights: Weights,
    given: Prompts,
    fact: Int[Tensor, " row"],
    stops: Collection[str],
    metrics: Sequence[int],
    embed: Embeddings | None,
    relp: bool,
) -> dict[str, InputGradients]:
    """``input_gradients`` at one point."""
    cfg = weights.model.cfg
    names = {_GRADIENT_OF.get(stop, stop) for stop in stops}
    here = (weights.model, given, fact, names)
    found = gradients(*here, also=["resid_pre"], embed=embed, relp=relp)
    slopes = {}
    for stop in stops:
        layers = [cfg.n_layers - 1] if stop == LOGITS else range(cfg.n_layers)
        of_layers = []
        for layer in layers:
            of_metrics = [found.of[i][layer][_GRADIENT_OF.get(stop, stop)] for i in metrics]
            slope = widened(torch.stack(of_metrics))
            if stop in KINDS:
                resid = widened(found.cache[layer]["resid_pre"])
                slope = _through_head_inputs(weights, stop, layer, slope, resid, held=relp)
            else:
                slope = slope[:, :, :, None]
            of_layers.append(slope)
        slopes[stop] = torch.stack(of_layers, 3)
    return slopes


def _through_head_inputs(
    weights: Weights,
    kind: HeadInput,
    layer: int,
    slope: Float[Tensor, "metric row pos part d_head"],
    resid: Float[Tensor, "row pos d_model"],
    *,
    held: bool,
) -> Float[Tensor, "metric row pos part d_model"]:
    """The gradient by the residual stream that each head reads, from that by its query, key or
    value; with the norm's scale ``held``, of the rest alone.
    """
    axes = "metric row pos h d, h d m -> metric row pos h m"
    by_read = einsum(slope, weights.head_inputs(layer, kind), axes)
    norm = weights.attention_norm(layer)
    return by_read if norm is None else through_norm(by_read, norm, resid[:, :, None], held=held)


def _facts_at_once(
    runs: GradientEstimates, paths: list[list[Stop]], grid: PatchGrid, base: ScoredCache
) -> int:
    """Facts whose gradients, and products with them, fit into the runs' ``max_bytes``."""
    cfg, n_metrics, n_pos = runs.cfg, len(base.scores), base.given.tokens.shape[1]
    n_written, n_read = (
        {stops[i].site: cfg.n_layers * len(stops[i].parts(cfg, grid.n_neurons)) for stops in paths}
        for i in (0, 1)
    )
    kept = cfg.d_model * (sum(n_written.values()) + 2 * n_metrics * sum(n_read.values()))
    products = n_metrics * max(n_written[x.site] * n_read[y.site] for x, y in paths)
    numbers = n_pos * (kept + products)
    own = int(runs.max_bytes // (numbers * runs.embedding.element_size()))
    return max(1, min(own, runs.rows_at_once(base.given, grid)))


class _FactEffects:
    """Estimated effects on some facts of a batch."""

    def __init__(
        self,
        runs: GradientEstimates,
        facts: slice,
        grid: PatchGrid,
        base: ScoredCache,
        source: ActivationCache,
    ) -> None:
        self.runs, self.weights, self.facts = runs, Weights(runs.model), facts
        self.base, self.source, self.n_neurons = base, source, grid.n_neurons
        device = runs.embedding.device
        self.groups = torch.from_numpy(grid.positions[:, facts]).to(device)
        self.may_differ = torch.from_numpy(grid.may_differ[facts]).to(device)
        # Without corrupted answers there is no logit_diff, and its score is NaN.
        self.metrics = range(int(base.given.other is None), len(base.scores))

    def of_paths(self, paths: dict[str, list[Stop]]) -> dict[str, Effects]:
        """Effects by path; NaN where the stops are not in order."""
        given, method = self.base.given, self.runs.method
        fact = torch.arange(len(given.tokens), device=given.tokens.device)[self.facts]
        embeds = [None]
        if method == "eap-ig":
            embeds = midpoints(*(run[0]["embed"][self.facts] for run in (self.base, self.source)))
        slopes = input_gradients(
            *(self.weights, given, fact, {last.site for _, last in paths.values()}, self.metrics),
            embeds=embeds,
            relp=method == "relp",
        )
        changes = {
            (first.site, layer): self._change(first, layer)
            for first, _ in paths.values()
            for layer in first.layers(self.runs.cfg)
        }
        return {
            path: self._of_path(path, first, last, changes, slopes[last.site])
            for path, (first, last) in paths.items()
        }

    def _of_path(
        self,
        path: str,
        first: Stop,
        last: Stop,
        changes: dict[tuple[str, int], Float[Tensor, "fact pos first d_model"]],
        slopes: InputGradients,
    ) -> Effects:
        """Raises a ValueError if an estimate is not finite."""
        cfg, n_neurons = self.runs.cfg, self.n_neurons
        layers, writing = last.layers(cfg), first.layers(cfg)
        slopes = slopes[:, :, :, layers][..., last.parts(cfg, n_neurons), :]
        n_first, (n_groups, n_facts, _) = len(first.parts(cfg, n_neurons)), self.groups.shape
        shape = (len(layers), slopes.shape[4], n_groups, len(writing), n_first, n_facts)
        effects = np.full((len(self.base.scores), *shape), np.nan, np.float32)
        for i, layer in enumerate(writing):
            change = changes[first.site, layer][:, :, first.parts(cfg, n_neurons)]
            after = first_readers(first, layer, parallel=cfg.parallel)[last.site == "mlp_out"]
            early = 0 if last.site == LOGITS else sum(at < after for at in layers)
            found = self._products(change, slopes[:, :, :, early:])
            if not found.isfinite().all():
                raise ValueError(
                    f"estimates of {path!r} from layer {layer} are not finite; patch in fp32, or "
                    "name other layers"
                )
            effects[self.metrics, early:, :, :, i] = found.cpu().numpy()
        return rearrange(
            effects, "m layer part group at first f -> m layer part group (at first) f"
        )

    def _products(
        self, change: Float[Tensor, "fact pos first d_model"], slopes: InputGradients
    ) -> Float[Tensor, "metric read_layer read_part group first fact"]:
        """Change · gradient, summed over each set of positions."""
        axes = "fact pos u m, metric fact pos layer v m -> metric fact pos layer v u"
        of_pos = einsum(change, slopes, axes)
        axes = "metric fact pos layer v u, group fact pos -> metric layer v group u fact"
        return einsum(of_pos, self.groups.to(of_pos), axes)

    def _change(self, stop: Stop, layer: int) -> Float[Tensor, "fact pos first d_model"]:
        """The change of what each part of a first stop's layer writes into the residual stream."""
        new, old = (self._written(run, stop, layer) for run in (self.source, self.base))
        return (new - old) * self.may_differ[..., None, None]

    def _written(
        self, run: ActivationCache, stop: Stop, layer: int
    ) -> Float[Tensor, "fact pos first d_model"]:
        """What each part of a stop's layer writes in a run."""
        x, weights = widened(run[layer][stop.site][self.facts]), self.weights
        if stop.has_heads:
            return weights.written_by_heads(layer, x)
        if stop.part != "neuron":
            return x[:, :, None]
        outputs = weights.neuron_outputs(layer).unflatten(0, (-1, self.n_neurons))
        x = x * weights.mlp_output_factor(layer, run[layer][stop.site][self.facts])
        axes = "fact pos part d, part d m -> fact pos part m"
        return einsum(x.unflatten(-1, outputs.shape[:2]), outputs, axes)
