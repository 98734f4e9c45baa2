"""Rotary positions in a config.json: base, rotated share of a head, and scaling, in each of the
ways that transformers reads.
"""

from pathlib import Path

from interp.fields import shortened
from interp.model.attention import Scaling
from interp.model.hf_config import INSTEAD, check_key, number

BESIDE = ("rope_theta", "partial_rotary_factor")
"""Keys of base and share beside the objects that also hold them."""
ROTARY_KEYS = ("rope_parameters", "rope_scaling", *BESIDE)
_SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
"""Keys that each kind of rotary scaling must have."""
_OPTIONAL = {
    "dynamic": ("original_max_position_embeddings",),
    "llama3": ("original_max_position_embeddings",),
    "yarn": (
        *("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
}


def rotary_of(
    given: dict, n_ctx: int, path: Path, beside: tuple[str, str], *, default_share: float
) -> tuple[float, float, Scaling]:
    """Base, rotated share and scaling, by the precedence of transformers: ``rope_scaling`` if it
    holds anything, else ``rope_parameters``; what they leave out is taken from the keys ``beside``
    them. Dynamic scaling begins beyond the longest prompt that is read, so it is none.

    Raises:
        ValueError: a key is unknown, or has a value that can't be.
    """
    place = "rope_scaling" if given.get("rope_scaling") else "rope_parameters"
    inside = given.get(place) or {}
    check_key(path, place, inside, isinstance(inside, dict), "an object, or null")
    kind = inside.get("rope_type", inside.get("type", "default"))
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise ValueError(
            f"{path}: {place} has rope_type {shortened(kind)}, and only {', '.join(_SCALINGS)} are "
            f"supported; {INSTEAD}"
        )
    optional = _OPTIONAL.get(kind, ())
    if unknown := inside.keys() - {*BESIDE, "rope_type", "type", *_SCALINGS[kind], *optional}:
        raise ValueError(
            f"{path}: {place} has the key {min(unknown)!r}, which is unknown for rope_type "
            f"{kind!r}; delete it only if you know that it changes nothing"
        )
    theta = inside.get("rope_theta", given.get(beside[0], 10_000.0))
    share = inside.get("partial_rotary_factor", given.get(beside[1], default_share))
    check_key(path, "the rotary base", theta, number(theta) and theta > 0, "a number above 0")
    check_key(path, "the rotary share", share, number(share) and 0 < share <= 1, "a share up to 1")
    for key in (*_SCALINGS[kind], *(key for key in optional if inside.get(key) is not None)):
        value = inside.get(key)
        fine = isinstance(value, bool) if key == "truncate" else number(value) and value > 0
        wanted = "true or false" if key == "truncate" else "a number above 0"
        check_key(path, f"{key} of {place}", value, fine, wanted)
    if kind in ("default", "dynamic"):
        return float(theta), float(share), ()
    scaling = {key: inside[key] for key in (*_SCALINGS[kind], *optional) if key in inside}
    if kind in ("llama3", "yarn"):
        scaling.setdefault("original_max_position_embeddings", n_ctx)
    return float(theta), float(share), tuple(sorted((scaling | {"rope_type": kind}).items()))
