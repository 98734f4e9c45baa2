"""Checks of a model as it was given, before anything is computed with it.

Patching and localization read a ``HookedDecoder``'s weights and compute with them on their own, so
what stands around the weights (an adapter, a forward hook, another ``forward``) would be left out
without a word: it is refused by name. Any other hooked model is run as it is; of it is asked what
else a result depends on: does it attend to later tokens, and are its logits finite.
"""

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules import module as all_modules
from transformer_lens.hook_points import LensHandle

from interp.model.decoder import DecoderConfig, HookedDecoder

_CFG = ("n_layers", "n_heads", "n_key_value_heads", "d_model", "d_mlp", "d_vocab", "n_ctx")
_TORCH_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_EPS_OF_PRODUCTS = {"high": 2**-10, "medium": 2**-7}
_ROWS_AT_ONCE = 8
_INSTEAD = "which the weights alone don't tell"


def check_model(model: nn.Module) -> None:
    """Raises a ValueError unless a model with TransformerLens's hooks can be patched as it is: its
    cfg gives its shape, its weights are present, and it is in evaluation mode without hooks.
    """
    kind, cfg = type(model).__name__, getattr(model, "cfg", None)
    for name in _CFG:
        if not hasattr(cfg, name) or (getattr(cfg, name) is None and name != "n_key_value_heads"):
            raise ValueError(
                f"this {kind} has no cfg.{name}; give its cfg {', '.join(_CFG)}, as TransformerLens"
                " names them"
            )
    weights = dict(model.named_parameters())
    if not weights:
        raise ValueError(f"this {kind} has no parameters, so there is nothing to patch in it")
    for name, weight in weights.items():
        if weight.is_meta:
            raise ValueError(
                f"{name} is on the meta device, where weights have no values; load the model's "
                "weights first"
            )
    for name, module in model.named_modules():
        if module.training:
            what = f"{name} of the model" if name else "the model"
            raise ValueError(f"{what} is in training mode; call model.eval() first")
    check_no_hooks(model)


def check_no_hooks(model: nn.Module) -> None:
    """Raises a ValueError if a hook point has a hook that the model did not add itself.

    A ``TransformerBridge`` sets permanent hooks on itself that pass an activation from one hook
    point to another; they are the ones that ``transformer_lens.model_bridge`` defines.
    """
    points = model.hook_dict.items()
    handles = [(name, handle) for name, x in points for handle in (*x.fwd_hooks, *x.bwd_hooks)]
    theirs = [(name, handle) for name, handle in handles if not _is_own(handle)]
    if not theirs:
        return
    permanent = any(handle.is_permanent for _, handle in theirs)
    advice = "take it off with model.reset_hooks()"
    if permanent:
        advice = "it is permanent: take it off with model.reset_hooks(including_permanent=True)"
    if permanent and len(theirs) < len(handles):
        advice = "it is permanent, as the bridge's own are: build the bridge again without it"
    raise ValueError(f"the model has hooks, which would not be patched: {theirs[0][0]!r}; {advice}")


def check_plain(model: HookedDecoder) -> None:
    """Raises a ValueError unless the model computes what a ``HookedDecoder`` with its weights
    computes: the same classes, constants and shapes, and no hooks, including PyTorch's. A subclass
    may add methods but not change ``forward``.
    """
    kind = type(model).__name__
    if not isinstance(model, HookedDecoder) or not isinstance(model.cfg, DecoderConfig):
        raise ValueError(f"got a {kind}; its weights can be read only of a HookedDecoder")
    for name in ("forward", "from_layer", "hidden", "__call__"):
        if getattr(type(model), name) is not getattr(HookedDecoder, name):
            raise ValueError(
                f"{kind} has another {name} than HookedDecoder, {_INSTEAD}; give a HookedDecoder"
            )
    check_no_hooks(model)
    for kind_of_hook in _TORCH_HOOKS:
        if getattr(all_modules, f"_global{kind_of_hook}"):
            raise ValueError(
                "PyTorch has hooks on all modules, which would not be run; remove them by the "
                "handles that registering them returned"
            )
    first = next(model.parameters())
    if torch.is_autocast_enabled(first.device.type):
        raise ValueError("torch.autocast is on, which only the model's own forward heeds; leave it")
    modules = dict(model.named_modules(remove_duplicate=False))
    expected = _parts_of(model.cfg)
    for name in {**modules, **expected}:
        _check_part(name, modules.get(name), expected.get(name))
    for name, weight in model.named_parameters():
        if weight.dtype != first.dtype:
            raise ValueError(
                f"{name} is {weight.dtype}, other weights {first.dtype}; convert the whole model"
            )


Part = tuple[type, dict[str, object], dict[str, torch.Size]]
"""Class, constants and shapes of weights."""


@lru_cache(maxsize=16)
def _parts_of(cfg: DecoderConfig) -> dict[str, Part]:
    """The modules of a ``HookedDecoder``, by name."""
    with torch.device("meta"):
        plain = HookedDecoder(cfg)
    return {
        name: (
            type(module),
            dict(_constants(module)) if name else {},
            {key: weight.shape for key, weight in module._parameters.items() if weight is not None},
        )
        for name, module in plain.named_modules()
    }


def _constants(module: nn.Module) -> Iterator[tuple[str, object]]:
    for key, value in vars(module).items():
        simple = value is None or isinstance(value, (bool, int, float, str))
        if simple and not key.startswith("_") and key not in ("training", "name"):
            yield key, value


