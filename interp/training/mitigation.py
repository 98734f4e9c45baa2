"""Ways to hold back forgetting while a model is fine-tuned, each one word of ``TrainConfig``.

- ``freeze:GROUP``, ``only:GROUP``: all but, or nothing but, a group of weights is trained
  (``model.weight_groups``);
- ``sparse-gradient:SHARE``, ``sparse-memory:SHARE``, ``sparse-unused:SHARE``,
  ``sparse-random:SHARE``: only that share of all MLP neurons is trained (their input and output
  weights): those with the largest gradient on the new data, those that are most active on new
  people's biographies relative to old people's (as memory slots are ranked by
  https://arxiv.org/abs/2510.15103), those that are least active on old people's, or any, as a
  control;
- ``lora:RANK``: low-rank changes of every weight matrix of the blocks (Hu et al. 2021,
  https://arxiv.org/abs/2106.09685; scale 1, the factor that starts at 0 is the output's);
- ``slots:N``: N fresh neurons per MLP are trained, and nothing else;
- ``l2:λ``: λ Σ (θ − θ₀)² is added to the loss, ``ewc:λ``: λ/2 Σ F (θ − θ₀)², F the diagonal of the
  empirical Fisher information of the base model: the mean over ``N_FISHER`` biographies of old
  people of the squared gradient of a biography's log-likelihood (Kirkpatrick et al. 2017,
  https://arxiv.org/abs/1612.00796);
- ``distil:λ``: λ times the mean over tokens of KL(base model ‖ model), nats, on the same batch;
- ``warmup:STEPS``: the learning rate rises linearly over the first steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.config import TrainConfig
from interp.data.batches import evaluation_set, training_batch
from interp.data.biographies import Biographies, Texts
from interp.model.decoder import HookedDecoder
from interp.model.weight_groups import Masks, weight_group
from interp.training.packing import next_tokens, select_rows, to_ragged

N_FISHER, N_BATCHES = 64, 4


@dataclass
class Mitigation:
    """What a way of fine-tuning does in each step, besides the step itself."""

    masks: Masks | None = None
    """The numbers of each parameter that are trained; None: all."""
    penalty: Callable[[HookedDecoder], Tensor] | None = None
    """Added to the loss, nats."""
    distil: float = 0.0
    """Weight of KL(base ‖ model)."""
    warmup: int = 0
    """Steps over which the learning rate rises."""
    factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = field(default_factory=dict)
    """Of LoRA: output and input factor of each matrix."""
    base: HookedDecoder | None = None

    def rate(self, step: int) -> float:
        """What the learning rate is multiplied by."""
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0

    def of_logits(
        self, logits: Float[Tensor, "token d_vocab"], theirs: Float[Tensor, "token d_vocab"]
    ) -> Float[Tensor, " token"]:
        """The distillation loss of each token."""
        p = theirs.log_softmax(-1)
        return self.distil * (p.exp() * (p - logits.log_softmax(-1))).sum(-1)

    def before_optimizer(self, model: HookedDecoder) -> None:
        """Takes gradients off what is not trained, and passes them on to LoRA's factors: W = W₀ + B
        A, so that ∂B = ∂W Aᵀ and ∂A = Bᵀ ∂W.
        """
        for name, weight in model.named_parameters():
            if name in self.factors:
                b, a = self.factors[name]
                b.grad, a.grad = weight.grad @ a.detach().mT, b.detach().mT @ weight.grad
            if self.factors or (self.masks is not None and not self.masks[name].any()):
                weight.grad = None

    @torch.no_grad()
    def after_optimizer(self, model: HookedDecoder) -> None:
        """Sets back what is not trained, and applies LoRA's factors."""
        if not self.factors and self.masks is None:
            return
        base = dict(self.base.named_parameters())
        for name, weight in model.named_parameters():
            if name in self.factors:
                b, a = self.factors[name]
                weight.copy_(base[name] + b @ a)
            elif self.masks is not None and not (mask := self.masks[name]).all():
                weight.copy_(torch.where(mask, weight, base[name]))


NOTHING = Mitigation()


