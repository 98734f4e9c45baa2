"""Checks what localization needs: a plain model, and facts with the names, twins and
values that each question uses.
"""

import numpy as np

from interp.data.facts import PROMPT_ROLES, FactSet, check_tokens, check_vocabulary
from interp.fields import shortened
from interp.model.decoder import HookedDecoder
from interp.model.model_check import check_plain


def check_inputs(
    model: HookedDecoder,
    facts: FactSet,
    *,
    names: bool = False,
    twins: bool = False,
    values: bool = False,
) -> None:
    """Raises a ValueError unless the model is plain and can read the facts.

    Args:
        names: the facts must have the roles ``interp.data.facts.PROMPT_ROLES``, names among them.
        twins: they must have another answer each, that of the corrupted prompt.
        values: of each attribute two or more first tokens of values must be there to choose from.
    """
    check_plain(model)
    if not isinstance(facts, FactSet):
        raise ValueError(f"facts is {shortened(facts)}; give a FactSet, such as suite.facts()")
    if not len(facts):
        raise ValueError("there are no facts; give one or more")
    check_vocabulary(facts, model.vocabulary, "the model")
    check_tokens(facts, model.cfg.d_vocab, model.cfg.n_ctx)
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(f"{name} of the model holds NaN or infinite numbers; load it again")
    if names:
        _check_names(facts)
    if twins and (facts.corrupted is None or facts.corrupted_answers is None):
        raise ValueError(
            "the facts have no corrupted twins, against whose answers the model's are held; take "
            "facts from suite.facts(), or give corrupted prompts and answers"
        )
    if values:
        _check_values(facts)


def check_layer(model: HookedDecoder, layer: int) -> None:
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"no layer {layer}; the model has layers 0 to {model.cfg.n_layers - 1}")


def _check_names(facts: FactSet) -> None:
    there = [role for i, role in enumerate(facts.role_names) if (facts.roles == i).any()]
    named = any(role.startswith("name_") for role in there)
    if facts.role_names != PROMPT_ROLES or not named:
        raise ValueError(
            f"the facts have the roles {', '.join(there) or 'none'}; this question is about tokens "
            "of names, so take facts from suite.facts() or suite.read_facts()"
        )


def _check_values(facts: FactSet) -> None:
    first = facts.answers[:, 0].numpy()
    attribute = facts.texts.attribute.to_numpy(object)
    for name in dict.fromkeys(attribute):
        if len(np.unique(first[attribute == name])) < 2:
            raise ValueError(
                f"{np.sum(attribute == name)} of the facts are on {name!r} and have one value, so "
                "that there is nothing to choose from; give facts with two or more"
            )
