"""A training step against TransformerLens's own and a compiled Hugging Face GPT-NeoX.

All take the same batches of real biographies, each in a process of its own and as its user would
run it: ``interp`` with the settings that ``interp-train`` makes, TransformerLens with a native
model in fp32, as its ``tools.training.train`` does by default, Hugging Face compiled and
multiplying in bf16 where the processor has it, pads masked out of the loss. Blocks of steps
alternate, A B C A B C; the first two steps of a block, whose caches are cold, do not count. The
ratio is of medians.

Then a step by a reference's attention patterns beside a plain one; steps of the paper's shape; and
what the paper's whole run takes, in FLOPs.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median
from time import perf_counter

import torch
from torch.nn.utils.rnn import pad_sequence
from transformer_lens import TransformerBridge
from transformer_lens.config import TransformerBridgeConfig
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from interp.config import PRESETS, TrainConfig
from interp.data.batches import training_batch
from interp.data.biographies import Biographies, Texts, lay_out, tokenizer_for
from interp.data.population import draw_population
from interp.model.decoder import has_bf16
from interp.process import tune_process
from interp.training.loop import make_step
from interp.training.optimizer import make_trainee

BLOCKS, STEPS = 5, 12
PAPER_BATCH = 4
"""Biographies a step here; a whole batch of the paper's takes a minute a step on two cores."""
H100_BF16 = 989e12
H100_FP32 = 67e12
"""FLOP/s that the maker states (NVIDIA H100 SXM data sheet): dense bf16 products, fp32."""

PRECISION = "bf16" if has_bf16("cpu") else "fp32"
WAYS = (
    f"interp (compiled, {PRECISION})",
    "TransformerLens native (fp32)",
    f"Hugging Face (compiled, {PRECISION})",
)


def main() -> None:
    context, ends = get_context("spawn"), {}
    for way in WAYS:
        ours, theirs = context.Pipe()
        if way == WAYS[0]:
            os.environ["GOMP_SPINCOUNT"] = "5000"  # as interp sets it, before torch is there
        context.Process(target=serve, args=(way, theirs), daemon=True).start()
        os.environ.pop("GOMP_SPINCOUNT", None)
        ends[way] = ours
    times: dict[str, list[tuple[float, float, int]]] = {way: [] for way in WAYS}
    for end in ends.values():  # compile
        end.send(0)
        end.recv()
    for block in range(BLOCKS):
        for way, end in ends.items():
            end.send(block * STEPS)
            times[way] += end.recv()[2:]
    ours = median(seconds for seconds, _, _ in times[WAYS[0]])
    for way in WAYS:
        value = median(seconds for seconds, _, _ in times[way])
        print(f"{way:32} {1000 * value:8.2f} ms   {value / ours:6.3f} × interp")
    batch = median(seconds for _, seconds, _ in times[WAYS[0]])
    print(f"{'building the batch':32} {1000 * batch:8.2f} ms   {batch / ours:6.3f} × interp")
    for end in ends.values():
        end.send(None)
    peak = matrix_throughput()
    say_rate("demo", PRESETS["demo"], times[WAYS[0]], peak)
    say_attention_patching(PRESETS["demo"])
    paper = replace(PRESETS["paper"], batch_size=PAPER_BATCH, compile=False)
    say_rate("paper's shape", paper, steps_of(paper), peak)
    say_paper_run(PRESETS["paper"])


def say_rate(name: str, config: TrainConfig, times: list, peak: float) -> None:
    seconds = median(seconds for seconds, _, _ in times)
    n_tokens = median(n for _, _, n in times)
    rate = 6 * n_weights(config) * n_tokens / seconds
    print(
        f"{name}: {n_tokens / seconds:,.0f} tokens/s; {rate / 1e9:.1f} GFLOP/s (6 × weights × "
        f"tokens), {rate / peak:.0%} of the {peak / 1e9:.0f} that a product of 2048 × 2048 in "
        f"{PRECISION} reaches"
    )