def mitigation(config: TrainConfig, model: HookedDecoder, texts: Texts) -> Mitigation:
    """What ``config.mitigation`` asks for, for a model that still has the weights to start from.

    Raises:
        ValueError: the way is unknown, or its strength is not one it can have.
    """
    if not config.mitigation:
        return NOTHING
    way, _, strength = config.mitigation.partition(":")
    known = {**_WAYS, "freeze": None, "only": None}
    if way not in known:
        raise ValueError(f"no mitigation {config.mitigation!r}; there are {', '.join(known)}")
    base = _copy(model)
    if way in ("freeze", "only"):
        masks = weight_group(model, strength)
        masks = {key: ~mask for key, mask in masks.items()} if way == "freeze" else masks
        return Mitigation(masks=masks, base=base)
    return _WAYS[way](config, base, texts, _number(config, way, strength))


def _number(config: TrainConfig, way: str, strength: str) -> float:
    """The strength of a way; a whole number, or a share, where it is one."""
    most = {"lora": config.d_model, "slots": config.d_mlp, "warmup": config.n_steps}
    try:
        number = float(strength)
    except ValueError:
        number = -1.0
    largest = most.get(way, 1.0 if way.startswith("sparse") else 1e9)
    if not 0 < number <= largest or (way in most and not strength.isdecimal()):
        kind = "a whole number" if way in most else "a number"
        raise ValueError(
            f"mitigation {config.mitigation!r} has the strength {strength!r}; give {kind} above 0, "
            f"at most {largest:g}"
        )
    return number


def _copy(model: HookedDecoder) -> HookedDecoder:
    copy = HookedDecoder(model.cfg).to(model.embed.weight.device)
    copy.load_state_dict(model.state_dict())
    return copy.eval().requires_grad_(False)


def _l2(config: TrainConfig, base: HookedDecoder, texts: Texts, strength: float) -> Mitigation:
    start = dict(base.named_parameters())

    def penalty(model: HookedDecoder) -> Tensor:
        moved = [(w - start[name]).square().sum() for name, w in model.named_parameters()]
        return strength * torch.stack(moved).sum()

    return Mitigation(penalty=penalty, base=base)


def _ewc(config: TrainConfig, base: HookedDecoder, texts: Texts, strength: float) -> Mitigation:
    start, importance = dict(base.named_parameters()), fisher(config, base, texts)

    def penalty(model: HookedDecoder) -> Tensor:
        moved = [
            (importance[name] * (weight - start[name]).square()).sum()
            for name, weight in model.named_parameters()
        ]
        return strength / 2 * torch.stack(moved).sum()

    return Mitigation(penalty=penalty, base=base)


def fisher(
    config: TrainConfig, base: HookedDecoder, texts: Texts
) -> dict[str, Float[Tensor, "*weight"]]:
    """The diagonal of the empirical Fisher information of each parameter, by its name: mean squared
    gradient of the log-likelihood, nats, of one biography, over old people.
    """
    model, old = _copy(base).requires_grad_(True), evaluation_set(texts, config, "train")
    n = min(N_FISHER, len(old.lengths))
    total = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for row in np.linspace(0, len(old.lengths) - 1, n).round().astype(int).tolist():
        _log_likelihood(model, select_rows(old, row, row + 1)).backward()
        for name, weight in model.named_parameters():
            total[name] += weight.grad.square() / n
            weight.grad = None
    return total


def _log_likelihood(model: HookedDecoder, batch: Biographies) -> Tensor:
    """Of all tokens of a batch, nats."""
    device = model.embed.weight.device
    target, has_next = (torch.from_numpy(x).to(device) for x in next_tokens(batch))
    logits = model.unembed(model.hidden(*to_ragged(batch, model.cfg, device)))
    return -(nn.functional.cross_entropy(logits, target, reduction="none") * has_next).sum()


def _distil(config: TrainConfig, base: HookedDecoder, texts: Texts, strength: float) -> Mitigation:
    return Mitigation(distil=strength, base=base)


def _warmup(config: TrainConfig, base: HookedDecoder, texts: Texts, strength: float) -> Mitigation:
    return Mitigation(warmup=int(strength), base=base)


def _lora(config: TrainConfig, base: HookedDecoder, texts: Texts, strength: float) -> Mitigation:
    generator, factors = torch.Generator().manual_seed(config.seed), {}
    for name, weight in base.named_parameters():
        if weight.ndim == 2 and name.startswith("blocks."):
            n_out, n_in = weight.shape
            start = torch.randn(int(strength), n_in, generator=generator) / n_in**0.5
            factors[name] = (
                nn.Parameter(weight.new_zeros(n_out, int(strength))),
                nn.Parameter(start.to(weight)),
            )
    return Mitigation(factors=factors, base=base)


