"""What a model knows of a set of biographies: attribute loss, accuracy, confidence (arXiv
2503.21676, section 2 and Fig. M).

Over the values of one attribute, with p the model's distribution at the position before a value
token: loss = Σ tokens −ln p(token) ÷ number of values (nats per value); accuracy = share of values
with every token the argmax; max_probability and entropy = means over value tokens of max p and −Σ p
ln p.
"""

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from interp.config import ATTRIBUTES
from interp.data.biographies import ROLES, Biographies
from interp.model.decoder import HookedDecoder
from interp.training.packing import select_rows, to_ragged
from interp.training.reference_attention import patched_hidden

AVERAGE = "average"


@torch.inference_mode()
def evaluate(
    model: HookedDecoder,
    biographies: Biographies,
    *,
    reference: HookedDecoder | None = None,
    rows_at_once: int = 256,
) -> pd.DataFrame:
    """One row per attribute and one for their average: attribute, loss, accuracy, max_probability,
    entropy. With ``reference``, the model uses that model's attention patterns.
    """
    tokens = _all_value_tokens(model, biographies, reference, rows_at_once)
    table = pd.concat(
        [
            _by_value(tokens).groupby("attribute").mean(),
            tokens.groupby("attribute")[["max_probability", "entropy"]].mean(),
        ],
        axis=1,
    )
    table.index = [ATTRIBUTES[i] for i in table.index]
    table.loc[AVERAGE] = table.mean()
    return table.rename_axis("attribute").reset_index()


@torch.inference_mode()
def by_person(
    model: HookedDecoder, biographies: Biographies, *, rows_at_once: int = 256
) -> pd.DataFrame:
    """One row per biography: person, and means of loss and accuracy over its values."""
    tokens = _all_value_tokens(model, biographies, None, rows_at_once)
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
    rows_at_once: int,
) -> pd.DataFrame:
    """One row per value token; ``row`` is that of the biography."""
    parts = []
    for first in range(0, len(biographies.lengths), rows_at_once):
        end = min(first + rows_at_once, len(biographies.lengths))
        part = _value_tokens(model, select_rows(biographies, first, end), reference)
        parts.append(part.assign(row=part.row + first))
    return pd.concat(parts, ignore_index=True)


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
    log_p = model.unembed(hidden[torch.from_numpy(at - 1).to(device)]).log_softmax(-1)
    target = torch.from_numpy(biographies.tokens[at]).to(device)
    p = log_p.exp()
    return pd.DataFrame(
        {
            "row": np.repeat(np.arange(len(biographies.lengths)), biographies.lengths)[at],
            "attribute": biographies.attributes[at],
            "loss": F.nll_loss(log_p, target, reduction="none").cpu(),
            "correct": (log_p.argmax(-1) == target).cpu(),
            "max_probability": p.amax(-1).cpu(),
            "entropy": -(p * log_p).sum(-1).cpu(),
        }
    )
