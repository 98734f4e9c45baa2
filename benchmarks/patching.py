"""Patching every layer and position against ``transformer_lens.patching``, on the demo run.

The same checkpoint, facts and cells; TransformerLens runs on the ``TransformerBridge`` that its
user builds around the step folder and, in the second column, on the ``HookedDecoder`` itself. Each
way runs in turn, in one process; the ratio is that of medians. fp32.
"""

from interp.process import tune_process

tune_process()

from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np
import torch
from transformer_lens import patching
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoModelForCausalLM

from interp.facts import FactSet
from interp.patching import patch
from interp.suite import load_suite

CHECKPOINT = "checkpoints/demo"
N_FACTS, ROUNDS = 64, 5
THEIRS = {
    "resid_pre": patching.get_act_patch_resid_pre,
    "resid_mid": patching.get_act_patch_resid_mid,
    "attn_out": patching.get_act_patch_attn_out,
    "mlp_out": patching.get_act_patch_mlp_out,
    "z": patching.get_act_patch_attn_head_out_by_pos,
}


def main() -> None:
    suite = load_suite(CHECKPOINT)
    step = suite.steps[-1]
    length = int(suite.facts(600).lengths.mode().values)
    facts = suite.facts(N_FACTS, length=length)
    model = suite.load(step)
    hf_model = AutoModelForCausalLM.from_pretrained(suite.step_dir(step), dtype=torch.float32)
    bridge = build_bridge_from_module(
        hf_model, architecture=type(hf_model).__name__, hf_config=hf_model.config
    ).eval()
    print(f"{len(facts)} facts of {length} tokens, step {step}, {torch.get_num_threads()} threads")
    print("site        interp      bridge          HookedDecoder   largest difference")
    for site, function in THEIRS.items():
        ways = {
            "interp": lambda site=site: interp_values(model, facts, site),
            "bridge": lambda function=function: their_values(bridge, facts, function),
            "model": lambda function=function: their_values(model, facts, function),
        }
        seconds, values = compare(ways)
        difference = max(np.abs(values["interp"] - values[name]).max() for name in values)
        ours = seconds["interp"]
        print(
            f"{site:10} {1000 * ours:7.1f} ms {1000 * seconds['bridge']:7.0f} ms "
            f"{seconds['bridge'] / ours:4.1f} × {1000 * seconds['model']:7.0f} ms "
            f"{seconds['model'] / ours:4.1f} ×   {difference:.1e}"
        )


def interp_values(model, facts: FactSet, site: str) -> np.ndarray:
    values = patch(model, facts, site=site, by="pos").patched.mean("fact")
    return values.transpose("layer", "pos", *(["head"] if site == "z" else [])).values


@torch.no_grad()
def their_values(model, facts: FactSet, function: Callable) -> np.ndarray:
    rows, final = torch.arange(len(facts)), facts.lengths[0] - 1

    def logit_diff(logits: torch.Tensor) -> torch.Tensor:
        answer, other = facts.answers[:, 0], facts.corrupted_answers[:, 0]
        return (logits[rows, final, answer] - logits[rows, final, other]).mean()

    _, cache = model.run_with_cache(facts.clean)
    return function(model, facts.corrupted, cache, logit_diff).numpy()


def compare(ways: dict[str, Callable]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Median seconds and the values of each way, run in turn."""
    values = {name: way() for name, way in ways.items()}
    times = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = perf_counter()
            way()
            times[name].append(perf_counter() - start)
    return {name: median(seconds) for name, seconds in times.items()}, values


if __name__ == "__main__":
    main()
