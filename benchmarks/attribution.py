"""Attribution patching against TransformerLens's and against exact patching.

One process, fp32, the ways in turn; ratios are of medians. TransformerLens scores pair by pair on
the ``TransformerBridge`` around the same checkpoint; its edges are summed over the tokens of a role
to be compared with ours.
"""

from interp.process import tune_process

tune_process()

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
import torch
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    attribution_patch,
)
from transformers import AutoModelForCausalLM

from benchmarks.patching import CHECKPOINT, bridge_of
from interp.attribution import edge_effects
from interp.data.facts import FactSet
from interp.model.decoder import DecoderConfig, HookedDecoder, initialise
from interp.patching import patch_sites
from interp.suite import Suite, load_suite

NODES = ("resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "mlp_post")
METHODS = ("atp", "atp-star", "relp", "eap-ig")
N_FACTS, ROUNDS = 64, 3
SIZES = ((2, 64), (4, 64), (8, 64), (4, 128), (4, 256))
N_FACTS_BY_SIZE, N_FACTS_FOR_MEMORY = 16, 600


def main() -> None:
    suite = load_suite(CHECKPOINT)
    length = int(suite.facts(600).lengths.mode().values)
    facts, last = suite.facts(N_FACTS, length=length), suite.steps[-1]
    print(f"{N_FACTS} facts of {length} tokens, {torch.get_num_threads()} threads")
    edges_beside_transformer_lens(suite, facts, last)
    nodes_beside_exact_patching(suite.load(last), facts)
    nodes_by_size(suite, facts[range(N_FACTS_BY_SIZE)])
    for max_memory in (0.3, 2.0):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:  # whose peak is its own
            grown = process.submit(memory_of_nodes, max_memory).result()
        print(f"atp-star, max_memory {max_memory} GB: the process grew by {grown:.2f} GB")
    start = perf_counter()
    for step in suite.steps:
        edge_effects(suite.load(step), facts, method="eap-ig")
    print(f"EAP-IG of all edges at {len(suite.steps)} checkpoints: {perf_counter() - start:.1f} s")
    for layers, width in SIZES:
        model = random_model(suite, layers, width)
        took = timed(lambda model=model: edge_effects(model, facts, method="eap-ig"))
        print(f"EAP-IG, {layers} layers of width {width}: {1000 * took:.0f} ms")


def edges_beside_transformer_lens(suite: Suite, facts: FactSet, step: int) -> None:
    model = suite.load(step)
    theirs = AutoModelForCausalLM.from_pretrained(suite.step_dir(step), dtype=torch.float32)
    bridge = bridge_of(theirs.eval())
    ours = edge_effects(model, facts, method="eap", direction="denoising")
    start, largest = perf_counter(), 0.0
    for i, fact in enumerate(facts):
        first, other = fact.answer[0], fact.corrupted_answer[0]
        scores = attribution_patch(
            *(bridge, fact.clean[None], fact.corrupted[None]),
            lambda logits, first=first, other=other: logits[0, -1, first] - logits[0, -1, other],
            EdgeAttributionConfig("edge"),
        )
        total = sum(scores.edge_scores.values())
        largest = max(largest, abs(float(ours.effect[..., i].sum()) - total))
    slow = perf_counter() - start
    quick = timed(lambda: edge_effects(model, facts, method="eap", direction="denoising"))
    print(
        f"EAP of all edges: {1000 * quick:.0f} ms, TransformerLens {slow:.1f} s, "
        f"{slow / quick:.0f} ×; largest difference of sums over edges {largest:.1e}"
    )


def nodes_beside_exact_patching(model: HookedDecoder, facts: FactSet) -> None:
    print(f"all nodes ({', '.join(NODES)})")
    values = {method: patched_nodes(model, facts, method) for method in ("exact", *METHODS)}
    print_shares(model, facts, METHODS)
    for method in METHODS:
        correlations = ", ".join(
            f"{site} {correlation(values['exact'][site], values[method][site]):.2f}"
            for site in NODES
        )
        print(f"  {method}: Pearson with exact: {correlations}")


def nodes_by_size(suite: Suite, facts: FactSet) -> None:
    for layers, width in SIZES:
        print(f"all nodes, {layers} layers of width {width}, {len(facts)} facts")
        print_shares(random_model(suite, layers, width), facts, ("atp", "atp-star"))


def print_shares(model: HookedDecoder, facts: FactSet, methods: tuple[str, ...]) -> None:
    """Wall and processor time of each method, in turn, and their shares of those of exact."""
    times = {method: [] for method in ("exact", *methods)}
    for _ in range(ROUNDS + 1):
        for method, taken in times.items():
            wall, cpu = perf_counter(), process_time()
            patched_nodes(model, facts, method)
            taken.append((perf_counter() - wall, process_time() - cpu))
    for method, taken in times.items():
        shares = [median(x / y for x, y in zip(a, b)) for a, b in zip(
            zip(*taken[1:]), zip(*times["exact"][1:]))]  # fmt: skip
        wall, cpu = (median(seconds) for seconds in zip(*taken[1:]))
        print(
            f"  {method}: {1000 * wall:.0f} ms ({shares[0]:.1%}), processor {1000 * cpu:.0f} ms "
            f"({shares[1]:.1%})"
        )


def patched_nodes(model: HookedDecoder, facts: FactSet, method: str, **options) -> dict:
    return patch_sites(
        *(model, facts),
        sites=NODES,
        direction="noising",
        method=method,
        whole_value=False,
        **options,
    )


def memory_of_nodes(max_memory: float) -> float:
    """Gigabytes by which the peak of a process grows."""
    suite = load_suite(CHECKPOINT)
    model, facts = suite.load(suite.steps[-1]), suite.facts(N_FACTS_FOR_MEMORY)
    patched_nodes(model, facts[range(2)], "atp-star")
    before = peak_bytes()
    patched_nodes(model, facts, "atp-star", max_memory=max_memory)
    return (peak_bytes() - before) / 1e9


def peak_bytes() -> int:
    """The most memory that this process has held (Linux)."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return 1024 * int(line.split()[1])


def correlation(exact, estimated) -> float:
    x, y = (result.patched - result.clean for result in (exact, estimated))
    there = np.isfinite(x.values)
    return float(np.corrcoef(x.values[there], y.values[there])[0, 1])


def random_model(suite: Suite, n_layers: int, width: int) -> HookedDecoder:
    d_vocab = suite.tokenizer.get_vocab_size()
    model = HookedDecoder(DecoderConfig(n_layers, 4, width, 4 * width, d_vocab))
    initialise(model, std=0.05, seed=0)
    return model.eval().requires_grad_(False)


def timed(run) -> float:
    """Median seconds of ``ROUNDS`` runs, after one that is not counted."""
    seconds = []
    for _ in range(ROUNDS + 1):
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)
    return median(seconds[1:])


if __name__ == "__main__":
    main()
