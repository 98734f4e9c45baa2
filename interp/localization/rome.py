"""The rank-one change of an MLP's output matrix that overwrites a fact (ROME: Meng et al. 2022,
section 3.1, https://arxiv.org/abs/2202.05262).

The MLP is read as a memory W k + b, k = ``mlp.hook_post``: k* is what a person and an attribute
look up, v* an output there that makes the model say another value. The change, equation 2,
    W ← W + (v* − W k* − b) (C⁻¹ k*)ᵀ / (k*ᵀ C⁻¹ k*),   C = E[k kᵀ] over ordinary tokens,
maps k* to v* exactly, and of all that do it is the smallest in tr(Δ C Δᵀ), the mean square by which
it moves the outputs of ordinary tokens. Only the first value token is aimed at.
"""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from interp.data.batches import training_batch
from interp.data.facts import PROMPT_ROLES, FactSet, padded
from interp.data.sentences import Sentences, numbers_of, rows_of, training_sentences
from interp.localization.inputs import check_inputs, check_layer
from interp.model.decoder import HookedDecoder
from interp.model.model_check import check_plain
from interp.model.weights import add_to_neuron_outputs, widened
from interp.suite import Suite

N_STEPS, LEARNING_RATE, ENOUGH = 60, 0.1, 0.05
"""Adam's, for v* − W k* − b in units of ‖W k* + b‖ ÷ √d_model, until −ln p of the target is
``ENOUGH`` nats on average (the authors' bound). From there on a longer vector only does damage.
"""
RIDGE = 1e-3
"""Added to C's diagonal, as a share of its mean: hundreds of times less than C's median eigenvalue,
so that it decides only about directions that ordinary tokens do not use.
"""
N_BATCHES = 2
"""Of training, on whose tokens C is measured."""
FACTS_AT_ONCE, SENTENCES_AT_ONCE = 6, 256


@dataclass(frozen=True)
class Edits:
    """Changes of the output matrix of one layer's MLP, one per fact: W ← W + right leftᵀ."""

    layer: int
    keys: Float[Tensor, "fact d_mlp"]
    """k*: mean over the role's tokens in all sentences used."""
    right: Float[Tensor, "fact d_model"]
    """v* − W k* − b."""
    left: Float[Tensor, "fact d_mlp"]
    """C⁻¹ k* ÷ (k*ᵀ C⁻¹ k*)."""
    second_moment: Float[Tensor, "d_mlp _d_mlp"]
    """C, with its ridge."""
    reached: Float[Tensor, " fact"]
    """Share of the sentences used on which the target is the argmax once ``right`` itself is added
    to the MLP's output at the role's tokens: how far v* came.
    """


def find_edits(
    model: HookedDecoder,
    suite: Suite,
    facts: FactSet,
    *,
    layer: int,
    role: str,
    n_sentences: int = 10,
) -> Edits:
    """The change that overwrites each fact, taken alone, with the value of its corrupted twin.

    Args:
        layer, role: the MLP that is changed, and the tokens whose keys and outputs are meant.
        n_sentences: training templates of the fact in which k* and v* are found.

    Raises:
        ValueError: no such layer or role, a model of fewer digits than fp32, facts of other people
            than the run's, or more sentences than training templates.
    """
    check_inputs(model, facts, twins=True)
    check_layer(model, layer)
    dtype = model.embed.weight.dtype
    if widened(model.embed.weight).dtype != dtype:
        raise ValueError(
            f"the model is in {dtype}, too coarse to search an edit in; give model.float()"
        )
    most = min(suite.config.n_train_templates, int(suite.texts.n_train.min()))
    if not 1 <= n_sentences <= most:
        raise ValueError(
            f"n_sentences is {n_sentences}; the run was trained in {most} templates a fact, ask "
            f"for 1 to {most}"
        )
    person = rows_of(suite.population, facts.texts.person)
    attribute = numbers_of(suite.texts, facts.texts.attribute)
    targets = facts.corrupted_answers[:, 0]
    found = []
    for part in torch.arange(len(facts)).split(FACTS_AT_ONCE):
        asked = person[part.numpy()], attribute[part.numpy()]
        run = run_to(model, training_sentences(suite.texts, *asked, n_sentences), layer)
        keys = mean_keys(run, role, len(part))
        found.append((keys, *_find_values(model, run, keys, role, targets[part])))
    keys, right, reached = (torch.cat(parts) for parts in zip(*found))
    moment = second_moment(model, suite, layer=layer)
    return Edits(layer, keys, right, lefts_of(keys, moment), moment, reached)


def edited(model: HookedDecoder, edits: Edits, fact: int) -> HookedDecoder:
    """A copy of the model with one fact's edit in its weights."""
    check_plain(model)
    copy = deepcopy(model)
    add_to_neuron_outputs(copy, edits.layer, edits.left[fact, :, None] * edits.right[fact])
    return copy


def lefts_of(
    keys: Float[Tensor, "fact d_mlp"], second_moment: Float[Tensor, "d_mlp _d_mlp"]
) -> Float[Tensor, "fact d_mlp"]:
    """C⁻¹ k ÷ (kᵀ C⁻¹ k) of each key: of all u with uᵀ k = 1, the one of smallest uᵀ C u."""
    solved = torch.linalg.solve(second_moment.double(), keys.double().mT).mT
    return (solved / (solved * keys).sum(-1, keepdim=True)).to(keys)