def _slots(config: TrainConfig, base: HookedDecoder, texts: Texts, strength: float) -> Mitigation:
    new = torch.arange(config.d_mlp) >= config.d_mlp - int(strength)
    chosen = new.expand(config.n_layers, -1)
    return Mitigation(masks=_of_neurons(base, chosen), base=base)


def _sparse_gradient(
    config: TrainConfig, base: HookedDecoder, texts: Texts, strength: float
) -> Mitigation:
    model = _copy(base).requires_grad_(True)
    for step in range(N_BATCHES):
        _log_likelihood(model, training_batch(texts, config, step)).backward()
    norms = [
        block.mlp.up.weight.grad.square().sum(1) + block.mlp.down.weight.grad.square().sum(0)
        for block in model.blocks
    ]
    return _sparse(base, torch.stack(norms), strength)


def _sparse_unused(
    config: TrainConfig, base: HookedDecoder, texts: Texts, strength: float
) -> Mitigation:
    return _sparse(base, -_written(config, base, texts, "train"), strength)


def _sparse_memory(
    config: TrainConfig, base: HookedDecoder, texts: Texts, strength: float
) -> Mitigation:
    if not config.new_people:
        raise ValueError(
            f"mitigation {config.mitigation!r} compares new people with old ones, and there are no "
            "new_people; give some"
        )
    new, old = (_written(config, base, texts, split) for split in ("new", "train"))
    return _sparse(base, new / old.clamp_min(torch.finfo(old.dtype).tiny), strength)


@torch.no_grad()
def _written(
    config: TrainConfig, base: HookedDecoder, texts: Texts, split: str
) -> Float[Tensor, "layer neuron"]:
    """How much each neuron writes on biographies of a split's people: mean over tokens of its
    absolute activation × the norm of its output weights.
    """
    people = evaluation_set(texts, config, split)
    some = select_rows(people, 0, min(256, len(people.lengths)))
    tokens, ragged = to_ragged(some, base.cfg, base.embed.weight.device)
    active: list[Tensor] = []
    hooks = [
        block.mlp.down.register_forward_pre_hook(
            lambda module, given: active.append(given[0].abs().mean(0) * module.weight.norm(dim=0))
        )
        for block in base.blocks
    ]
    base.hidden(tokens, ragged)
    for hook in hooks:
        hook.remove()
    return torch.stack(active)


def _sparse_random(
    config: TrainConfig, base: HookedDecoder, texts: Texts, strength: float
) -> Mitigation:
    generator = torch.Generator().manual_seed(config.seed)
    drawn = torch.rand(config.n_layers, config.d_mlp, generator=generator)
    return _sparse(base, drawn.to(base.embed.weight.device), strength)


def _sparse(base: HookedDecoder, score: Float[Tensor, "layer neuron"], share: float) -> Mitigation:
    """Trains the share of neurons with the largest score, of all layers together."""
    n = max(1, round(min(share, 1.0) * score.numel()))
    chosen = torch.zeros_like(score, dtype=torch.bool)
    chosen.view(-1)[score.flatten().topk(n).indices] = True
    return Mitigation(masks=_of_neurons(base, chosen), base=base)


def _of_neurons(base: HookedDecoder, chosen: Tensor) -> Masks:
    """The input weights, biases and output weights of chosen neurons (layer, neuron)."""
    masks = {
        key: torch.zeros_like(weight, dtype=torch.bool) for key, weight in base.named_parameters()
    }
    for layer, neurons in enumerate(chosen.to(base.embed.weight.device)):
        masks[f"blocks.{layer}.mlp.up.weight"][neurons] = True
        masks[f"blocks.{layer}.mlp.up.bias"][neurons] = True
        masks[f"blocks.{layer}.mlp.down.weight"][:, neurons] = True
    return masks


_WAYS = {
    "sparse-gradient": _sparse_gradient,
    "sparse-memory": _sparse_memory,
    "sparse-unused": _sparse_unused,
    "sparse-random": _sparse_random,
    "lora": _lora,
    "slots": _slots,
    "l2": _l2,
    "ewc": _ewc,
    "distil": _distil,
    "warmup": _warmup,
}
