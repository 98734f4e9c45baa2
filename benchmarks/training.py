"""A training step against TransformerLens's own and a compiled Hugging Face GPT-NeoX.

All take the same batches of real biographies, in turn, in one process; the ratio is of medians.
TransformerLens trains a native model in fp32, as its ``tools.training.train`` does by default;
Hugging Face is compiled and multiplies in bf16, with pads masked out of the loss.
"""

from interp.process import tune_process

tune_process()

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch.nn.utils.rnn import pad_sequence
from transformer_lens import TransformerBridge
from transformer_lens.config import TransformerBridgeConfig
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from interp.bios.batches import training_batch
from interp.bios.population import draw_population
from interp.bios.text import Biographies, lay_out, tokenizer_for
from interp.config import PRESETS, TrainConfig
from interp.training.loop import make_step, make_trainee

WARM_UP, ROUNDS = 4, 30


def main() -> None:
    config = PRESETS["demo"]
    people = draw_population(config.n_people, config.n_held_out, config, seed=0)
    tokenizer = tokenizer_for(people)
    texts = lay_out(people, tokenizer, seed=0)
    d_vocab = tokenizer.get_vocab_size()
    trainee = make_trainee(config, d_vocab)
    steps = {
        "interp (compiled, bf16)": make_step(config, trainee),
        "TransformerLens native (fp32)": transformer_lens_step(config, d_vocab),
        "Hugging Face (compiled, bf16)": hugging_face_step(config, d_vocab),
    }
    times: dict[str, list[float]] = {name: [] for name in ["building the batch", *steps]}
    n_tokens = []
    for i in range(WARM_UP + ROUNDS):
        start = perf_counter()
        batch = training_batch(texts, config, i)
        times["building the batch"].append(perf_counter() - start)
        n_tokens.append(len(batch.tokens))
        for name, step in steps.items():
            start = perf_counter()
            step(batch)
            times[name].append(perf_counter() - start)
    ours = median(times["interp (compiled, bf16)"][WARM_UP:])
    for name, seconds in times.items():
        value = median(seconds[WARM_UP:])
        print(f"{name:32} {1000 * value:8.2f} ms   {value / ours:6.3f} × interp")
    weights = (
        sum(w.numel() for w in trainee.model.parameters()) - trainee.model.embed.weight.numel()
    )
    rate = 6 * weights * median(n_tokens) / ours
    peak = matrix_throughput()
    print(
        f"{median(n_tokens) / ours:,.0f} tokens/s; {rate / 1e9:.0f} GFLOP/s "
        f"(6 × weights × tokens), "
        f"{rate / peak:.0%} of the {peak / 1e9:.0f} that a bf16 product of 2048 × 2048 reaches"
    )


def transformer_lens_step(config: TrainConfig, d_vocab: int) -> Callable[[Biographies], None]:
    model = TransformerBridge.boot_native(
        TransformerBridgeConfig(
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            d_model=config.d_model,
            d_head=config.d_model // config.n_heads,
            d_mlp=config.d_mlp,
            n_ctx=512,
            d_vocab=d_vocab,
            act_fn="gelu",
            normalization_type="LN",
            seed=0,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    return stepper(optimizer, lambda batch: model(rows(batch), return_type="loss"))


def hugging_face_step(config: TrainConfig, d_vocab: int) -> Callable[[Biographies], None]:
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=d_vocab,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=config.d_mlp,
            use_parallel_residual=False,
            rotary_pct=1.0,
            use_cache=False,
        )
    )

    @torch.compile(dynamic=True)
    def loss(tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(input_ids=tokens, labels=labels, use_cache=False).loss

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    return stepper(optimizer, lambda batch: loss(rows(batch), rows(batch, pad=-100)))


def stepper(optimizer: torch.optim.Optimizer, loss: Callable) -> Callable[[Biographies], None]:
    def step(batch: Biographies) -> None:
        loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def rows(batch: Biographies, pad: int = 0) -> torch.Tensor:
    tokens = torch.from_numpy(batch.tokens).split(batch.lengths.tolist())
    return pad_sequence(tokens, batch_first=True, padding_value=pad)


def matrix_throughput() -> float:
    """FLOP/s of a large bf16 matrix product."""
    a = torch.randn(2048, 2048, dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    start = perf_counter()
    for _ in range(20):
        a @ a
    return 20 * 2 * 2048**3 / (perf_counter() - start)


if __name__ == "__main__":
    main()
