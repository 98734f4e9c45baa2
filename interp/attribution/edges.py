"""Edges of the residual stream's graph: what each component writes into what each later one reads.

Writers are the embedding, heads and MLPs; readers are the queries, keys and values of each head,
MLPs and the logits; an edge joins them at the tokens of one role. Its effect is the change of
``logit_diff`` when this reader alone gets what this writer writes in the other run. ``exact`` runs
that (path patching); the others estimate it by (w′ − w) · ∂m/∂(input of the reader), summed over
the role's tokens, so that different roles do not cancel:

- ``eap`` (Syed et al. 2023, https://arxiv.org/abs/2310.10348): the gradient of the base run.
- ``relp`` (Jafari et al. 2025): that with LayerNorm's scale and gelu(x) ÷ x held.
- ``eap-ig`` (Hanna et al. 2024, https://arxiv.org/abs/2403.17806): the mean gradient at
  ``N_POINTS`` midpoints between the two runs' embeddings; the effects of the embedding's edges and
  of all they lead to add up to the difference of the runs as points grow.

A large estimate is no evidence of an effect; compare with ``exact``.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Literal

import numpy as np
import torch
import xarray as xr
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from interp.attribution.component_outputs import component_outputs
from interp.config import Direction
from interp.data.facts import FactSet, role_masks
from interp.fields import argument
from interp.localization.inputs import check_inputs
from interp.model.decoder import DecoderConfig, HookedDecoder
from interp.model.weights import Weights
from interp.patching import patch_sites
from interp.patching.activations import Prompts, prompts
from interp.patching.attribution_patching import N_POINTS
from interp.patching.gradients import gradients

EdgeMethod = Literal["exact", "eap", "relp", "eap-ig"]
FACTS_AT_ONCE = 32
KINDS = ("q", "k", "v")
_GRADIENTS = (*KINDS, "mlp_pre", "resid_post")


@dataclass(frozen=True)
class Graph:
    """Writers and readers in the order in which they are computed."""

    n_layers: int
    n_heads: int
    parallel: bool

    @cached_property
    def writers(self) -> list[str]:
        names = ["embed"]
        for layer in range(self.n_layers):
            names += [*self._heads(layer), f"L{layer}-MLP"]
        return names

    @cached_property
    def readers(self) -> list[str]:
        names = []
        for layer in range(self.n_layers):
            names += [f"{head}.{kind}" for kind in KINDS for head in self._heads(layer)]
            names.append(f"L{layer}-MLP")
        return [*names, "logits"]

    def _heads(self, layer: int) -> list[str]:
        return [f"L{layer}H{head}" for head in range(self.n_heads)]

    def n_writers(self, layer: int, *, mlp: bool = False) -> int:
        """How many of the writers the attention of a layer, or its MLP, reads."""
        n = 1 + layer * (self.n_heads + 1)
        return n + self.n_heads if mlp and not self.parallel else n

    def readers_of(self, writer: int) -> tuple[list[int], list[int]]:
        """The readers of the component that is a writer: those at the tokens it writes at, and
        those at other tokens, keys and values.
        """
        name, at = self.writers[writer], self.readers.index
        if name == "embed":
            return [], []
        if name.endswith("MLP"):
            return [at(name)], []
        return [at(f"{name}.q")], [at(f"{name}.k"), at(f"{name}.v")]

    @cached_property
    def exists(self) -> Bool[np.ndarray, "writer reader"]:
        """Whether the reader comes after the writer."""
        exists = np.zeros((len(self.writers), len(self.readers)), bool)
        for i, reader in enumerate(self.readers):
            if reader == "logits":
                exists[:, i] = True
                continue
            layer = int(reader[1:].split("H")[0].split("-")[0])
            exists[: self.n_writers(layer, mlp=reader.endswith("MLP")), i] = True
        return exists


def graph_of(cfg: DecoderConfig) -> Graph:
    return Graph(cfg.n_layers, cfg.n_heads, cfg.parallel)


def edge_effects(
    model: HookedDecoder,
    facts: FactSet,
    *,
    method: EdgeMethod = "eap-ig",
    direction: Direction = "noising",
) -> xr.Dataset:
    """The effect of every edge on each fact's ``logit_diff``, exact or estimated.

    Returns:
        ``effect`` (writer, reader, role, fact): patched − base, nats; NaN for edges that do not
        exist and roles that a prompt lacks. When noising, negative effects are of edges that the
        answer needs. ``clean`` and ``corrupted`` (fact): ``logit_diff`` of the two runs.
    """
    check_inputs(model, facts, twins=True)
    argument("method", method, EdgeMethod), argument("direction", direction, Direction)
    check_token_roles(facts)
    graph = graph_of(model.cfg)
    roles = [i for i in range(len(facts.role_names)) if bool((facts.roles == i).any())]
    if method == "exact":
        effect, ends = _exact(model, facts, graph, direction)
    else:
        parts = [
            facts[range(start, min(len(facts), start + FACTS_AT_ONCE))]
            for start in range(0, len(facts), FACTS_AT_ONCE)
        ]
        pieces = [_estimated(model, part, graph, method, direction) for part in parts]
        effect, ends = (np.concatenate(arrays, -1) for arrays in zip(*pieces))
        effect = effect[:, :, roles]
    effect[~graph.exists] = np.nan
    there = role_masks(facts).any(-1).numpy()[roles]
    effect = np.where(there, effect, np.nan)
    attrs = {"units": "nats", "sign": "positive towards the clean answer"}
    return xr.Dataset(
        {
            "effect": (("writer", "reader", "role", "fact"), effect.astype(np.float32), attrs),
            "clean": ("fact", ends[0], attrs),
            "corrupted": ("fact", ends[1], attrs),
        },
        {
            "writer": graph.writers,
            "reader": graph.readers,
            "role": [facts.role_names[i] for i in roles],
            "attribute": ("fact", facts.texts.attribute.to_numpy(object)),
        },
        {"method": method, "direction": direction},
    )


def check_token_roles(facts: FactSet) -> None:
    """Raises a ValueError unless every token of every prompt has a role: edges are by role."""
    pos = torch.arange(facts.roles.shape[1])
    for fact, at in ((facts.roles < 0) & (pos < facts.lengths[:, None])).nonzero()[:1].tolist():
        raise ValueError(f"token {at} of fact {fact} has no role; edges need one for each token")


def _exact(
    model: HookedDecoder, facts: FactSet, graph: Graph, direction: Direction
) -> tuple[np.ndarray, np.ndarray]:
    """By path patching, one path of two stops per kind of writer and reader."""
    paths = {
        (writer, reader): f"{writer}-{reader}"
        for writer in ("embed", "z", "mlp_out")
        for reader in (*KINDS, "mlp_out", "logits")
    }
    usable = [
        path
        for (writer, reader), path in paths.items()
        if graph.n_layers > 1
        or reader == "logits"
        or writer == "embed"
        or ((writer, reader) == ("z", "mlp_out") and not graph.parallel)
    ]
    found = patch_sites(model, facts, sites=usable, direction=direction, whole_value=False)
    ends = np.stack([found[usable[0]][end].values for end in ("clean", "corrupted")])
    base = ends[0] if direction == "noising" else ends[1]
    n_roles = found[usable[0]].sizes["role"]
    shape = (len(graph.writers), len(graph.readers), n_roles, len(facts))
    effect = np.full(shape, np.nan, np.float32)
    for path in usable:
        writer, reader = path.split("-")
        values = found[path].patched
        labels = {dim: values[dim].values.tolist() for dim in values.dims[:-2]}
        for place in product(*(range(len(of)) for of in labels.values())):
            column = values.values[place]
            if np.isfinite(column).any():
                at = {dim: of[i] for (dim, of), i in zip(labels.items(), place)}
                u, v = _writer_name(writer, at), _reader_name(reader, at)
                effect[graph.writers.index(u), graph.readers.index(v)] = column - base
    return effect, ends


def _writer_name(site: str, at: dict[str, int]) -> str:
    if site == "embed":
        return "embed"
    return f"L{at['layer']}H{at['head']}" if site == "z" else f"L{at['layer']}-MLP"


def _reader_name(site: str, at: dict[str, int]) -> str:
    if site == "logits":
        return "logits"
    layer = at["layer_1"]
    return f"L{layer}-MLP" if site == "mlp_out" else f"L{layer}H{at['head_1']}.{site}"


@torch.no_grad()
def _estimated(
    model: HookedDecoder, facts: FactSet, graph: Graph, method: EdgeMethod, direction: Direction
) -> tuple[np.ndarray, np.ndarray]:
    """Effects (writer, reader, role, fact) for all of ``facts.role_names``, and ``logit_diff`` of
    the clean and the corrupted run.
    """
    weights, device = Weights(model), model.embed.weight.device
    both = prompts(first_tokens(facts), device)
    runs = [component_outputs(weights, given.tokens) for given in both]
    ends = np.stack(
        [logit_diff(logits, given).cpu().numpy() for (logits, _), given in zip(runs, both)]
    )
    order = slice(None) if direction == "noising" else slice(None, None, -1)
    (_, base), (_, other) = runs[order]
    base_given, other_given = both[order]
    embeds = [None]
    if method == "eap-ig":
        start, end = (model.embed(given.tokens).detach() for given in (base_given, other_given))
        embeds = [start + (i + 0.5) / N_POINTS * (end - start) for i in range(N_POINTS)]
    slopes = sum(
        _reader_gradients(weights, graph, base_given, embed, relp=method == "relp")
        for embed in embeds
    ) / len(embeds)
    delta = torch.stack([y - x for x, y in zip(base, other)], 2)
    of_pos = einsum(delta, slopes, "fact pos u m, fact pos v m -> fact pos u v")
    masks = role_masks(facts)[:, :, : delta.shape[1]].to(of_pos)
    effect = einsum(of_pos, masks, "fact pos u v, role fact pos -> u v role fact")
    return effect.cpu().numpy(), ends


def first_tokens(facts: FactSet) -> FactSet:
    """Facts whose values are their first tokens alone."""
    return replace(facts, answers=facts.answers[:, :1])


def logit_diff(logits: Float[Tensor, "fact pos d_vocab"], given: Prompts) -> Float[Tensor, " fact"]:
    """``logit_diff`` of each fact, at the last token of its prompt."""
    last = logits[torch.arange(len(logits), device=logits.device), given.n_prompt - 1]
    pair = torch.stack((given.answers[:, 0], given.other), 1)
    correct, other = last.gather(1, pair).unbind(1)
    return correct - other


def _reader_gradients(
    weights: Weights,
    graph: Graph,
    given: Prompts,
    embed: Float[Tensor, "fact pos d_model"] | None,
    *,
    relp: bool,
) -> Float[Tensor, "fact pos reader d_model"]:
    """The gradient of ``logit_diff`` by the residual stream that each reader reads."""
    fact = torch.arange(len(given.tokens), device=given.tokens.device)
    mid = "resid_pre" if graph.parallel else "resid_mid"
    found = gradients(
        *(weights.model, given, fact, _GRADIENTS), also={"resid_pre", mid}, embed=embed, relp=relp
    )
    slope, eps, by_reader = found.of[0][0], weights.model.cfg.ln_eps, []
    for layer in range(graph.n_layers):
        of, cache = slope[layer], found.cache[layer]
        factors, _ = weights.attention_norm_weights(layer)
        for kind in KINDS:
            inputs = weights.head_inputs(layer, kind)
            normed = einsum(of[kind], inputs, "fact pos h d, h d m -> fact pos h m") * factors
            by_reader.append(_through_norm(normed, cache["resid_pre"], eps, held=relp))
        factors, _ = weights.mlp_norm_weights(layer)
        normed = of["mlp_pre"] @ weights.neuron_inputs(layer) * factors
        by_reader.append(_through_norm(normed[:, :, None], cache[mid], eps, held=relp))
    return torch.cat([*by_reader, slope[-1]["resid_post"][:, :, None]], 2)


def _through_norm(
    slope: Float[Tensor, "fact pos reader d_model"],
    resid: Float[Tensor, "fact pos d_model"],
    eps: float,
    *,
    held: bool,
) -> Float[Tensor, "fact pos reader d_model"]:
    """The gradient by LayerNorm's input from that by its output, before the factors; with its scale
    ``held``, of the mean alone.
    """
    centred = (resid - resid.mean(-1, keepdim=True))[:, :, None]
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    through = slope - slope.mean(-1, keepdim=True)
    if not held:
        normed = centred * scale
        through = through - normed * (normed * slope).mean(-1, keepdim=True)
    return through * scale
