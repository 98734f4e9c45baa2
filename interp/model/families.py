"""The model families that are loaded as a ``HookedDecoder``, by ``model_type``."""

from interp.model.gpt2 import GPT2
from interp.model.gpt_neox import GPT_NEOX
from interp.model.hf_config import Family
from interp.model.llama import LLAMA_LIKE

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (GPT_NEOX, GPT2, *LLAMA_LIKE)
}
