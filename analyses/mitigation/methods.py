"""Ways to hold back forgetting that are compared, with their strengths and what they cost.

All see as many batches of as many biographies. With replay some of these are of old people, so that
the new ones are seen less often; all other ways see the same biographies of new people.
"""

from analyses.finetuned_runs import PLAIN, REPLAY, with_mitigation, with_replay
from interp.suite import Suite
from interp.training.mitigation import N_BATCHES, N_FISHER, mitigation

ONLY = "-"
"""The strength of a method that has but one."""
_STRENGTHS = {
    "sparse-gradient": (0.2, 0.5),
    "sparse-memory": (0.2, 0.5),
    "sparse-unused": (0.2, 0.5),
    "sparse-random": (0.2, 0.5),
    "lora": (16, 64),
    "l2": (0.01, 0.1, 1),
    "ewc": (1, 10, 100),
    "distil": (0.1, 0.5),
    "slots": (64, 256),
    "warmup": (100,),
}
"""Chosen by a look at 250 steps of seed 0, so that the weakest changes little or the strongest
holds back new knowledge: a choice that flatters that seed a little.
"""
_SMOKE = {"lora": (2,), "slots": (4,), "warmup": (5,)}
_BESIDE = {
    "replay": "old biographies; fewer new ones per step",
    "sparse-gradient": f"gradients of {N_BATCHES} batches before",
    "sparse-memory": "one forward pass on old and new biographies before",
    "sparse-unused": "one forward pass on old biographies before",
    "l2": "a copy of the weights",
    "ewc": f"two copies of the weights; gradients of {N_FISHER} old biographies before",
    "distil": "a copy of the weights; one more forward pass per step",
    "slots": "a larger model",
}
"""What a way needs besides the step itself, the new biographies and the gradients; for weights that
are not trained, the step copies them back."""


def ways_of(method: str, size: str, n_layers: int) -> dict[str, dict]:
    """Fine-tunings of a method at each of its strengths, by strength as a label."""
    if method == "plain":
        return {ONLY: PLAIN}
    if method == "replay":
        return {f"{weight:g}": with_replay(weight) for weight in REPLAY[size]}
    if method in ("freeze-attention", "freeze-mlp"):
        return {ONLY: with_mitigation(method.replace("-", ":"), "freeze")}
    if method == "freeze-lower-layers":
        lower = "+".join(f"L{i}" for i in range(max(1, n_layers // 2)))
        groups = dict.fromkeys(("L0", lower))
        return {group: with_mitigation(f"freeze:{group}", "freeze") for group in groups}
    strengths = _STRENGTHS[method]
    if size == "smoke":
        strengths = _SMOKE.get(method, strengths[:1])
    return {f"{x:g}": with_mitigation(f"{method}:{x:g}", method) for x in strengths}


def trained_parameters(suite: Suite) -> int:
    """How many numbers a fine-tuning trains, of the run's own model at its first step."""
    model = suite.load(suite.steps[0])
    ways = mitigation(suite.config, model, suite.texts)
    if ways.factors:
        return sum(factor.numel() for pair in ways.factors.values() for factor in pair)
    if ways.masks is None:
        return sum(weight.numel() for weight in model.parameters())
    return sum(int(mask.sum()) for mask in ways.masks.values())


def cost(method: str, suite: Suite) -> dict:
    """What a fine-tuning costs: the numbers it trains, their share of the base model's, and what it
    needs besides.
    """
    n = trained_parameters(suite)
    return {"trained_parameters": n, "besides": _BESIDE.get(method, "nothing")}
