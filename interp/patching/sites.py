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
    hook: str
    """TransformerLens's name of the activation; {} is the layer."""
    label: str
    """Name in figures."""
    part: Literal["", "head", "key_value_head", "neuron"] = ""
    """What is changed one at a time within a layer; empty if all of it is changed together."""
    at: Literal["token", "key", "edge"] = "token"
    """Where the change reaches the block's output: at the changed tokens (token); at every later
    token, which reads their keys or values (key); at the destinations of changed edges (edge).
    """
    activation: str = ""
    """What is changed: a name of the block's tap, or embed. By default the site's own name."""
    cut: bool = False
    """Attention scores are set to −inf instead of being replaced."""
    before_block: bool = False
    """The change enters the residual stream before the block; all others after it."""
    not_replaced_by: tuple[str, ...] = ()
    """Replacements that are refused at this site."""
    by_default: bool = False
    writes: bool = False
    """A path can start here: it is written into the residual stream."""
    reads: bool = False
    """A path can go on here: it is computed from the residual stream."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "activation", self.activation or self.name)

    @property
    def is_edge(self) -> bool:
        return self.at == "edge"

    @property
    def is_table(self) -> bool:
        """The activation has one value per destination and source, not one per token."""
        return self.activation in ("attn_scores", "pattern")

    @property
    def has_layers(self) -> bool:
        return "{}" in self.hook

    def n_parts(self, cfg: object, n_neurons: int) -> int:
        """The number of parts per layer; neurons come in groups of ``n_neurons``."""
        if self.part == "key_value_head":
            return cfg.n_key_value_heads or cfg.n_heads
        return {"": 1, "head": cfg.n_heads, "neuron": cfg.d_mlp // n_neurons}[self.part]


_BLOCK, _ATTENTION = "blocks.{}.hook_", "blocks.{}.attn.hook_"
_OF_ONE_PROMPT = ("mean", "resample")
_NEURONS = "groups of neurons"
SITES = {
    site.name: site
    for site in (
        Site("embed", "hook_embed", "embeddings", before_block=True, writes=True),
        Site(
            *("resid_pre", _BLOCK + "resid_pre", "residual stream before the block"),
            before_block=True,
            by_default=True,
        ),
        Site(
            *("resid_mid", _BLOCK + "resid_mid", "residual stream between attention and MLP"),
            by_default=True,
        ),
        Site("resid_post", _BLOCK + "resid_post", "residual stream after the block"),
        Site("attn_out", _BLOCK + "attn_out", "attention output", by_default=True, writes=True),
        Site(
            *("mlp_out", _BLOCK + "mlp_out", "MLP output"), by_default=True, writes=True, reads=True
        ),
        Site(
            *("mlp_pre", "blocks.{}.mlp.hook_pre", f"{_NEURONS} before the non-linearity"),
            part="neuron",
        ),
        Site("mlp_post", "blocks.{}.mlp.hook_post", _NEURONS, part="neuron", writes=True),
        Site("z", _ATTENTION + "z", "attention heads (z)", "head", by_default=True, writes=True),
        Site("q", _ATTENTION + "q", "queries (q)", "head", reads=True),
        Site("k", _ATTENTION + "k", "keys (k)", "key_value_head", "key", reads=True),
        Site("v", _ATTENTION + "v", "values (v)", "key_value_head", "key", reads=True),
        Site("rot_q", _ATTENTION + "rot_q", "rotated queries (rot_q)", "head"),
        Site("rot_k", _ATTENTION + "rot_k", "rotated keys (rot_k)", "key_value_head", "key"),
        Site(
            *("attn_scores", _ATTENTION + "attn_scores", "attention scores", "head"),
            not_replaced_by=(*_OF_ONE_PROMPT, "zero"),  # 0 would let softmax see later tokens
        ),
        Site(
            *("pattern", _ATTENTION + "pattern", "attention patterns", "head"),
            not_replaced_by=_OF_ONE_PROMPT,
        ),
        Site(
            *("edge", _ATTENTION + "pattern", "attention edges", "head", "edge"),
            activation="pattern",
            not_replaced_by=_OF_ONE_PROMPT,
        ),
        Site(
            *("knockout", _ATTENTION + "attn_scores", "attention cut", "", "edge"),
            activation="attn_scores",
            cut=True,
        ),
        Site(
            *("head_knockout", _ATTENTION + "attn_scores", "attention of one head cut"),
            *("head", "edge"),
            activation="attn_scores",
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
    """Sites that are patched if none are named; parallel blocks have no resid_mid."""
    return [name for name in names_of(by_default=True) if not (parallel and name == "resid_mid")]
