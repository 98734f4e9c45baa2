"""Circuits: sets of edges (see ``edges``) that do a task, and how well they do it.

In the run of a circuit every reader gets what its kept edges carry in that run, and along all other
edges what their writers write in the ablated run: the corrupted prompts', or the mean over facts at
tokens of the same role. It is computed exactly, edge by edge. With m the mean ``logit_diff``,

    faithfulness = (m(circuit) − m(nothing)) ÷ (m(everything) − m(nothing)).

CPR and CMD (MIB: Mueller et al. 2025, https://arxiv.org/abs/2504.13151) are areas over the fraction
of edges kept, 0.001 to 1: CPR = ∫ f, with the edges of largest signed importance; CMD = ∫ |1 − f|,
with those of largest absolute importance. Perfect values are 0.999 and 0. A faithful circuit need
not be the only one: look at completeness, what remains without it, too.
"""

import heapq
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.attribution.component_outputs import component_outputs
from interp.attribution.edges import (
    KINDS,
    Graph,
    check_token_roles,
    first_tokens,
    graph_of,
    logit_diff,
)
from interp.data.facts import FactSet
from interp.fields import argument, shortened
from interp.localization.inputs import check_inputs
from interp.model.attention import attend
from interp.model.block import silent
from interp.model.decoder import HookedDecoder
from interp.model.weights import Weights
from interp.patching.activations import Prompts, prompts
from interp.statistics import runs_differ, share_interval

Ablation = Literal["corrupted", "mean"]
Ranking = Literal["signed", "absolute"]
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's shares of edges."""
ROWS_BYTES = 2.5e8
"""Memory for masks of edges; circuits and facts are run together up to it."""

Edges = Bool[np.ndarray, "writer reader role"]


def importance(effects: xr.Dataset) -> Float[np.ndarray, "writer reader role"]:
    """Mean over facts of what each edge does for the answer, in nats: positive if the answer is
    better with the edge in its clean state. −∞ for edges that do not exist.

    Args:
        effects: what ``edge_effects`` returns.
    """
    if not (isinstance(effects, xr.Dataset) and "fact" in effects.dims and "effect" in effects):
        raise ValueError("effects is not what edge_effects returns; give that, with all its facts")
    sign = 1.0 if effects.attrs["direction"] == "denoising" else -1.0
    mean = sign * effects.effect.mean("fact").transpose("writer", "reader", "role").values
    return np.where(np.isfinite(mean), mean, -np.inf)


def top_edges(
    scores: Float[np.ndarray, "writer reader role"], n: int, ranking: Ranking = "absolute"
) -> Edges:
    """The ``n`` edges of largest importance, or of largest absolute importance.

    Raises:
        ValueError: there are not so many edges.
    """
    argument("ranking", ranking, Ranking), _check_number(n, scores)
    flat = scores.ravel() if ranking == "signed" else _size(scores).ravel()
    chosen = np.zeros(flat.size, bool)
    order = np.argsort(-flat, kind="stable")[:n]
    chosen[order[np.isfinite(flat[order])]] = True
    return chosen.reshape(scores.shape)


def greedy_edges(scores: Float[np.ndarray, "writer reader role"], n: int, graph: Graph) -> Edges:
    """``n`` edges found from the logits backwards: always the one of largest absolute importance
    among those whose reader belongs to a component that the circuit already uses; fewer where the
    rest is out of reach.

    Args:
        graph: ``graph_of(model.cfg)``.

    Raises:
        ValueError: there are not so many edges, or no such graph.
    """
    _check_number(n, scores), _check_graph(graph)
    size, chosen = _size(scores), np.zeros(scores.shape, bool)
    n_roles, seen, queue = scores.shape[2], set(), []

    def use(readers: Sequence[int], roles: Sequence[int]) -> None:
        for reader in readers:
            for role in roles:
                if (reader, role) in seen:
                    continue
                seen.add((reader, role))
                for writer in np.flatnonzero(np.isfinite(size[:, reader, role])):
                    heapq.heappush(queue, (-size[writer, reader, role], int(writer), reader, role))

    use([len(graph.readers) - 1], range(n_roles))
    while queue and chosen.sum() < n:
        _, writer, reader, role = heapq.heappop(queue)
        chosen[writer, reader, role] = True
        own, elsewhere = graph.readers_of(writer)
        use(own, [role])
        use(elsewhere, range(n_roles))
    return chosen


