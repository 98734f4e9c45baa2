"""Where attention goes in whole biographies (arXiv 2503.21676, section 4.3).

Total attention from the last token of a name to all other name tokens, and from the token that
predicts a value's first to name tokens and to template text, those of earlier sentences included;
means over the sentences of a biography. Correlational: ``component_ablation`` tells what is used.
"""

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interp.data.biographies import ROLES, Biographies
from interp.model.decoder import HookedDecoder
from interp.model.model_check import check_plain
from interp.model.weights import widened
from interp.training.packing import select_rows

STATISTICS = ("last_name_to_name", "attribute_to_name", "attribute_to_text", "normalised_entropy")
_NAME = [i for i, role in enumerate(ROLES) if role.startswith("name")]
_TEXT = [ROLES.index("cue"), ROLES.index("punctuation")]
_PAD = -1
_SHARE = "share of attention"
_UNITS = {"normalised_entropy": "share of ln(tokens)"}


@torch.inference_mode()
def attention_statistics(
    model: HookedDecoder, biographies: Biographies, *, rows_at_once: int = 64
) -> xr.Dataset:
    """``STATISTICS`` (layer, head, biography): three shares of attention, 0 to 1, and the mean over
    positions of a pattern's entropy ÷ ln(tokens it can see), 1 = even.
    """
    check_plain(model)
    n = len(biographies.lengths)
    if n < 1 or rows_at_once < 1:
        raise ValueError(f"got {n} biographies, {rows_at_once} at once; give one or more of each")
    parts = [
        _of_rows(model, select_rows(biographies, first, min(n, first + rows_at_once)))
        for first in range(0, n, rows_at_once)
    ]
    dims = ("layer", "head", "biography")
    values = {name: np.concatenate([part[name] for part in parts], -1) for name in STATISTICS}
    return xr.Dataset(
        {name: (dims, x, {"units": _UNITS.get(name, _SHARE)}) for name, x in values.items()},
        attrs={"score": "correlational"},
    )


def _of_rows(model: HookedDecoder, biographies: Biographies) -> dict[str, np.ndarray]:
    device = model.embed.weight.device
    tokens = _padded(biographies, biographies.tokens, 0).to(device)
    roles = _padded(biographies, biographies.roles, _PAD).to(device)
    hooks = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(tokens, names_filter=hooks)
    name, text = (torch.isin(roles, torch.tensor(x, device=device)) for x in (_NAME, _TEXT))
    last_name, before_value = _last_of(roles, "name_last"), _before_first(roles, "value")
    later = (roles != _PAD) & (torch.arange(roles.shape[1], device=device) > 0)
    layers = []
    for hook in hooks:
        pattern = widened(cache[hook])
        own = pattern.diagonal(dim1=-2, dim2=-1)
        seen = torch.arange(1, roles.shape[1] + 1, device=device).clamp(min=2).log()
        entropy = torch.special.entr(pattern).sum(-1) / seen
        layers.append([
            _mean(_to(pattern, name) - own, last_name),
            _mean(_to(pattern, name), before_value),
            _mean(_to(pattern, text), before_value),
            _mean(entropy, later),
        ])  # fmt: skip
    stacked = [torch.stack(x) for x in zip(*layers)]
    return {
        statistic: rearrange(x, "layer batch head -> layer head batch").cpu().numpy()
        for statistic, x in zip(STATISTICS, stacked)
    }


def _to(
    pattern: Float[Tensor, "batch head dest src"], sources: Bool[Tensor, "batch src"]
) -> Float[Tensor, "batch head dest"]:
    chosen = sources.to(pattern.dtype)
    return einsum(pattern, chosen, "batch head dest src, batch src -> batch head dest")


def _mean(
    values: Float[Tensor, "batch head dest"], where: Bool[Tensor, "batch dest"]
) -> Float[Tensor, "batch head"]:
    weights = where.to(values.dtype)
    total = einsum(values, weights, "batch head dest, batch dest -> batch head")
    return total / weights.sum(-1)[:, None]


def _last_of(roles: Int[Tensor, "batch pos"], role: str) -> Bool[Tensor, "batch pos"]:
    """The last token of each run of tokens with ``role``."""
    there = roles == ROLES.index(role)
    return there & ~there.roll(-1, 1)


def _before_first(roles: Int[Tensor, "batch pos"], role: str) -> Bool[Tensor, "batch pos"]:
    """The token before each run of tokens with ``role``."""
    there = roles == ROLES.index(role)
    return there.roll(-1, 1) & ~there


def _padded(biographies: Biographies, values: np.ndarray, pad: int) -> Int[Tensor, "batch pos"]:
    rows = torch.from_numpy(values.astype(np.int64)).split(biographies.lengths.tolist())
    return pad_sequence(rows, batch_first=True, padding_value=pad)
