"""What a model knows of a set of biographies: attribute loss, accuracy, confidence (arXiv
2503.21676, section 2 and Fig. M).

Over the values of one attribute, with p the model's distribution at the position before a value
token: loss = Σ tokens −ln p(token) ÷ number of values (nats per value); accuracy = share of values
with every token the argmax; max_probability and entropy = means over value tokens of max p and −Σ p
ln p. All four are computed in fp32; logits in the precision that is asked for, as in training.
"""

from math import inf

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from interp.config import Precision
from interp.data.biographies import ROLES, Biographies
from interp.model.decoder import DecoderConfig, HookedDecoder
from interp.model.gpu import free_bytes, to_device
from interp.model.weights import widened
from interp.training.packing import select_rows, to_ragged
from interp.training.reference_attention import patched_hidden

AVERAGE = "average"
ROWS_AT_ONCE = 256
"""On a CPU, where more are not faster."""


@torch.inference_mode()
def evaluate(
    model: HookedDecoder,
    biographies: Biographies,
    *,
    reference: HookedDecoder | None = None,
    precision: Precision = "fp32",
    rows_at_once: int | None = None,
) -> pd.DataFrame:
    """One row per attribute and one for their average: attribute, loss, accuracy, max_probability,
    entropy.

    Args:
        reference: the model uses that model's attention patterns.
        precision: of matrix products. Metrics of a run in training are in the run's own precision.
        rows_at_once: biographies that are read together; by default what suits the device.
    """
    tokens = _all_value_tokens(model, biographies, reference, precision, rows_at_once)
    table = pd.concat(
        [
            _by_value(tokens).groupby("attribute").mean(),
            tokens.groupby("attribute")[["max_probability", "entropy"]].mean(),
        ],
        axis=1,
    )
    table.index = [biographies.attribute_names[i] for i in table.index]
    table.loc[AVERAGE] = table.mean()
    return table.rename_axis("attribute").reset_index()


@torch.inference_mode()
def by_person(
    model: HookedDecoder, biographies: Biographies, *, rows_at_once: int | None = None
) -> pd.DataFrame:
    """One row per biography: person, and means of loss and accuracy over its values, in the
    precision of the model's weights.
    """
    tokens = _all_value_tokens(model, biographies, None, "fp32", rows_at_once)
    table = _by_value(tokens).groupby("row").mean()
    return table.assign(person=biographies.people).reset_index(drop=True)


def _by_value(tokens: pd.DataFrame) -> pd.DataFrame:
    return tokens.groupby(["row", "attribute"]).agg(
        loss=("loss", "sum"), accuracy=("correct", "all")
    )


def _all_value_tokens(
    model: HookedDecoder,
    biographies: Biographies,
    reference: HookedDecoder | None,
    precision: Precision,
    rows_at_once: int | None,
) -> pd.DataFrame:
    """One row per value token; ``row`` is that of the biography."""
    parts, device = [], model.embed.weight.device
    rows_at_once = rows_at_once or _rows_at_once(model.cfg, biographies, free_bytes(device))
    for first in range(0, len(biographies.lengths), rows_at_once):
        end = min(first + rows_at_once, len(biographies.lengths))
        some = select_rows(biographies, first, end)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            part = _value_tokens(model, some, reference)
        parts.append(part.assign(row=part.row + first))
    return pd.concat(parts, ignore_index=True)


def _rows_at_once(cfg: DecoderConfig, biographies: Biographies, n_bytes: float) -> int:
    """``ROWS_AT_ONCE``, or on a GPU as many as take an eighth of its free ``n_bytes``: fp32
    activations of a block, twice for a reference, and four tables of logits of value tokens.
    """
    if n_bytes == inf:
        return ROWS_AT_ONCE
    n_pos, is_value = int(biographies.lengths.max()), biographies.roles == ROLES.index("value")
    n_value = is_value.sum() / len(biographies.lengths)
    token = 2 * cfg.d_mlp + 12 * cfg.d_model + 3 * cfg.n_heads * n_pos
    row = 4 * (2 * n_pos * token + 4 * n_value * cfg.d_vocab)
    return max(1, int(n_bytes / 8 / row))


def _value_tokens(
    model: HookedDecoder, biographies: Biographies, reference: HookedDecoder | None
) -> pd.DataFrame:
    device = model.embed.weight.device
    tokens, ragged = to_ragged(biographies, model.cfg, device)
    at = np.flatnonzero(biographies.roles == ROLES.index("value"))
    if reference is None:
        hidden = model.hidden(tokens, ragged)
    else:
        hidden = patched_hidden(model, reference, tokens, ragged)
    logits = widened(model.unembed(hidden[to_device(at - 1, device)]))
    log_p, target = logits.log_softmax(-1), to_device(biographies.tokens[at], device)
    p = log_p.exp()
    measured = (
        F.nll_loss(log_p, target, reduction="none"),
        (log_p.argmax(-1) == target).to(log_p),
        p.amax(-1),
        -(p * log_p).sum(-1),
    )
    loss, correct, most, entropy = torch.stack(measured).cpu().numpy()  # one copy from a GPU
    return pd.DataFrame(
        {
            "row": np.repeat(np.arange(len(biographies.lengths)), biographies.lengths)[at],
            "attribute": biographies.attributes[at],
            "loss": loss,
            "correct": correct == 1,
            "max_probability": most,
            "entropy": entropy,
        }
    )
