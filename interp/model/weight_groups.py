"""Groups of a model's weights, by name: what is trained, frozen or transplanted together.

Kinds, which together are all weights once: ``embed``, ``qk`` (queries and keys, with their norms),
``ov`` (values and outputs of attention), ``mlp``, ``norms``, ``unembed``. Others: ``attention`` =
qk+ov; ``L2``, a block; ``L2-attention``, ``L2-qk``, ``L2-ov``, ``L2-MLP``; ``L1H3``, a head;
``all``. Names joined by + are all of these; by & what they share: ``L0+L1&mlp`` = the MLPs of both
layers.
"""

import re

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.model.attention import fused_pieces, split_output_weight
from interp.model.decoder import DecoderConfig, HookedDecoder

KINDS = ("embed", "qk", "ov", "mlp", "norms", "unembed")
Masks = dict[str, Bool[Tensor, "*weight"]]


def weight_group(model: HookedDecoder, name: str) -> Masks:
    """Which numbers of each parameter belong to a group, by the parameter's name.

    Raises:
        ValueError: no such group in this model.
    """
    found = None
    for part in name.split("&"):
        together = _nothing(model)
        for member in part.split("+"):
            for key, mask in _members(model, member).items():
                together[key] |= mask
        found = together if found is None else {key: found[key] & together[key] for key in found}
    return found


def _nothing(model: HookedDecoder) -> Masks:
    return {
        key: torch.zeros_like(weight, dtype=torch.bool) for key, weight in model.named_parameters()
    }


def _members(model: HookedDecoder, name: str) -> Masks:
    masks, cfg = _nothing(model), model.cfg
    if "H" in name and cfg.n_grouped > 1:
        raise ValueError(
            f"{name!r} is no group of weights in a model whose heads share keys and values; name "
            "its layer's attention, qk or ov"
        )
    at = re.fullmatch(r"L(\d+)(?:H(\d+)|-(attention|qk|ov|MLP))?", name)
    layer, head = (int(x) if x else None for x in (at[1], at[2])) if at else (None, None)
    known = name in (*KINDS, "attention", "all") or at
    if not known or (layer or 0) >= cfg.n_layers or (head or 0) >= cfg.n_heads:
        raise ValueError(
            f"no group of weights {name!r}; there are {', '.join(KINDS)}, attention, all, L0 to "
            f"L{cfg.n_layers - 1}, and of a layer L0-attention, L0-qk, L0-ov, L0-MLP and L0H0"
        )
    kind = name if at is None else (at[3] or "all").lower()
    for key, mask in masks.items():
        if layer is not None and not key.startswith(f"blocks.{layer}."):
            continue
        if head is not None:
            _mark_head(key, mask, head, cfg)
        elif "attn." in key:
            _mark_attention(key, mask, kind, cfg)
        elif kind in ("all", _kind_of(key)):
            mask.fill_(True)
    return masks


def _kind_of(key: str) -> str:
    if ".mlp." in key:
        return "mlp"
    if "ln" in key:
        return "norms"
    return "unembed" if key.startswith("unembed") else "embed"


def _mark_attention(key: str, mask: Tensor, kind: str, cfg: DecoderConfig) -> None:
    if kind in ("all", "attention"):
        mask.fill_(True)
    elif ".qkv." in key and kind in ("qk", "ov"):
        pieces = fused_pieces(mask, cfg.n_heads, cfg.n_key_value_heads)
        pieces[:, slice(0, -1) if kind == "qk" else slice(-1, None)] = True
    elif kind == ("qk" if "_norm." in key else "ov"):
        mask.fill_(True)


def _mark_head(key: str, mask: Tensor, head: int, cfg: DecoderConfig) -> None:
    """A head's queries, keys, values and output columns; the output bias is no head's."""
    if ".qkv." in key:
        fused_pieces(mask, cfg.n_heads, cfg.n_key_value_heads)[head] = True
    elif key.endswith("attn.out.weight"):
        split_output_weight(mask, cfg.n_heads)[head] = True
