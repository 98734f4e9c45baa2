"""Checkpoints that share weights which should differ: a fault of public suites, where the files of
one step are sometimes those of another.
"""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Repeat:
    """Checkpoints that share weights which should differ; ``str`` describes them in one line."""

    steps: tuple[int, ...]
    tensors: tuple[str, ...]
    """The tensors that are the same; empty means all of them."""

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.steps[:6])) + (", ..." if len(self.steps) > 6 else "")
        if not self.tensors:
            return f"steps {shown} have identical weights; see that each is the checkpoint it says"
        which = f"{len(self.tensors)} identical tensors, {self.tensors[0]} first,"
        return f"steps {shown} have {which} though these were trained; see that no file is mixed up"


def repeated_weights(tensors: dict[int, dict[str, str]]) -> list[Repeat]:
    """Steps whose weights are all identical, and steps that share some tensors which changed at
    another step. A vector must have changed in between, since one in bf16 can stay the same for a
    while; a matrix may have changed at any step. Tensors that never change count as frozen.

    Args:
        tensors: digests by step and name, from ``interp.model.checkpoint_io.tensor_digests``.
    """
    wholes = _alike({step: json.dumps(of, sort_keys=True) for step, of in tensors.items()})
    shared: dict[tuple[int, ...], list[str]] = {}
    for name in dict.fromkeys(name for of in tensors.values() for name in of):
        has = {step: of[name] for step, of in sorted(tensors.items()) if name in of}
        for steps in _alike(has):
            others = [step for step in has if step not in steps]
            between = any(steps[0] < step < steps[-1] for step in others)
            matrix = "x" in has[steps[0]].partition(":")[0]
            known = any(set(steps) <= set(whole) for whole in wholes)
            if not known and (between or (others and matrix)):
                shared.setdefault(steps, []).append(name)
    parts = [Repeat(steps, tuple(names)) for steps, names in sorted(shared.items())]
    return [Repeat(steps, ()) for steps in wholes] + parts


def _alike(of: dict[int, str]) -> list[tuple[int, ...]]:
    """Groups of two or more steps with the same text."""
    groups: dict[str, list[int]] = {}
    for step in sorted(of):
        groups.setdefault(of[step], []).append(step)
    return [tuple(steps) for steps in groups.values() if len(steps) > 1]
