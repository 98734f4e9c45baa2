"""Edges of the residual stream's graph: what each component writes into what each later one reads.

Writers are the embedding, heads and MLPs; readers are the queries, keys and values of each head (of
each group that shares them),
MLPs and the logits; an edge joins them at the tokens of one role. Its effect is the change of
``logit_diff`` when this reader alone gets what this writer writes in the other run. ``exact`` runs
that (path patching); the others estimate it by (w′ − w) · ∂m/∂(input of the reader), summed over
the role's tokens, so that different roles do not cancel:

- ``eap`` (Syed et al. 2023, https://arxiv.org/abs/2310.10348): the gradient of the base run.
- ``relp`` (Jafari et al. 2025): that with LayerNorm's scale and gelu(x) ÷ x held.
- ``eap-ig`` (Hanna et al. 2024, https://arxiv.org/abs/2403.17806): the mean gradient at
  midpoints between the two runs' embeddings; the effects of the embedding's edges and of all they
  lead to add up to the difference of the runs as points grow.

The mean of both runs' gradients is half of ``eap`` when noising minus ``eap`` when denoising. A
large estimate is no evidence of an effect; compare with ``exact``.
"""

from dataclasses import dataclass, replace
from functools import cached_property
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
from interp.model.weights import Weights, widened
from interp.patching import patch_sites
from interp.patching.activations import Prompts, prompts
from interp.patching.edge_estimates import input_gradients, midpoints
from interp.patching.intervention import check_estimate

EdgeMethod = Literal["exact", "eap", "relp", "eap-ig"]
FACTS_AT_ONCE = 32
KINDS = ("q", "k", "v")


@dataclass(frozen=True)
class Graph:
    """Writers and readers in the order in which they are computed."""

    n_layers: int
    n_heads: int
    n_key_value_heads: int
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
            names += [f"{head}.q" for head in self._heads(layer)]
            groups = self._heads(layer)[: self.n_key_value_heads]
            names += [f"{group}.{kind}" for kind in KINDS[1:] for group in groups]
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
        layer, head = name.split("H")
        group = f"{layer}H{int(head) // (self.n_heads // self.n_key_value_heads)}"
        return [at(f"{name}.q")], [at(f"{group}.k"), at(f"{group}.v")]

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
    """The graph of a model, from its ``cfg``: which edges exist, in the order of circuits."""
    return Graph(cfg.n_layers, cfg.n_heads, cfg.n_key_value_heads, cfg.parallel)


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
    for path in _paths(graph):
        check_estimate(model.cfg, path, method)
    roles = [i for i in range(len(facts.role_names)) if bool((facts.roles == i).any())]
    if method == "exact":
        effect, ends = _exact(model, facts, graph, direction)
    else:
        pieces = [
            _estimated(model, part, graph, method, direction)
            for part in facts.batches(FACTS_AT_ONCE)
        ]
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
    """Raises a ValueError unless every token of every prompt has a role: results are by role."""
    pos = torch.arange(facts.roles.shape[1])
    for fact, at in ((facts.roles < 0) & (pos < facts.lengths[:, None])).nonzero()[:1].tolist():
        raise ValueError(f"token {at} of fact {fact} has no role; give one for each token")


def _exact(
    model: HookedDecoder, facts: FactSet, graph: Graph, direction: Direction
) -> tuple[np.ndarray, np.ndarray]:
    """By path patching: effects (writer, reader, role, fact), and ``logit_diff`` of the clean and
    the corrupted run.
    """
    found = patch_sites(model, facts, sites=_paths(graph), direction=direction, whole_value=False)
    one = next(iter(found.values()))
    ends = np.stack([one.clean.values, one.corrupted.values])
    shape = (len(graph.writers), len(graph.readers), one.sizes["role"], len(facts))
    effect = np.full(shape, np.nan, np.float32)
    for path, result in found.items():
        writer, reader = path.split("-")
        at = np.ix_(_places(graph.writers, writer), _places(graph.readers, reader))
        change = result.patched.values - ends[0 if direction == "noising" else 1]
        effect[at] = change.reshape(at[0].size, at[1].size, *shape[2:])
    return effect, ends


def _paths(graph: Graph) -> list[str]:
    """Paths of two stops, one per kind of writer and of reader that can be in order."""
    late = graph.n_layers > 1
    mid = late or not graph.parallel
    return [
        *(f"embed-{reader}" for reader in (*KINDS, "mlp_out", "logits")),
        *(f"{writer}-{kind}" for writer in ("z", "mlp_out") for kind in KINDS if late),
        *(["z-mlp_out"] if mid else []),
        *(["mlp_out-mlp_out"] if late else []),
        *("z-logits", "mlp_out-logits"),
    ]


def _places(components: list[str], stop: str) -> list[int]:
    """Where the components that a stop stands for are among the writers or readers."""
    if stop in ("embed", "logits"):
        return [components.index(stop)]
    ends = {"mlp_out": "-MLP", **{kind: f".{kind}" for kind in KINDS}}
    return [
        i
        for i, name in enumerate(components)
        if (name.endswith(ends[stop]) if stop in ends else "H" in name)
    ]


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
        embeds = midpoints(*(model.embed(x.tokens) for x in (base_given, other_given)))
    fact, stops = torch.arange(len(facts), device=device), (*KINDS, "mlp_out", "logits")
    slopes = input_gradients(
        *(weights, base_given, fact, stops, [0]), embeds=embeds, relp=method == "relp"
    )
    last = slopes.pop("logits")
    of_layers = torch.cat(list(slopes.values()), 4).flatten(3, 4)
    slopes = torch.cat([of_layers, last[:, :, :, 0]], 3)[0]
    delta = torch.stack([y - x for x, y in zip(base, other)], 2)
    of_pos = einsum(delta, slopes, "fact pos u m, fact pos v m -> fact pos u v")
    masks = role_masks(facts)[:, :, : delta.shape[1]].to(of_pos)
    effect = einsum(of_pos, masks, "fact pos u v, role fact pos -> u v role fact")
    return effect.cpu().numpy(), ends


def first_tokens(facts: FactSet) -> FactSet:
    """Facts whose values are their first tokens alone."""
    return replace(facts, answers=facts.answers[:, :1])


def logit_diff(logits: Float[Tensor, "fact pos d_vocab"], given: Prompts) -> Float[Tensor, " fact"]:
    """``logit_diff`` of each fact, at the last token of its prompt.

    Raises:
        ValueError: it is not finite.
    """
    last = widened(logits)[torch.arange(len(logits), device=logits.device), given.n_prompt - 1]
    pair = torch.stack((given.answers[:, 0], given.other), 1)
    correct, other = last.gather(1, pair).unbind(1)
    if not (correct - other).isfinite().all():
        raise ValueError("the model's logits on these facts are not finite; load it again")
    return correct - other
