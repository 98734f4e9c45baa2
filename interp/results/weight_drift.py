"""Whether checkpoints lie on one path through weight space, in the order of their steps.

Each matrix is scaled to norm 1 and all are laid end to end, so that a checkpoint is a unit vector
x, the similarity of two is s = x·y, the mean correlation of their matrices, and their distance
√(2 − 2s). Training moves on: steps far apart resemble each other less than neighbours do. Three
faults break that. Checkpoints of another run correlate with none of this run's (|s| ≤ 0.012 between
seeds of the runs in ``checkpoints/`` and larger ones; the least between neighbours of one run is
0.35). Two steps in each other's place make a longer path than in the right one. A step that holds
weights of another time is far from both neighbours, which are close to each other.

What would not be evidence: a large distance alone, since early steps and steps with a high
learning rate move far. False alarms: where all trace of the weights is lost between two
checkpoints, the earlier look like another run's; where the path returns, as with a learning rate
that rises and falls between checkpoints, the outermost look misplaced. Where it stands still but
for noise, distances are all alike, and the margins keep that quiet. Steps that hardly differ can't
be ordered, and the last two only where they move more directly than by a random walk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.sparse.csgraph import connected_components

LEAST_SIMILARITY = 0.1
"""Between checkpoints of one run, directly or by way of others."""
SHORTER, SHORTER_AT_END = 0.95, 0.7
"""A part of the path is reversed if its new edges are shorter than this share of the old. A part
that reaches the last step has one edge only, and that becomes shorter, down to √½ of the old, where
noise decays with the learning rate.
"""
CLOSER = 0.9
"""A step is misplaced if its neighbours' distance is below this share of that to the nearer."""


@dataclass(frozen=True)
class Drift:
    """Steps that don't lie on the path, and why."""

    steps: tuple[int, ...]
    why: str


def similarities(
    samples: Mapping[int, Mapping[str, np.ndarray]],
) -> Float[np.ndarray, "step step"]:
    """Mean correlation, about 0, of the matrices that all steps have in one shape.

    Args:
        samples: numbers of each matrix by step and name.
    """
    first = next(iter(samples.values()))
    names = [
        name
        for name in first
        if all(name in of and of[name].shape == first[name].shape for of in samples.values())
    ]
    if not names:
        return np.eye(len(samples))
    total = np.zeros((len(samples), len(samples)))
    for name in names:
        x = np.stack([of[name] for of in samples.values()]).astype(np.float64)
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        x = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
        total += x @ x.T
    return total / len(names)


def off_the_path(steps: Sequence[int], similarity: Float[np.ndarray, "step step"]) -> list[Drift]:
    """Groups of steps of another run, out of order, or misplaced; none where all is in line.

    Args:
        steps: in order, without such as have identical weights.
    """
    if len(steps) < 2:
        return []
    found = []
    _, part = connected_components(similarity >= LEAST_SIMILARITY, directed=False)
    main = np.bincount(part).argmax()
    for other in dict.fromkeys(part[part != main]):
        most = max(0.0, similarity[part == other][:, part != other].max())
        alone = tuple(steps[i] for i in np.flatnonzero(part == other).tolist())
        why = f"of another run: correlation with the other steps is {most:.2f} at most"
        found.append(Drift(alone, why))
    kept = np.flatnonzero(part == main).tolist()
    distance = np.sqrt(np.maximum(0, 2 - 2 * similarity[np.ix_(kept, kept)]))
    of_run = [steps[i] for i in kept]
    orders = _out_of_order(of_run, distance)
    odd = _misplaced(of_run, distance)
    left = [i for i, step in enumerate(of_run) if not any(step in one.steps for one in odd)]
    both = odd + _out_of_order([of_run[i] for i in left], distance[np.ix_(left, left)])
    # One fault can often be told in both ways. Two steps in each other's place are told as that,
    # and what else there is in the way that names fewer steps.
    n_both = sum(len(drift.steps) for drift in both)
    return found + (orders if orders and len(orders[0].steps) <= max(2, n_both) else both)


def _out_of_order(steps: Sequence[int], distance: Float[np.ndarray, "step step"]) -> list[Drift]:
    order = shortest_order(distance)
    moved = [i for i, at in enumerate(order) if i != at]
    better = ", ".join(str(steps[i]) for i in order if i in moved)
    why = f"out of order: the weights move in the order {better}"
    return [Drift(tuple(steps[i] for i in moved), why)] if moved else []


def _misplaced(steps: Sequence[int], distance: Float[np.ndarray, "step step"]) -> list[Drift]:
    return [
        Drift(
            tuple(steps[i] for i in part),
            f"misplaced: steps {steps[before]} and {steps[after]} are closer to each other than to "
            "the nearer of these",
        )
        for part, (before, after) in misplaced(distance)
    ]


def shortest_order(distance: Float[np.ndarray, "step step"]) -> list[int]:
    """The order of steps in which their path can't be made shorter by reversing a part of it
    (2-opt), starting from the given one; a path has no direction, so it is that of the two which
    moves fewer steps.
    """
    order = list(range(len(distance)))
    while move := _best_reversal(distance[np.ix_(order, order)]):
        i, j = move
        order[i : j + 1] = order[i : j + 1][::-1]
    return min(order, order[::-1], key=lambda one: sum(i != at for i, at in enumerate(one)))


def _best_reversal(distance: Float[np.ndarray, "step step"]) -> tuple[int, int] | None:
    """First and last place of the part whose reversal shortens the path most, if any does."""
    n = len(distance)
    around = np.zeros((n + 2, n + 2))  # nothing lies before the first and behind the last
    around[1:-1, 1:-1] = distance
    first, last = np.triu_indices(n, 1)
    old = around[first, first + 1] + around[last + 1, last + 2]
    new = around[first, last + 1] + around[first + 1, last + 2]
    share = np.where(last < n - 1, SHORTER, np.where(first > 0, SHORTER_AT_END, 0))
    gain = np.where(new < share * old, old - new, 0)
    best = int(gain.argmax()) if len(gain) else 0
    return (int(first[best]), int(last[best])) if len(gain) and gain[best] > 0 else None


def misplaced(
    distance: Float[np.ndarray, "step step"],
) -> list[tuple[list[int], tuple[int, int]]]:
    """Parts of the path whose two neighbours are closer to each other than to the part, the
    shortest first: its places, and those of the neighbours.
    """
    found: list[tuple[list[int], tuple[int, int]]] = []
    left = list(range(len(distance)))
    while True:
        d, n = distance[np.ix_(left, left)], len(left)
        far = [
            (j + 1 - i, i, j)
            for i in range(1, n - 1)
            for j in range(i, n - 1)
            if d[i - 1, j + 1] < CLOSER * min(d[i - 1, i], d[j, j + 1])
        ]
        if not far:
            return found
        _, i, j = min(far)
        found.append((left[i : j + 1], (left[i - 1], left[j + 1])))
        del left[i : j + 1]
