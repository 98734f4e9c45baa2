"""Patching models of other families against ``transformer_lens.patching``, as
``benchmarks.patching`` does: GPT-2, Llama and Qwen3 shapes of four layers and width 256 with random
weights, every layer and position, fp32. The bridge is around the model that transformers saved, we
read the folder.
"""

from interp.process import tune_process

tune_process()

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.patching import (
    CHECKPOINT,
    THEIRS,
    bridge_of,
    compare,
    interp_values,
    product_rates,
    their_values,
)
from interp.model.checkpoint_io import read_checkpoint
from interp.suite import load_suite

WIDTH, N_FACTS, ROUNDS = 256, 16, 3
LLAMA = dict(
    hidden_size=WIDTH, intermediate_size=704, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=4, head_dim=32, max_position_embeddings=128,
)  # fmt: skip
SHAPES = {
    "gpt2": dict(n_embd=WIDTH, n_layer=4, n_head=8, n_positions=128),
    "llama": LLAMA,
    "qwen3": LLAMA,
}


def main() -> None:
    suite = load_suite(CHECKPOINT)
    length = int(suite.facts(600).lengths.mode().values)
    facts = suite.facts(N_FACTS, length=length)
    print(f"{len(facts)} facts of {length} tokens, {torch.get_num_threads()} threads")
    for family, shape in SHAPES.items():
        torch.manual_seed(0)
        d_vocab = suite.tokenizer.get_vocab_size()
        config = AutoConfig.for_model(family, vocab_size=d_vocab, initializer_range=0.05, **shape)
        with tempfile.TemporaryDirectory() as folder:
            hf_model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            hf_model.save_pretrained(folder)
            model = read_checkpoint(Path(folder))
        bridge, ratios = bridge_of(hf_model), []
        for site, function in THEIRS.items():
            ways = {
                "interp": partial(interp_values, model, facts, site),
                "bridge": partial(their_values, bridge, facts, function),
            }
            seconds, values = compare(ways, ROUNDS)
            difference = np.abs(values["interp"] - values["bridge"]).max()
            ratios.append(seconds["bridge"] / seconds["interp"])
            print(
                f"{family:6} {site:10} {1000 * seconds['interp']:7.1f} ms  bridge "
                f"{1000 * seconds['bridge']:6.0f} ms  {ratios[-1]:5.1f} ×  difference "
                f"{difference:.1e}",
                flush=True,
            )
        print(f"{family}: geometric mean {np.exp(np.log(ratios).mean()):.1f} ×", flush=True)
    print(f"plain products (4096 × {WIDTH} × {4 * WIDTH}): {product_rates(WIDTH)}")


if __name__ == "__main__":
    main()
