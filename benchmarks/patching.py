"""Patching every layer and position against ``transformer_lens.patching``.

The same checkpoint, facts and cells, fp32; TransformerLens runs on the ``TransformerBridge`` that
its user builds around the step folder and, in the second column, on the ``HookedDecoder`` itself;
for two sites there is also a loop in nnsight over the Hugging Face model. The ways take turns in
one process; the ratio is that of medians. Two models: the demo run's last checkpoint, and 8 layers
of width 512 with random weights (``python -m benchmarks.patching large``). With ``cuda`` as a
further word both run on a GPU, without nnsight and without the bridge.
"""

from interp.process import tune_process

tune_process()

import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
import xarray as xr
from transformer_lens import patching
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoModelForCausalLM

from interp.data.facts import FactSet
from interp.model.checkpoint_io import write_checkpoint
from interp.model.decoder import DecoderConfig, HookedDecoder, initialise
from interp.patching import patch
from interp.patching.tensor_ops import Linear
from interp.suite import Suite, load_suite

CHECKPOINT = "checkpoints/demo"
THEIRS = {
    "resid_pre": patching.get_act_patch_resid_pre,
    "attn_out": patching.get_act_patch_attn_out,
    "mlp_out": patching.get_act_patch_mlp_out,
    "z": patching.get_act_patch_attn_head_out_by_pos,
    "q": patching.get_act_patch_attn_head_q_by_pos,
    "k": patching.get_act_patch_attn_head_k_by_pos,
    "v": patching.get_act_patch_attn_head_v_by_pos,
    "pattern": patching.get_act_patch_attn_head_pattern_by_pos,
}


def main() -> None:
    large, cuda = "large" in sys.argv[1:], "cuda" in sys.argv[1:]
    n_facts, rounds = (16, 1) if large and not cuda else (64, 6)
    suite = load_suite(CHECKPOINT)
    length = int(suite.facts(600).lengths.mode().values)
    facts = suite.facts(n_facts, length=length)
    with tempfile.TemporaryDirectory() as folder:
        model, step = large_model(suite, Path(folder)) if large else demo_model(suite)
        hf_model = AutoModelForCausalLM.from_pretrained(step, dtype=torch.float32).eval()
    others = {"model": model.cuda() if cuda else model}
    if not cuda:
        from nnsight import NNsight

        others["bridge"], traced = bridge_of(deepcopy(hf_model)), NNsight(hf_model)
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads"
    print(f"{len(facts)} facts of {length} tokens, {where}")
    ratios = []
    for site, function in THEIRS.items():
        ways = {"interp": lambda site=site: interp_values(model, facts, site)}
        for name, other in others.items():
            ways[name] = lambda other=other, function=function: their_values(other, facts, function)
        if not cuda and site in ("resid_pre", "attn_out"):
            ways["nnsight"] = lambda site=site: nnsight_values(traced, facts, site)
        seconds, values = compare(ways, rounds)
        difference = max(np.abs(values["interp"] - values[name]).max() for name in values)
        took = seconds.pop("interp")
        flops = ours(model, facts, site).attrs["flops"]
        saved = 1 - flops / (values["interp"].size * forward_flops(model, length) * len(facts))
        ratios.append([seconds[name] / took for name in others])
        print(
            f"{site:10} {1000 * took:7.1f} ms  difference {difference:.1e}  FLOPs saved "
            f"{saved:6.1%}  {flops / took / 1e9:7.0f} GFLOP/s",
            *(f"{name} {1000 * s:.0f} ms {s / took:.1f} ×" for name, s in seconds.items()),
            flush=True,
        )
    means = np.exp(np.log(ratios).mean(0))
    print("geometric means:", *(f"{m:.1f} × {name}" for m, name in zip(means, others)))
    if cuda:
        return
    width = model.cfg.d_model
    print(f"plain products (4096 × {width} × {4 * width}): {product_rates(width)}")


def demo_model(suite: Suite) -> tuple[HookedDecoder, Path]:
    return suite.load(suite.steps[-1]), suite.step_dir(suite.steps[-1])