def say_attention_patching(config: TrainConfig) -> None:
    """Plain steps and steps by a reference's patterns, in turn."""
    texts, d_vocab = texts_of(config)
    config = replace(config, precision=PRECISION)
    plain, patched = (make_trainee(config, d_vocab) for _ in range(2))
    reference = make_trainee(replace(config, seed=1), d_vocab).model
    ways = {
        "plain": make_step(config, plain),
        "by a reference's attention": make_step(config, patched, reference),
    }
    for step in ways.values():  # compile
        step(training_batch(texts, config, 0))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for block in range(BLOCKS):
        for name, step in ways.items():
            for i in range(block * STEPS, block * STEPS + STEPS):
                batch = training_batch(texts, config, i)
                start = perf_counter()
                step(batch)
                if i - block * STEPS >= 2:
                    times[name].append(perf_counter() - start)
    plain_step = median(times["plain"])
    for name, taken in times.items():
        ratio = median(taken) / plain_step
        print(f"{name:32} {1000 * median(taken):8.2f} ms   {ratio:6.3f} × plain")


def steps_of(config: TrainConfig, n: int = 4) -> list[tuple[float, float, int]]:
    """Steps of a model by itself, the first two left out; as ``serve`` answers."""
    texts, d_vocab = texts_of(config)
    config = replace(config, precision=PRECISION)
    step, times = make_step(config, make_trainee(config, d_vocab)), []
    for i in range(n + 2):
        batch = training_batch(texts, config, i)
        start = perf_counter()
        step(batch)
        times.append((perf_counter() - start, 0.0, len(batch.tokens)))
    return times[2:]


def say_paper_run(config: TrainConfig) -> None:
    """FLOPs of a whole run: a token takes 2 × weights + 4 × layers × width × length forwards, and
    three times that with the way back.
    """
    batch = training_batch(texts_of(config)[0], config, 0)
    length, weights = len(batch.tokens) / config.batch_size, n_weights(config)
    forward = 2 * weights + 4 * config.n_layers * config.d_model * length
    trained = length * config.batch_size * config.n_steps
    people = min(config.n_evaluated, config.n_people) + min(config.n_evaluated, config.n_held_out)
    evaluated = length * people * len(config.checkpoint_steps)
    training, evaluation = 3 * forward * trained, forward * evaluated
    fastest = evaluation / H100_FP32
    share = training / (900 - 2 * fastest) / H100_BF16
    print(
        f"paper's run: {weights / 1e6:.1f} M weights; {trained / 1e6:.0f} M tokens of training "
        f"({length:.0f} a biography), {training:.2e} FLOP; {evaluated / 1e6:.0f} M of evaluation "
        f"in fp32, {evaluation:.2e} FLOP, {fastest:.0f} s at an H100's peak. If those take twice "
        f"as long, 15 minutes in all need {share:.1%} of the bf16 peak in training"
    )


def serve(way: str, end: Connection) -> None:
    """Takes the number of a block's first step; answers, for each of its steps, with the seconds
    it took, the seconds of building the batch, and the batch's tokens.
    """
    config = replace(PRESETS["demo"], precision=PRECISION)
    texts, d_vocab = texts_of(config)
    if way == WAYS[0]:
        tune_process()
        step = make_step(config, make_trainee(config, d_vocab))
    else:
        make = transformer_lens_step if way == WAYS[1] else hugging_face_step
        step = make(config, d_vocab)
    while (first := end.recv()) is not None:
        times = []
        for i in range(first, first + STEPS):
            start = perf_counter()
            batch = training_batch(texts, config, i)
            built = perf_counter()
            step(batch)
            times.append((perf_counter() - built, built - start, len(batch.tokens)))
        end.send(times)


@lru_cache
def texts_of(config: TrainConfig) -> tuple[Texts, int]:
    """And how many tokens there are."""
    people = draw_population(config.n_people, config.n_held_out, config, seed=0)
    tokenizer = tokenizer_for(people)
    return lay_out(people, tokenizer, seed=0), tokenizer.get_vocab_size()


def n_weights(config: TrainConfig) -> int:
    """Of the matrices that a token is multiplied by."""
    model = make_trainee(config, texts_of(config)[1]).model
    return sum(w.numel() for w in model.parameters()) - model.embed.weight.numel()


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
        with torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bf16"):
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
    """The most FLOP/s of 20 large matrix products in what training multiplies in here."""
    dtype = torch.bfloat16 if PRECISION == "bf16" else torch.float32
    a = torch.randn(2048, 2048, dtype=dtype)
    times = []
    for _ in range(20):
        start = perf_counter()
        a @ a
        times.append(perf_counter() - start)
    return 2 * 2048**3 / min(times)


if __name__ == "__main__":
    main()
