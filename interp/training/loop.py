"""Trains a model on biographies and leaves a run folder: configuration, population, tokenizer,
metrics, checkpoints.

Batches and learning rate are functions of the step, so a run that was killed and resumed sees what
it would have seen. At a checkpoint the step folder is written first, the resume state last: after a
kill, training goes on from the newest state.
"""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from os import environ
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from interp.config import TrainConfig
from interp.data.batches import training_batch
from interp.data.biographies import Biographies, Texts, check_lengths, lay_out
from interp.data.template_sets import from_record
from interp.data.tokenizer import read_tokenizer
from interp.fields import argument
from interp.files import check_writable, only_process
from interp.model.checkpoint_folder import step_folders, step_name
from interp.model.checkpoint_io import read_checkpoint, write_checkpoint
from interp.model.decoder import HookedDecoder, device_of, has_bf16
from interp.model.packed_attention import Ragged
from interp.training.determinism import deterministic_algorithms
from interp.training.finetune import begin_from, people_and_tokenizer
from interp.training.memory_estimate import check_memory
from interp.training.metrics_table import Metrics
from interp.training.mitigation import NOTHING, Mitigation
from interp.training.optimizer import Trainee, learning_rate, make_optimizer, make_trainee
from interp.training.packing import Inputs, to_inputs
from interp.training.prefetch import prefetched
from interp.training.reference_attention import patched_hidden
from interp.training.resume import mend_checkpoints, read_state, write_state
from interp.training.run_folder import (
    begin,
    check_csvs,
    check_recorded,
    is_begun,
    read_config,
    read_population,
    read_record,
)

OnStep = Callable[[int, Tensor], None]


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    resume: bool = False,
    command: str = "",
    on_step: OnStep | None = None,
) -> Path:
    """Trains a run and returns its folder.

    Args:
        resume: go on from the newest checkpoint in ``out``; the weights end up as if there had been
            no stop, bit by bit on the same kind of CPU or GPU and the same version of torch, to
            rounding on another.
        command: recorded in run.json.
        on_step: called after each step with the number of steps taken and the batch's loss, nats a
            token.

    Raises:
        ValueError: ``out`` holds a run already, or files that a new one would overwrite, or with
            ``resume`` a damaged run or one of another configuration; or another process trains
            there; or the machine has too little memory.
        RuntimeError: on a GPU, cuBLAS was used before interp was imported, and without
            CUBLAS_WORKSPACE_CONFIG; so it can't be made deterministic any more.
    """
    argument("config", config, TrainConfig), argument("resume", resume, bool)
    out = Path(argument("out", out, str, is_path=True))
    if on_step is not None and not callable(on_step):
        raise ValueError(f"on_step is {on_step!r}; give a function of the step and the loss")
    check_memory(config)
    check_writable(out)
    with only_process(out, "training in"), deterministic_algorithms(device_of(config.device)):
        config = _settled(config, out, resume)
        if config.people_csv and resume and (out / "run.json").is_file():
            own = read_record(out).get("own_people")
            if own is not None:  # else the configurations differ, which is said below
                check_csvs(config, out, own)
        begun = is_begun(config, out, resume)
        if begun:
            people, tokenizer = read_population(config, out), read_tokenizer(out)
            check_recorded(out / "tokenizer.json")
            own = read_record(out).get("own_people")
        else:
            people, tokenizer, own = people_and_tokenizer(config)
        reference = read_reference(config, tokenizer)
        templates = None if own is None else from_record(own["templates_used"])
        texts = lay_out(people, tokenizer, seed=config.seed, templates=templates)
        trainee = make_trainee(config, tokenizer.get_vocab_size())
        check_lengths(texts, config.attributes, trainee.model.cfg.n_ctx)
        ways = begin_from(config, trainee, texts)
        if not begun:
            begin(config, out, people, tokenizer, command, own)
        _run(config, out, texts, trainee, reference, ways, on_step or (lambda step, loss: None))
        if config.keep == "last":
            shutil.rmtree(out / "resume", ignore_errors=True)
    return out