def _check_part(name: str, module: nn.Module | None, expected: Part | None) -> None:
    if module is None:
        raise ValueError(f"{name} is missing from the model, whose cfg has it; make cfg fit")
    if expected is None:
        raise ValueError(
            f"{name} is a {type(module).__name__}, which a HookedDecoder does not have; take it off"
        )
    of, constants, shapes = expected
    where = name or "the model"
    if name and type(module) is not of:
        raise ValueError(
            f"{name} is a {type(module).__name__}, not the {of.__name__} of a HookedDecoder; merge "
            "it into the weights first"
        )
    for kind in _TORCH_HOOKS:
        if getattr(module, kind):
            raise ValueError(
                f"{where} has PyTorch {kind[1:].replace('_', ' ')}, which would not be run; remove "
                "them, and merge what they do (pruning, a norm of weights) into the weights"
            )
    for key in vars(module):
        if callable(getattr(type(module), key, None)):
            raise ValueError(f"{where} has a {key} of its own, {_INSTEAD}; delete the attribute")
    for key, value in constants.items():
        if getattr(module, key, None) != value:
            raise ValueError(
                f"{name}.{key} is {getattr(module, key, None)!r} where the model's cfg makes it "
                f"{value!r}; make a HookedDecoder with the cfg that is meant"
            )
    for key, shape in shapes.items():
        weight = module._parameters.get(key)
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            got = getattr(module, key, None)
            raise ValueError(
                f"{name}.{key} is a {type(got).__name__}, not a parameter of floating-point "
                "numbers; merge or dequantize the weights first"
            )
        if weight.shape != shape:
            raise ValueError(
                f"{name}.{key} has shape {tuple(weight.shape)} where the model's cfg makes it "
                f"{tuple(shape)}; make cfg fit the weights"
            )


def check_agree(
    computed: Float[Tensor, "read d_vocab"], own: Float[Tensor, "read d_vocab"]
) -> None:
    """Raises a ValueError unless two ways of computing a model's logits agree.

    Tolerance: √ε of the precision, half of its digits, times the largest logit: 3e-4 in fp32, 0.09
    in bf16. Rounding alone stays far below (8e-7 in fp32 and 2e-3 in fp16, of 24 layers); another
    activation function, number of heads or ε of a norm moves logits by more.
    """
    eps = torch.finfo(own.dtype).eps
    if own.dtype == torch.float32:  # whose products may be computed in fewer digits
        eps = max(eps, _EPS_OF_PRODUCTS.get(torch.get_float32_matmul_precision(), 0))
    apart, largest = float((computed - own).abs().max()), float(own.abs().max())
    if apart > eps**0.5 * largest:
        raise ValueError(
            f"the model's own forward gives logits up to {apart:.2g} away from those of its "
            f"weights (largest: {largest:.2g}), so something is between; give a plain "
            "HookedDecoder, outside torch.autocast"
        )


@torch.no_grad()
def is_causal(model: nn.Module, tokens: Int[Tensor, " pos"]) -> bool:
    """Whether no logit depends on a later token of ``tokens``, found by running the model.

    For every place in the prompt all later tokens are changed. A causal model computes what comes
    before from the same numbers in the same order, so those logits stay the same to the last bit;
    where attention goes forward they don't. Both runs have the same shape and each prompt the same
    row, so no kernel rounds them differently. Where they are not the same, the unchanged tokens are
    run again: on a device whose kernels do not repeat themselves a model counts as causal up to
    four times the difference of two equal runs. A model whose cfg says ``attention_dir`` is taken
    at its word if that is not causal. Takes two forward passes per token.
    """
    if getattr(model.cfg, "attention_dir", "causal") != "causal":
        return False
    starts = torch.arange(1, len(tokens), device=tokens.device)
    pos = torch.arange(len(tokens), device=tokens.device)
    for start in starts.split(_ROWS_AT_ONCE):
        same = tokens.repeat(len(start), 1)
        later = pos >= start[:, None]
        other = torch.where(later, (same + 1) % model.cfg.d_vocab, same)
        before, after = _logits(model, same), _logits(model, other)
        if before.isnan().any():
            raise ValueError(
                f"the logits of this {type(model).__name__} are NaN; see that its weights are "
                "finite"
            )
        apart = (before - after)[~later].abs().max()
        if apart > 0 and apart > 4 * (before - _logits(model, same)).abs().max():
            return False
    return True


def check_finite(scores: Float[np.ndarray, "metric fact"], number: np.ndarray, run: str) -> None:
    """Raises a ValueError where a model's unchanged run has metrics that are not finite.

    Args:
        number: of each fact among all that are patched.
        run: clean or corrupted.
    """
    bad = ~np.isfinite(scores).all(0)
    if bad.any():
        raise ValueError(
            f"the model's logits on fact {number[bad.argmax()]}, {run} prompt, are not finite "
            f"({bad.sum()} of {len(bad)} facts); see that its weights are finite, or load it in "
            "fp32"
        )


def _logits(model: nn.Module, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_vocab"]:
    logits = model.run_with_hooks(tokens, fwd_hooks=[])
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"this {type(model).__name__} returns {got} for tokens of shape {tuple(tokens.shape)}; "
            "it must return logits (batch, pos, d_vocab)"
        )
    return logits


def _is_own(handle: LensHandle) -> bool:
    hook = handle.user_hook
    while isinstance(hook, partial):
        hook = hook.func
    made_by = getattr(hook, "__module__", None) or ""
    return handle.is_permanent and made_by.startswith("transformer_lens.model_bridge.")