def _check_number(n: int, scores: np.ndarray) -> None:
    n_edges = int(np.isfinite(scores).sum())
    if argument("n", n, int, least=0) > n_edges:
        raise ValueError(f"n is {n}, and there are {n_edges} edges; ask for fewer")


def _check_graph(graph: Graph) -> None:
    if not isinstance(graph, Graph):
        raise ValueError(f"graph is {shortened(graph)}; give graph_of(model.cfg)")


def _size(scores: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(scores), np.abs(scores), -np.inf)


def connected(circuit: Edges, graph: Graph) -> Edges:
    """The edges that lie on a way from the embedding to the logits; the others change nothing.
    Attention leads from any role to any other.
    """
    circuit = circuit.copy()
    while True:
        fed = np.zeros((len(graph.writers), circuit.shape[2]), bool)
        fed[0] = True
        for writer in range(1, len(graph.writers)):
            own, elsewhere = graph.readers_of(writer)
            incoming = circuit[:, own].any((0, 1))
            fed[writer] = incoming | circuit[:, elsewhere].any()
        used = circuit.any(1)
        kept = circuit & fed[:, None]
        for writer in range(1, len(graph.writers)):
            own, elsewhere = graph.readers_of(writer)
            kept[:, own] &= used[writer]
            kept[:, elsewhere] &= used[writer].any()
        if (kept == circuit).all():
            return circuit
        circuit = kept


