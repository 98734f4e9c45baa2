"""Every site that can be patched, one entry each, with all that patching needs to know about it.

A site is an activation of the block (a name that its tap is called with) and which part of it is
changed together. A new site is one entry of ``SITES``. Imports no torch, so that figures can read
its labels.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Site:
    """One site."""

    name: str
    activation: str
    """What is changed: a name of the block's tap, or the embeddings."""
    hook: str
    """TransformerLens's name of the activation; {} is the layer."""
    label: str
    """For figures."""
    part: Literal["", "head", "key_value_head", "neuron"] = ""
    """What is changed one at a time within a layer; empty: all of it together."""
    at: Literal["token", "key", "edge"] = "token"
    """Where the change reaches the block's output: at the changed tokens; at every later token,
    which reads their keys or values; at the destinations of changed edges.
    """
    cut: bool = False
    """Attention scores are set to −inf instead of being replaced."""
    before_block: bool = False
    """The change enters the residual stream before the block; all others after it."""
    not_replaced_by: tuple[str, ...] = ()
    """Replacements that make no sense here."""
    by_default: bool = False
    writes: bool = False
    """A path can start here: it is written into the residual stream."""
    reads: bool = False
    """A path can go on here: it is computed from the residual stream."""

    @property
    def is_edge(self) -> bool:
        return self.at == "edge"

    @property
    def is_table(self) -> bool:
        """Whether the activation has a value per destination and source, not one per token."""
        return self.activation in ("attn_scores", "pattern")

    @property
    def has_layers(self) -> bool:
        return "{}" in self.hook

    def n_parts(self, cfg: object, n_neurons: int) -> int:
        """The number of parts per layer; neurons come in groups of ``n_neurons``."""
        if self.part == "key_value_head":
            return cfg.n_key_value_heads or cfg.n_heads
        return {"": 1, "head": cfg.n_heads, "neuron": cfg.d_mlp // n_neurons}[self.part]


_BLOCK, _ATTENTION = "blocks.{}.", "blocks.{}.attn."
_OF_ONE_PROMPT = ("mean", "resample")
SITES = {
    site.name: site
    for site in (
        Site(
            *("embed", "embed", "hook_embed", "embeddings"),
            before_block=True,
            writes=True,
        ),
        Site(
            *("resid_pre", "resid_pre", _BLOCK + "hook_resid_pre"),
            "residual stream before the block",
            before_block=True,
            by_default=True,
        ),
        Site(
            *("resid_mid", "resid_mid", _BLOCK + "hook_resid_mid"),
            "residual stream between attention and MLP",
            by_default=True,
        ),
        Site(
            *("resid_post", "resid_post", _BLOCK + "hook_resid_post"),
            "residual stream after the block",
        ),
        Site(
            *("attn_out", "attn_out", _BLOCK + "hook_attn_out", "attention output"),
            by_default=True,
            writes=True,
        ),
        Site(
            *("mlp_out", "mlp_out", _BLOCK + "hook_mlp_out", "MLP output"),
            by_default=True,
            writes=True,
            reads=True,
        ),
        Site(
            *("mlp_pre", "mlp_pre", _BLOCK + "mlp.hook_pre"),
            "groups of neurons before the non-linearity",
            part="neuron",
        ),
        Site(
            *("mlp_post", "mlp_post", _BLOCK + "mlp.hook_post", "groups of neurons"),
            part="neuron",
            writes=True,
        ),
        Site(
            *("z", "z", _ATTENTION + "hook_z", "attention heads (z)"),
            part="head",
            by_default=True,
            writes=True,
        ),
        Site(*("q", "q", _ATTENTION + "hook_q", "queries (q)"), part="head", reads=True),
        Site(
            *("k", "k", _ATTENTION + "hook_k", "keys (k)"),
            part="key_value_head",
            at="key",
            reads=True,
        ),
        Site(
            *("v", "v", _ATTENTION + "hook_v", "values (v)"),
            part="key_value_head",
            at="key",
            reads=True,
        ),
        Site(
            *("rot_q", "rot_q", _ATTENTION + "hook_rot_q", "rotated queries (rot_q)"),
            part="head",
        ),
        Site(
            *("rot_k", "rot_k", _ATTENTION + "hook_rot_k", "rotated keys (rot_k)"),
            part="key_value_head",
            at="key",
        ),
        Site(
            *("attn_scores", "attn_scores", _ATTENTION + "hook_attn_scores", "attention scores"),
            part="head",
            not_replaced_by=(*_OF_ONE_PROMPT, "zero"),  # 0 would let softmax see later tokens
        ),
        Site(
            *("pattern", "pattern", _ATTENTION + "hook_pattern", "attention patterns"),
            part="head",
            not_replaced_by=_OF_ONE_PROMPT,
        ),
        Site(
            *("edge", "pattern", _ATTENTION + "hook_pattern", "attention edges"),
            part="head",
            at="edge",
            not_replaced_by=_OF_ONE_PROMPT,
        ),
        Site(
            *("knockout", "attn_scores", _ATTENTION + "hook_attn_scores", "attention cut"),
            at="edge",
            cut=True,
        ),
        Site(
            *("head_knockout", "attn_scores", _ATTENTION + "hook_attn_scores"),
            "attention of one head cut",
            part="head",
            at="edge",
            cut=True,
        ),
    )
}


def names_of(**wanted: object) -> list[str]:
    """Names of the sites whose attributes equal ``wanted``."""
    return [
        name
        for name, site in SITES.items()
        if all(getattr(site, key) == value for key, value in wanted.items())
    ]


def activations_of(sites: Collection[str]) -> set[str]:
    """Activations that a run must record so that ``sites`` can be replaced by it."""
    return {SITES[site].activation for site in sites if not SITES[site].cut}


def default_sites(*, parallel: bool) -> Sequence[str]:
    """The sites patched if none are named; parallel blocks have no resid_mid."""
    return [name for name in names_of(by_default=True) if not (parallel and name == "resid_mid")]