@torch.no_grad()
def second_moment(
    model: HookedDecoder, suite: Suite, *, layer: int
) -> Float[Tensor, "d_mlp _d_mlp"]:
    """C = E[k kᵀ], not centred, over all tokens of the first training batches, with ``RIDGE``."""
    check_plain(model)
    check_layer(model, layer)
    name, kept = f"blocks.{layer}.mlp.hook_post", []
    for step in range(N_BATCHES):
        batch = training_batch(suite.texts, suite.config, step)
        rows = np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])
        tokens = padded(rows, 0).to(model.embed.weight.device)
        _, cache = model.run_with_cache(tokens, names_filter=[name])
        real = torch.arange(tokens.shape[1]) < torch.from_numpy(batch.lengths)[:, None]
        kept.append(cache[name][real.to(tokens.device)])
    keys = torch.cat(kept)
    moment = einsum(keys, keys, "token i, token j -> i j") / len(keys)
    return moment + RIDGE * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)


@dataclass(frozen=True)
class Run:
    """What is kept from a run of some sentences, to continue it from a changed MLP."""

    layer: int
    lengths: Int[Tensor, " sentence"]
    roles: Int[Tensor, "sentence pos"]
    keys: Float[Tensor, "sentence pos d_mlp"]
    resid: Float[Tensor, "sentence pos d_model"]
    """After the MLP's block."""

    def take(self, rows: Int[np.ndarray, " row"]) -> "Run":
        at = torch.from_numpy(rows).to(self.keys.device)
        kept = (self.lengths, self.roles, self.keys, self.resid)
        return Run(self.layer, *(x[at] for x in kept))


@torch.no_grad()
def run_to(model: HookedDecoder, given: Sentences, layer: int) -> Run:
    """The run of the sentences up to the MLP of ``layer``."""
    check_plain(model)
    device = model.embed.weight.device
    names = [f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.hook_resid_post"]
    parts = given.tokens.to(device).split(SENTENCES_AT_ONCE)
    caches = [model.run_with_cache(part, names_filter=names)[1] for part in parts]
    kept = (torch.cat([cache[name] for cache in caches]) for name in names)
    return Run(layer, given.lengths.to(device), given.roles.to(device), *kept)


def run_on(
    model: HookedDecoder, run: Run, added: Float[Tensor, "sentence pos d_model"]
) -> Float[Tensor, "sentence d_vocab"]:
    """Logits at ``final`` with ``added`` added to the MLP's output."""
    resid = model.from_layer(run.resid + added, run.layer + 1)
    last = torch.arange(len(resid), device=resid.device), run.lengths - 1
    return model.unembed(model.ln_final(resid[last]))


def mean_keys(run: Run, role: str, n_facts: int) -> Float[Tensor, "fact d_mlp"]:
    """k* of each fact, averaged over its sentences, which are consecutive; equation 3.

    Raises:
        ValueError: a sentence has no such role.
    """
    if role not in PROMPT_ROLES or not (run.roles == PROMPT_ROLES.index(role)).any(1).all():
        there = [PROMPT_ROLES[i] for i in run.roles[0].unique() if i >= 0]
        raise ValueError(f"no role {role!r} in these sentences; there are {', '.join(there)}")
    at = rearrange(_at_role(run, role), "(fact n) pos -> fact (n pos)", fact=n_facts)
    keys = rearrange(run.keys, "(fact n) pos d_mlp -> fact (n pos) d_mlp", fact=n_facts)
    return einsum(keys, at / at.sum(1, keepdim=True), "fact at d_mlp, fact at -> fact d_mlp")


def _at_role(run: Run, role: str) -> Float[Tensor, "sentence pos"]:
    """1 at the role's tokens, 0 elsewhere."""
    return (run.roles == PROMPT_ROLES.index(role)).to(run.keys)


def _find_values(
    model: HookedDecoder,
    run: Run,
    keys: Float[Tensor, "fact d_mlp"],
    role: str,
    targets: Int[Tensor, " fact"],
) -> tuple[Float[Tensor, "fact d_model"], Float[Tensor, " fact"]]:
    """v* − W k* − b of each fact, and the share of its sentences in which it produces the target.

    Equation 4 without its second term, which holds on to what the model says a subject is: no
    sentence here says that. Facts stop one by one, as the authors' code does.
    """
    n, at = len(run.resid) // len(keys), _at_role(run, role)
    wanted = repeat(targets.to(keys.device), "fact -> (fact n)", n=n)
    with torch.no_grad():
        output = model.blocks[run.layer].down(keys)
    unit = output.norm(dim=-1, keepdim=True) * output.shape[1] ** -0.5
    delta = torch.zeros_like(output, requires_grad=True)

    def logits() -> Float[Tensor, "sentence d_vocab"]:
        rows = repeat(delta * unit, "fact d -> (fact n) d", n=n)
        return run_on(model, run, einsum(rows, at, "row d, row pos -> row pos d"))

    optimizer = torch.optim.Adam([delta], lr=LEARNING_RATE)
    for _ in range(N_STEPS):
        losses = F.cross_entropy(logits(), wanted, reduction="none")
        loss = rearrange(losses, "(fact n) -> fact n", n=n).mean(-1)
        if not (unsettled := loss > ENOUGH).any():
            break
        optimizer.zero_grad()
        loss.sum().backward(inputs=[delta])
        last = delta.detach().clone()
        optimizer.step()
        delta.data.copy_(torch.where(unsettled[:, None], delta, last))
    with torch.no_grad():
        hit = (logits().argmax(-1) == wanted).to(keys)
    return delta.detach() * unit, rearrange(hit, "(fact n) -> fact n", n=n).mean(-1)
