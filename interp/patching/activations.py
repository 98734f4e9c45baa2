"""Prompts as patching runs them, activation caches, and the activations that ablations use."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.config import By
from interp.data.facts import NO_TOKEN, FactSet

Metric = Callable[[Float[Tensor, "row d_vocab"], Int[Tensor, " row"]], Float[Tensor, " row"]]
"""From the logits at the answer position, fp32, and the number of each row's fact, one number a
row.
"""


@dataclass(frozen=True)
class OwnMetric:
    """A user's metric and the facts that it is asked for."""

    score: Metric
    number: Int[Tensor, " fact"]
    """Of each fact in the user's fact set."""

    def __getitem__(self, facts: Int[np.ndarray, " n"]) -> "OwnMetric":
        return OwnMetric(self.score, self.number[facts])

    def __call__(
        self, logits: Float[Tensor, "row d_vocab"], fact: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """The metric of each row.

        Raises:
            ValueError: it gives something else than a finite number a row.
        """
        values = self.score(logits, self.number[fact])
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if shape != (len(fact),):
            raise ValueError(
                f"the metric gives {shape} for logits of shape {tuple(logits.shape)}; return a "
                f"tensor of shape {(len(fact),)}, one number a row"
            )
        if not values.isfinite().all():
            raise ValueError(
                "the metric gives a number that is not finite; NaN means a missing cell"
            )
        return values.float()


@dataclass(frozen=True)
class Prompts:
    """Inputs of a run, with the value's tokens after the prompt so that the whole value can be
    scored.
    """

    tokens: Int[Tensor, "fact pos"]
    places: Int[Tensor, "fact pos"]
    """What means and resampling go by: the role's number, or the position; −1 beyond the
    prompt.
    """
    named: Bool[Tensor, "fact pos"]
    """Name tokens, which noise is added to."""
    n_prompt: Int[Tensor, " fact"]
    n_value: Int[Tensor, " fact"]
    answers: Int[Tensor, "fact value_token"]
    other: Int[Tensor, " fact"] | None
    """First token of the corrupted prompt's value; None if there is none, and then ``logit_diff``
    is NaN.
    """
    control: Int[Tensor, "fact 2"] | None
    """First tokens of another fact's values, right and other."""
    noise: Float[Tensor, "fact pos d_model"] | None = None
    """Added to the embeddings."""
    own_metric: OwnMetric | None = None

    @property
    def n_total(self) -> Int[Tensor, " fact"]:
        """Positions up to the last that predicts a token of the value."""
        return self.n_prompt + self.n_value - 1

    def __getitem__(self, facts: Int[np.ndarray, " n"]) -> "Prompts":
        """Some of the facts, cut to the longest of them."""
        some = {name: None if x is None else x[facts] for name, x in vars(self).items()}
        n_pos = int((some["n_prompt"] + some["n_value"]).max()) - 1
        cut = {name: some[name][:, :n_pos] for name in ("tokens", "places", "named")}
        return Prompts(**some | cut)


ActivationCache = list[dict[str, Tensor]]
"""Activations of a forward pass, one dictionary per layer, by the names of the block's tap: (fact,
pos, ...), but ``attn_scores`` and ``pattern`` (fact, head, dest, src). The first layer's has
``embed``.
"""


class ScoredCache(ActivationCache):
    """An activation cache, the prompts of its run, and the run's metrics."""

    def __init__(
        self, layers: ActivationCache, given: Prompts, scores: Float[np.ndarray, "metric fact"]
    ) -> None:
        super().__init__(layers)
        self.given, self.scores = given, scores


def prompts(
    facts: FactSet,
    device: torch.device | str,
    by: By = "role",
    control: Int[np.ndarray, "fact 2"] | None = None,
    metric: Metric | None = None,
) -> tuple[Prompts, Prompts | None]:
    """Inputs of the clean and of the corrupted run, both with the clean value after the prompt. The
    latter is None for facts without corrupted prompts.
    """
    n_value = (facts.answers != NO_TOKEN).sum(1)
    n_pos = int((facts.lengths + n_value).max()) - 1
    roles = torch.full((len(facts), n_pos), NO_TOKEN)
    roles[:, : facts.roles.shape[1]] = facts.roles
    pos = torch.arange(n_pos)
    others = facts.corrupted_answers
    same = {
        "places": roles if by == "role" else pos.where(pos < facts.lengths[:, None], NO_TOKEN),
        "named": torch.isin(roles, torch.tensor(name_roles(facts), dtype=roles.dtype)),
        "n_prompt": facts.lengths,
        "n_value": n_value,
        "answers": facts.answers.clamp(min=0),
        "other": None if others is None else others[:, 0],
        "control": None if control is None else torch.from_numpy(control),
    }
    same = {name: None if x is None else x.to(device) for name, x in same.items()}
    if metric is not None:
        same["own_metric"] = OwnMetric(metric, torch.arange(len(facts), device=device))
    both = []
    for prompt in (facts.clean, facts.corrupted):
        if prompt is None:
            both.append(None)
            continue
        tokens = torch.zeros(len(facts), n_pos, dtype=torch.long)
        tokens[:, : prompt.shape[1]] = prompt
        for i in range(facts.answers.shape[1] - 1):
            rows = torch.nonzero(n_value > i + 1)[:, 0]
            tokens[rows, facts.lengths[rows] + i] = facts.answers[rows, i]
        both.append(Prompts(tokens=tokens.to(device), **same))
    return both[0], both[1]


def name_roles(facts: FactSet) -> list[int]:
    """Indices of the roles that are parts of a name: those called name_first, name, ..."""
    return [i for i, role in enumerate(facts.role_names) if role.startswith("name")]


def value_tokens(
    given: Prompts, fact: Int[Tensor, " row"]
) -> tuple[Int[Tensor, " predicted"], Int[Tensor, " predicted"]]:
    """Each token of each row's value: its row, and its number within the value."""
    n_value = given.n_value[fact]
    slots = torch.arange(int(n_value.max()), device=fact.device)
    return torch.nonzero(slots < n_value[:, None], as_tuple=True)


def metrics_of(
    logits: Float[Tensor, "predicted d_vocab"],
    row: Int[Tensor, " predicted"],
    slot: Int[Tensor, " predicted"],
    fact: Int[Tensor, " row"],
    given: Prompts,
) -> Float[np.ndarray, "metric row"]:
    """Metrics of ``METRICS``, ``CONTROL`` where pairs are given, and ``OWN_METRIC`` where one is,
    from the logits that predict the ``value_tokens``, ``row`` and ``slot``, of the facts.
    """
    return torch.stack(scores_of(logits.float(), row, slot, fact, given)).cpu().numpy()


def scores_of(
    logits: Float[Tensor, "predicted d_vocab"],
    row: Int[Tensor, " predicted"],
    slot: Int[Tensor, " predicted"],
    fact: Int[Tensor, " row"],
    given: Prompts,
) -> list[Float[Tensor, " row"]]:
    """The same as tensors that have gradients."""
    answers = given.answers[fact]
    at_answer = answers[row, slot][:, None]
    log_p = logits.gather(1, at_answer)[:, 0] - logits.logsumexp(1)
    whole = log_p.new_zeros(len(fact)).index_add(0, row, log_p)
    n_value = given.n_value[fact]
    first = n_value.cumsum(0) - n_value  # the row of each value's first token
    if given.other is None:
        difference = torch.full_like(whole, torch.nan, requires_grad=False)
    else:
        pair = torch.stack((answers[:, 0], given.other[fact]), 1)
        correct, other = logits[first].gather(1, pair).unbind(1)
        difference = correct - other
    scores = [difference, log_p[first], whole]
    if given.control is not None:
        right, wrong = logits[first].gather(1, given.control[fact]).unbind(1)
        scores.append(right - wrong)
    if given.own_metric is not None:
        scores.append(given.own_metric(logits[first], fact))
    return scores


def same_place(
    places: Int[Tensor, "fact pos"], giver_places: Int[Tensor, "fact giver_pos"]
) -> Int[Tensor, "fact pos"]:
    """Position of the giver's token with the same place (role or position) and rank in it: its last
    one if the giver has fewer, −1 if it has none.
    """
    found = torch.full_like(places, -1)
    for fact, (mine, theirs) in enumerate(zip(places, giver_places)):
        for place in mine[mine >= 0].unique():
            to, of = ((x == place).nonzero()[:, 0] for x in (mine, theirs))
            if len(to) and len(of):
                found[fact, to] = of[torch.arange(len(to), device=of.device).clamp(max=len(of) - 1)]
    return found


def taken_from(
    own: ActivationCache, giver: ActivationCache, place: Int[Tensor, "fact pos"]
) -> ActivationCache:
    """The giver's activations at ``place``; the fact's own where there is none."""
    fact = torch.arange(len(place), device=place.device)[:, None]
    taken = []
    for mine, theirs in zip(own, giver):
        out = {}
        for name, given in theirs.items():
            x = mine[name]
            there = (place >= 0).reshape(*place.shape, *[1] * (x.ndim - 2))
            out[name] = torch.where(there, given[fact if len(given) > 1 else 0, place], x)
        taken.append(out)
    return taken


def only(cache: ActivationCache, names: Collection[str]) -> ActivationCache:
    """The activations with these names."""
    return [{name: x for name, x in layer.items() if name in names} for layer in cache]