@torch.inference_mode()
def run_circuits(
    model: HookedDecoder,
    facts: FactSet,
    circuits: Bool[np.ndarray, "circuit writer reader role"],
    roles: Sequence[str],
    *,
    ablation: Ablation = "corrupted",
) -> Float[np.ndarray, "circuit fact"]:
    """``logit_diff`` of every fact in the run of every circuit, in nats.

    Args:
        circuits: which edges are kept, in the order of ``Graph.writers``, ``Graph.readers`` and
            ``roles``.

    Raises:
        ValueError: facts without corrupted prompts; an unknown role, or one that is missing or
            there twice; circuits of another shape, or with edges that do not exist.
    """
    check_inputs(model, facts, twins=True)
    argument("ablation", ablation, Ablation), check_token_roles(facts)
    graph = graph_of(model.cfg)
    _check_circuits(circuits, roles, facts, graph)
    weights, device = Weights(model), model.embed.weight.device
    clean, corrupted = prompts(first_tokens(facts), device)
    (_, own), (_, other) = (
        component_outputs(weights, given.tokens) for given in (clean, corrupted)
    )
    number = torch.tensor([facts.role_names.index(role) for role in roles])
    role = (facts.roles[:, : own[0].shape[1], None] == number).long()
    there, role = role.any(-1).to(device), role.argmax(-1).to(device)
    ablated = other if ablation == "corrupted" else _means(own, role, there, len(roles))
    keep = torch.from_numpy(circuits).to(device)
    runner = _Runner(weights, graph, own[0], torch.stack(ablated, 2))
    n_circuits, n_facts = len(circuits), len(facts)
    circuit, fact = torch.meshgrid(
        torch.arange(n_circuits, device=device), torch.arange(n_facts, device=device), indexing="ij"
    )
    row_bytes = own[0].shape[1] * circuits[0, ..., 0].size * own[0].element_size()
    found = []
    for c, f in zip(
        *(x.flatten().split(max(1, int(ROWS_BYTES // row_bytes))) for x in (circuit, fact))
    ):
        mask = rearrange(keep[c], "row u v role -> row role u v")
        mask = mask[torch.arange(len(c), device=device)[:, None], role[f]] & there[f, :, None, None]
        logits = runner.run(f, mask.to(own[0].dtype))
        found.append(logit_diff(logits, _rows(clean, f)))
    return torch.cat(found).unflatten(0, (n_circuits, n_facts)).cpu().numpy()


def _check_circuits(
    circuits: np.ndarray, roles: Sequence[str], facts: FactSet, graph: Graph
) -> None:
    there = [facts.role_names[i] for i in facts.roles.unique() if i >= 0]
    for role in roles:
        if role not in facts.role_names:
            raise ValueError(f"no role {role!r}; these facts have {', '.join(facts.role_names)}")
        if list(roles).count(role) > 1:
            raise ValueError(f"roles has {role!r} twice; name each once")
    for role in there:
        if role not in roles:
            raise ValueError(
                f"roles lacks {role!r}, which these facts have; add it to the circuits"
            )
    one = (len(graph.writers), len(graph.readers), len(roles))
    kind, shape = getattr(circuits, "dtype", type(circuits).__name__), np.shape(circuits)
    if (
        not isinstance(circuits, np.ndarray)
        or kind != np.bool_
        or shape[1:] != one
        or not len(shape)
    ):
        raise ValueError(
            f"circuits is {kind} of shape {shape}; give a NumPy array of bool, (circuit, writer, "
            f"reader, role), of which each circuit is {one}"
        )
    if not len(circuits):
        raise ValueError("circuits has no circuit; give one or more")
    for writer, reader in np.argwhere((circuits & ~graph.exists[..., None]).any((0, 3)))[:1]:
        raise ValueError(
            f"circuits has the edge {graph.writers[writer]} → {graph.readers[reader]}, which does "
            "not exist; take those of everything(graph, n_roles)"
        )


def _rows(given: Prompts, fact: Int[Tensor, " row"]) -> Prompts:
    """The prompts of each row's fact."""
    rows = {name: None if x is None else x[fact] for name, x in vars(given).items()}
    return Prompts(**rows)


def _means(
    own: list[Float[Tensor, "fact pos d_model"]],
    role: Int[Tensor, "fact pos"],
    there: Bool[Tensor, "fact pos"],
    n_roles: int,
) -> list[Float[Tensor, "fact pos d_model"]]:
    """What each component writes in the mean over all facts' tokens of the same role."""
    at = torch.nn.functional.one_hot(role, n_roles).to(own[0]) * there[..., None]
    count = at.sum((0, 1)).clamp(min=1)[:, None]
    return [(einsum(x, at, "f p m, f p r -> r m") / count)[role] for x in own]


class _Runner:
    """Runs circuits of a model."""

    def __init__(
        self,
        weights: Weights,
        graph: Graph,
        embedded: Float[Tensor, "fact pos d_model"],
        ablated: Float[Tensor, "fact pos writer d_model"],
    ) -> None:
        self.weights, self.graph, self.embedded, self.ablated = weights, graph, embedded, ablated

    def run(
        self, fact: Int[Tensor, " row"], mask: Float[Tensor, "row pos writer reader"]
    ) -> Float[Tensor, "row pos d_vocab"]:
        """Logits of each row's fact in the run with the edges of ``mask``, 1 where kept."""
        graph, model, ablated = self.graph, self.weights.model, self.ablated[fact]
        change = [self.embedded[fact] - ablated[:, :, 0]]
        bias, at = torch.zeros_like(ablated[0, 0, 0]), 0

        def read(n_writers: int, n_readers: int) -> Float[Tensor, "row pos reader d_model"]:
            nonlocal at
            kept = mask[:, :, :n_writers, at : at + n_readers]
            at += n_readers
            moved = torch.stack(change[:n_writers], 2)
            moved = einsum(moved, kept, "row pos u m, row pos u v -> row pos v m")
            return moved + (ablated[:, :, :n_writers].sum(2) + bias)[:, :, None]

        for layer, block in enumerate(model.blocks):
            resid = read(graph.n_writers(layer), graph.n_heads + 2 * graph.n_key_value_heads)
            for head in self._head_outputs(layer, block.attention_input(resid)).unbind(2):
                change.append(head - ablated[:, :, len(change)])
            if not graph.parallel:
                bias = bias + self.weights.attention_bias(layer)
            mid = read(graph.n_writers(layer, mlp=True), 1)[:, :, 0]
            written = block.down(block.neurons(block.mlp_input(mid), silent))
            change.append(written - ablated[:, :, len(change)])
            if graph.parallel:
                bias = bias + self.weights.attention_bias(layer)
        return model.unembed(model.ln_final.unhooked(read(len(change), 1)[:, :, 0]))

    def _head_outputs(
        self, layer: int, normed: Float[Tensor, "row pos reader d_model"]
    ) -> Float[Tensor, "row pos head d_model"]:
        """What every head writes, given the input of its queries, keys and values."""
        weights, parts = self.weights, []
        counts = [self.graph.n_heads, *2 * [self.graph.n_key_value_heads]]
        for kind, inputs in zip(KINDS, normed.split(counts, 2)):
            x = einsum(inputs, weights.head_inputs(layer, kind), "r p h m, h d m -> r p h d")
            parts.append(x + weights.head_input_biases(layer, kind))
        q, k, v = parts
        dest = torch.arange(normed.shape[1], device=normed.device)[None]
        q, k = weights.turned(layer, "q", q), weights.turned(layer, "k", k)
        z = attend(q, k, v, dest, silent)
        z = rearrange(z, "row pos (head d) -> row pos head d", head=self.graph.n_heads)
        return weights.written_by_heads(layer, z)


def faithfulness(
    model: HookedDecoder,
    facts: FactSet,
    circuits: Bool[np.ndarray, "circuit writer reader role"],
    roles: Sequence[str],
    *,
    ablation: Ablation = "corrupted",
    seed: int = 0,
) -> xr.Dataset:
    """How much of the difference that everything makes each circuit makes.

    A circuit is complete if ``everything_but`` it has a faithfulness near 0, and minimal if each of
    ``without_each`` of its edges has less.

    Returns:
        ``faithfulness``, ``faithfulness_low`` and ``faithfulness_high`` (circuit): share and its
        95 % bootstrap interval over facts; NaN where everything makes no difference (see
        ``statistics.runs_differ``). ``n_edges`` (circuit).
    """
    graph = graph_of(model.cfg)
    check_inputs(model, facts, twins=True), _check_circuits(circuits, roles, facts, graph)
    whole = everything(graph, len(roles))
    ends = np.stack([np.zeros_like(whole), whole])
    found = run_circuits(model, facts, np.concatenate([ends, circuits]), roles, ablation=ablation)
    part, difference = found[2:] - found[0], found[1] - found[0]
    shares = part.mean(-1) / difference.mean(), *share_interval(part, difference, seed=seed)
    known = bool(runs_differ(difference))
    return xr.Dataset(
        {
            f"faithfulness{end}": ("circuit", np.where(known, x, np.nan), {"units": "share"})
            for end, x in zip(("", "_low", "_high"), shares)
        }
        | {"n_edges": ("circuit", circuits.sum((1, 2, 3)))},
        attrs={"ablation": ablation, "n_facts": len(facts)},
    )


def everything(graph: Graph, n_roles: int) -> Edges:
    """Every edge that exists."""
    _check_graph(graph)
    return np.repeat(graph.exists[:, :, None], n_roles, 2)


def everything_but(circuit: Edges, graph: Graph) -> Edges:
    """Every edge that exists and is not in the circuit."""
    return everything(graph, circuit.shape[2]) & ~circuit


def without_each(circuit: Edges) -> Bool[np.ndarray, "circuit writer reader role"]:
    """The circuit without each of its edges, in the order of ``np.argwhere``."""
    places = np.argwhere(circuit)
    circuits = np.repeat(circuit[None], len(places), 0)
    circuits[np.arange(len(places)), *places.T] = False
    return circuits


def areas(
    model: HookedDecoder,
    facts: FactSet,
    scores: Float[np.ndarray, "writer reader role"],
    roles: Sequence[str],
    *,
    ablation: Ablation = "corrupted",
) -> xr.Dataset:
    """Faithfulness of the top edges at ``FRACTIONS`` of all edges, by ``ranking``, and the areas
    ``cpr`` and ``cmd``.

    Raises:
        ValueError: scores of edges that exist are not finite, or those of edges that don't are.
    """
    whole = everything(graph_of(model.cfg), len(roles))
    if np.shape(scores) != whole.shape or (np.isfinite(scores) != whole).any():
        raise ValueError(
            f"scores must be numbers for each of the {whole.sum()} edges that exist, and −∞ for "
            f"the others, of shape {whole.shape}; importance(edge_effects(...)) makes such"
        )
    n = whole.sum()
    sizes = [int(n * fraction) for fraction in FRACTIONS]
    rankings: tuple[Ranking, ...] = ("signed", "absolute")
    circuits = np.stack([top_edges(scores, size, how) for how in rankings for size in sizes])
    found = faithfulness(model, facts, circuits, roles, ablation=ablation)
    f = {
        name: (("ranking", "fraction"), x.values.reshape(len(rankings), -1), x.attrs)
        for name, x in found.items()
    }
    signed, absolute = f["faithfulness"][1]
    values = f | {
        "cpr": ((), np.trapezoid(signed, FRACTIONS)),
        "cmd": ((), np.trapezoid(np.abs(1 - absolute), FRACTIONS)),
    }
    coords = {"ranking": list(rankings), "fraction": list(FRACTIONS)}
    return xr.Dataset(values, coords, found.attrs)