def large_model(suite: Suite, folder: Path) -> tuple[HookedDecoder, Path]:
    model = HookedDecoder(DecoderConfig(8, 8, 512, 2048, suite.tokenizer.get_vocab_size()))
    initialise(model, std=0.05, seed=0)
    write_checkpoint(model, folder / "step", dtype=torch.float32)
    return model.eval().requires_grad_(False), folder / "step"


def bridge_of(hf_model: torch.nn.Module) -> torch.nn.Module:
    return build_bridge_from_module(
        hf_model, architecture=type(hf_model).__name__, hf_config=hf_model.config
    ).eval()


def forward_flops(model: HookedDecoder, length: int) -> int:
    """Of one prompt's whole forward pass: weights and attention."""
    cfg = model.cfg
    block = 4 * cfg.d_model**2 + 2 * cfg.d_model * cfg.d_mlp + 2 * length * cfg.d_model
    return 2 * length * (cfg.n_layers * block + cfg.d_model * cfg.d_vocab)


def product_rates(width: int) -> str:
    """Of torch's matrix product and of the packed one."""
    x, weight = torch.randn(4096, width), torch.randn(4 * width, width)
    packed, rates = Linear(weight), []
    with torch.inference_mode():
        for product in (lambda: x @ weight.mT, lambda: packed(x)):
            times = []
            for _ in range(20):
                start = perf_counter()
                product()
                times.append(perf_counter() - start)
            rates.append(2 * x.numel() * len(weight) / median(times) / 1e9)
    return f"torch {rates[0]:.0f}, packed {rates[1]:.0f} GFLOP/s"


def interp_values(model: HookedDecoder, facts: FactSet, site: str) -> np.ndarray:
    """Means over facts, in the order of TransformerLens's axes."""
    values = ours(model, facts, site).patched.mean("fact")
    if site in ("z", "q", "k", "v"):
        values = values.transpose("layer", "pos", "head")
    return values.values


def ours(model: HookedDecoder, facts: FactSet, site: str) -> xr.Dataset:
    return patch(model, facts, site=site, by="pos", whole_value=False)


@torch.no_grad()
def their_values(model: torch.nn.Module, facts: FactSet, function: Callable) -> np.ndarray:
    device = next(model.parameters()).device
    rows, final = torch.arange(len(facts), device=device), facts.lengths[0] - 1
    answer, other = (x[:, 0].to(device) for x in (facts.answers, facts.corrupted_answers))

    def logit_diff(logits: torch.Tensor) -> torch.Tensor:
        return (logits[rows, final, answer] - logits[rows, final, other]).mean()

    _, cache = model.run_with_cache(facts.clean.to(device))
    return function(model, facts.corrupted.to(device), cache, logit_diff).cpu().numpy()


@torch.no_grad()
def nnsight_values(traced: torch.nn.Module, facts: FactSet, site: str) -> np.ndarray:
    """What an nnsight user writes: a trace a cell."""
    rows, final = torch.arange(len(facts)), int(facts.lengths[0]) - 1
    n_layers, kept = traced.config.num_hidden_layers, []
    values = np.zeros((n_layers, final + 1), np.float32)

    def activation(layer: int):
        block = traced.gpt_neox.layers[layer]
        return block.input if site == "resid_pre" else block.attention.output[0]

    with traced.trace(facts.clean):
        for layer in range(n_layers):
            kept.append(activation(layer).save())
    for layer in range(n_layers):
        for pos in range(final + 1):
            with traced.trace(facts.corrupted):
                x = activation(layer)
                x[:, pos] = kept[layer][:, pos]
                logits = traced.output.logits[:, final].save()
            answer, other = facts.answers[:, 0], facts.corrupted_answers[:, 0]
            values[layer, pos] = (logits[rows, answer] - logits[rows, other]).mean()
    return values


def compare(
    ways: dict[str, Callable], rounds: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Median seconds and the values of each way, run in turn; of several rounds the first, with
    its cold caches, does not count.
    """
    values, times = {}, {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = perf_counter()
            values[name] = way()
            times[name].append(perf_counter() - start)
    if rounds > 1:
        times = {name: seconds[1:] for name, seconds in times.items()}
    return {name: median(seconds) for name, seconds in times.items()}, values


if __name__ == "__main__":
    main()