def make_step(
    config: TrainConfig,
    trainee: Trainee,
    reference: HookedDecoder | None = None,
    ways: Mitigation = NOTHING,
) -> Callable[[Biographies | Inputs], Tensor]:
    """A function that takes one optimizer step on a batch and returns its loss, nats per token,
    which stays on the device; with ``reference``, the model uses that model's attention patterns.
    """
    model, optimizer = trainee.model, trainee.optimizer
    device = model.embed.weight.device
    hidden = model.hidden if reference is None else partial(patched_hidden, model, reference)
    teacher = ways.base if ways.distil else None

    def loss(tokens: Tensor, ragged: Ragged, target: Tensor, has_next: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = model.unembed(hidden(tokens, ragged))
        of_token = F.cross_entropy(logits.float(), target, reduction="none")
        if teacher is not None:
            with torch.no_grad():
                theirs = teacher.unembed(teacher.hidden(tokens, ragged))
            of_token = of_token + ways.of_logits(logits.float(), theirs)
        value = (of_token * has_next).sum() / has_next.sum()
        return value if ways.penalty is None else value + ways.penalty(model)

    value_of = _compiled(loss) if config.compile and _has_compiler() else loss

    def step(batch: Biographies | Inputs) -> Tensor:
        inputs = batch if isinstance(batch, Inputs) else to_inputs(batch, model.cfg, device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, trainee.step) * ways.rate(trainee.step)
        value = value_of(*inputs)
        value.backward()
        ways.before_optimizer(model)
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(
                [weight for _, weight in trainee.named_parameters()], config.clip_norm
            )
        optimizer.step()
        ways.after_optimizer(model)
        optimizer.zero_grad()
        trainee.step += 1
        trainee.tokens_seen += len(inputs.tokens)
        return value.detach()

    return step


def _compiled(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``loss``, compiled once for batches of all lengths. Only sizes that change are dynamic: with
    all of them dynamic, a step takes a quarter longer.
    """
    compiled = torch.compile(loss)

    def call(tokens: Tensor, ragged: Ragged, target: Tensor, has_next: Tensor) -> Tensor:
        per_token = tokens, target, has_next, ragged.to_tokens, ragged.heads_to_tokens
        for x in (*per_token, ragged.future, *ragged.turn):
            torch._dynamo.mark_dynamic(x, 0)
        for x in (ragged.real, ragged.future, ragged.heads_to_rows):
            torch._dynamo.mark_dynamic(x, 1)
        torch._dynamo.mark_dynamic(ragged.to_rows, 2)
        return compiled(tokens, ragged, target, has_next)

    return call


def _run(
    config: TrainConfig,
    out: Path,
    texts: Texts,
    trainee: Trainee,
    reference: HookedDecoder | None,
    ways: Mitigation,
    on_step: OnStep,
) -> None:
    metrics, steps = Metrics(config, out, texts, reference), config.checkpoint_steps
    if (out / "resume" / "state.safetensors").exists():
        read_state(trainee, out / "resume", steps=steps)
        metrics.go_on_from([step for step in steps if step <= trainee.step])
        mend_checkpoints(config, out, trainee)
    elif any(step > 0 for step in step_folders(out)):
        raise ValueError(
            f"{out} has checkpoints but no resume/state.safetensors to go on from, as a copied or "
            "downloaded run; train again into another --out"
        )
    else:
        metrics.go_on_from([])
        _checkpoint(config, out, trainee, metrics)
    begun = reference if trainee.step > config.start_step else None
    step, wanted = make_step(config, trainee, begun, ways), set(steps)
    cfg, device = trainee.model.cfg, trainee.model.embed.weight.device

    def inputs_of(at: int) -> Inputs:
        return to_inputs(training_batch(texts, config, at), cfg, device)

    left = range(trainee.step, config.n_steps)
    with prefetched(inputs_of, left, ahead=device.type == "cuda") as batches:
        for batch in batches:
            if reference is not None and trainee.step == config.start_step:
                trainee.optimizer = make_optimizer(config, trainee.model)
                step = make_step(config, trainee, reference, ways)
            loss = step(batch)
            metrics.losses.append(loss)
            on_step(trainee.step, loss)
            if trainee.step in wanted:
                _checkpoint(config, out, trainee, metrics)
                if config.keep == "last":
                    _forget_before(out, trainee.step)


def _checkpoint(config: TrainConfig, out: Path, trainee: Trainee, metrics: Metrics) -> None:
    dtype = getattr(torch, config.checkpoint_dtype)
    finite = [weight.isfinite().all() for weight in trainee.model.parameters()]
    if not torch.stack(finite).all():
        raise ValueError(
            f"the weights are not finite at step {trainee.step}; use a smaller learning_rate or "
            "clip_norm 1"
        )
    write_checkpoint(trainee.model, out / step_name(trainee.step), dtype=dtype)
    metrics.add(_as_saved(trainee.model, dtype), trainee, learning_rate(config, trainee.step))
    write_state(trainee, out / "resume")


def _forget_before(out: Path, step: int) -> None:
    for older, folder in step_folders(out).items():
        if older < step:
            shutil.rmtree(folder)


def _as_saved(model: HookedDecoder, dtype: torch.dtype) -> HookedDecoder:
    saved = HookedDecoder(model.cfg).to(model.embed.weight.device).eval()
    saved.load_state_dict(
        {name: weight.to(dtype).float() for name, weight in model.state_dict().items()}
    )
    return saved


def read_reference(config: TrainConfig, tokenizer: Tokenizer) -> HookedDecoder | None:
    """The model whose attention patterns a run uses; None if the run uses its own.

    Raises:
        FileNotFoundError, ValueError: no such run or checkpoint, or one of other tokens or another
            shape.
    """
    if not config.reference:
        return None
    run = Path(config.reference)
    read_config(run)
    folders = step_folders(run)
    if config.reference_step not in folders:
        raise ValueError(
            f"no checkpoint at reference_step {config.reference_step}; there are "
            f"{', '.join(map(str, folders))}"
        )
    model = read_checkpoint(folders[config.reference_step], device=device_of(config.device))
    for name in ("n_layers", "n_heads"):
        if getattr(model.cfg, name) != getattr(config, name):
            raise ValueError(
                f"reference {run} has {name} {getattr(model.cfg, name)}, this run "
                f"{getattr(config, name)}; its patterns don't fit, train one of this shape"
            )
    vocabulary = tokenizer.get_vocab()
    if read_tokenizer(run).get_vocab() != vocabulary or model.cfg.d_vocab != len(vocabulary):
        raise ValueError(
            f"reference {run} has other tokens than this run; train it with the same seed and pools"
        )
    return model


def _settled(config: TrainConfig, out: Path, resume: bool) -> TrainConfig:
    """The configuration with ``auto`` precision resolved: for this machine or, when resuming, as
    the run began.
    """
    if config.precision != "auto":
        return config
    if resume and (out / "run.json").is_file():
        return replace(config, precision=read_config(out).precision)
    return replace(config, precision="bf16" if has_bf16(device_of(config.device)) else "fp32")


def _has_compiler() -> bool:
    if shutil.which(environ.get("CXX", "g++")):
        return True
    warnings.warn(
        "no C++ compiler found, so training is not compiled and takes about half as long again",
        stacklevel=2,
    )
    return False
