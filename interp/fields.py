"""Bounds of configuration fields: declared beside each default, checked in one place.

The annotation is the type: ``int`` is neither ``bool`` nor ``float``; a ``float`` is finite, and
may be given as an ``int``; a tuple may be given as a list, since JSON knows no other. Standard
library only.
"""

from dataclasses import MISSING, field, fields
from math import isfinite
from numbers import Integral, Real
from os import PathLike, fspath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

LARGEST_SEED = 2**63 - 1
LARGEST_STEP = 2**31 - 1
"""Steps are stored in 32 bits."""
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def number(
    default: Any = MISSING,
    *,
    least: int | float | None = None,
    most: int | float | None = None,
    above: int | float | None = None,
    below: int | float | None = None,
) -> Any:
    """A dataclass field with bounds, which hold for each number of a tuple."""
    bounds = {"least": least, "most": most, "above": above, "below": below}
    return field(default=default, metadata=bounds)


def path(default: Any = MISSING) -> Any:
    """A dataclass field that names a file or folder, or a tuple of them, and is not empty."""
    return field(default=default, metadata={"path": True})


def check_fields(config: Any) -> None:
    """Checks every field of a dataclass, for its ``__post_init__``. NumPy numbers become Python
    numbers, lists become tuples and paths become text, so that a configuration is always recorded
    in the same form.

    Raises:
        ValueError: a value is not of the annotated type, or out of bounds.
    """
    for name, value in checked(type(config), vars(config)).items():
        object.__setattr__(config, name, value)


def checked(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """``values`` of dataclass fields, by name, as ``check_fields`` leaves them.

    Raises:
        ValueError: as ``check_fields``.
    """
    return {
        one.name: _checked(one.name, values[one.name], one.type, one.metadata)
        for one in fields(kind)
        if one.name in values
    }


def argument(name: str, value: Any, kind: Any, *, is_path: bool = False, **bounds: Any) -> Any:
    """The value of a function argument, checked as a dataclass field with that annotation is.

    Raises:
        ValueError: it is of another type, or out of bounds.
    """
    return _checked(name, value, kind, {"path": True} if is_path else bounds)


def shortened(value: object) -> str:
    """A value as an error message quotes it."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}…"


def _checked(name: str, value: Any, kind: Any, declared: Any) -> Any:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None and NoneType in kinds:
        return None
    if choices := [c for k in kinds if get_origin(k) is Literal for c in get_args(k)]:
        return _choice(name, value, choices)
    (kind,) = (k for k in kinds if k is not NoneType)
    if get_origin(kind) is not tuple:
        return _bounded(name, _typed(name, value, kind, declared), declared)
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple | range):
        (of, _) = get_args(kind)
        raise ValueError(f"{name} is {shortened(value)}; give a list, each entry {_WORDS[of]}")
    if "path" in declared and not value:
        raise ValueError(f"{name} is empty; name at least one")
    return tuple(_checked(name, part, get_args(kind)[0], declared) for part in value)


def _choice(name: str, value: object, choices: list[str]) -> object:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {shortened(value)}; it must be one of {', '.join(choices)}")
    return value


def _typed(name: str, value: Any, kind: type, declared: Any) -> Any:
    """``value`` as a plain Python object."""
    if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if kind is float and isinstance(value, Real) and not isinstance(value, bool):
        if isinstance(value, Integral) and abs(int(value)) >= 2**1023:
            raise ValueError(f"{name} is {shortened(value)}; it must be finite, as a float")
        return float(value)
    if "path" in declared and isinstance(value, PathLike):
        value = fspath(value)
    if kind in (int, float) or not isinstance(value, kind):
        words = _WORDS.get(kind, f"a {kind.__name__}")
        raise ValueError(f"{name} is {shortened(value)}; it must be {words}")
    return value


def _bounded(name: str, value: Any, declared: Any) -> Any:
    if "path" in declared and not value.strip():
        raise ValueError(f"{name} is empty; name a file or folder")
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{name} is {value}; it must be finite")
    least, most, above, below = (declared.get(key) for key in ("least", "most", "above", "below"))
    if above is not None and not value > above:
        wanted = "positive" if above == 0 else f"above {above}"
    elif least is not None and not value >= least:
        wanted = f"at least {least}"
    elif most is not None and not value <= most:
        wanted = f"at most {most}"
    elif below is not None and not value < below:
        wanted = f"below {below}"
    else:
        return value
    raise ValueError(f"{name} is {value}; it must be {wanted}")
