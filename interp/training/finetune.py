"""Fine-tuning: a training run that starts from a checkpoint of another, with its people, and trains
on some of its held-out people.
"""

from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import torch
from tokenizers import Tokenizer

from interp.config import PoolSizes, TrainConfig, train_config
from interp.data.biographies import Texts, tokenizer_for
from interp.data.own_people import own_people
from interp.data.population import draw_population
from interp.data.tokenizer import read_tokenizer
from interp.model.checkpoint_folder import step_folders
from interp.model.checkpoint_io import read_checkpoint
from interp.model.decoder import HookedDecoder
from interp.training.mitigation import Mitigation, mitigation
from interp.training.optimizer import Trainee
from interp.training.run_folder import check_csvs, check_recorded, read_population, read_record

RATE = 3 / 40
"""Of the base run's peak learning rate, as in arXiv 2503.21676: 3e-5 of 4e-4."""
N_EVALUATED = 256
WORTH_COMPILING = 300
"""Steps from which on a compiled run takes less time than another, compilation included."""
_AS_IN_BASE = ("n_people", "n_held_out", "seed", "n_layers", "n_heads", "d_model", "parallel")


def finetune_config(
    base: TrainConfig, run: str | Path, step: int, *, new_people: int, **changes: object
) -> TrainConfig:
    """Fine-tuning of a run's checkpoint on new people, without replay: a constant learning rate,
    ``RATE`` of the base's, and evaluations of at most ``N_EVALUATED`` people of a kind, every few
    steps at first. It is compiled only if the base was and it is long enough for that to pay.

    Args:
        new_people: 0 trains on old people only, and on unknown ones where there are any.
        changes: fields of ``TrainConfig``, such as replay, n_steps or mitigation.
    """
    rate = RATE * base.learning_rate
    plain = {
        "from_run": str(run),
        "from_step": step,
        "new_people": new_people,
        "replay": 0.0 if new_people else 1.0,
        "unknown_people": 0,
        "unknown_share": 0.0,
        "learning_rate": rate,
        "final_learning_rate": rate,
        "n_steps": 500,
        "dense_every": 5,
        "dense_until": 50,
        "checkpoint_every": 25,
        "checkpoint_dtype": "float32",
        "warmup_people": 0,
        "warmup_steps": 0,
        "n_evaluated": min(base.n_evaluated, N_EVALUATED),
    } | changes
    plain.setdefault("compile", base.compile and plain["n_steps"] >= WORTH_COMPILING)
    changed = replace(base, **plain)
    return replace(changed, d_mlp=base.d_mlp + n_slots(changed))


def people_and_tokenizer(config: TrainConfig) -> tuple[pd.DataFrame, Tokenizer, dict | None]:
    """Drawn anew, from a user's CSVs or, when fine-tuning, those of the run to start from; and what
    run.json says of the CSVs.

    Raises:
        FileNotFoundError, ValueError: there is no such run or checkpoint, or it is of other people
            or another shape; a CSV holds something else than the configuration says.
    """
    if not config.from_run and config.people_csv:
        people, templates, own = own_people(config)
        return people, tokenizer_for(people, templates), own
    if not config.from_run:
        people = draw_population(config.n_people, config.n_held_out, config, seed=config.seed)
        return people, tokenizer_for(people), None
    run = Path(config.from_run)
    record = read_record(run)
    base, own = train_config(record["config"]), record.get("own_people")
    _folder_to_start_from(config)
    if bool(own) != bool(config.people_csv):
        if own:
            raise ValueError(
                f"from_run {run} was trained on people of its own; give the same people_csv and "
                "templates"
            )
        raise ValueError(f"from_run {run} was trained on synthetic people; leave out people_csv")
    if own:
        check_csvs(config, run, own)
    same = [field.name for field in fields(PoolSizes)] + list(_AS_IN_BASE)
    for name in same:
        if getattr(config, name) != getattr(base, name):
            raise ValueError(
                f"{name} is {getattr(config, name)}, and in from_run {run} it is "
                f"{getattr(base, name)}; fine-tuning starts from the same people and shape"
            )
    slots = n_slots(config)
    if config.d_mlp != base.d_mlp + slots:
        raise ValueError(
            f"d_mlp is {config.d_mlp}; {run} has {base.d_mlp} and mitigation adds {slots}, so "
            f"give d_mlp {base.d_mlp + slots}"
        )
    people, tokenizer = read_population(base, run), read_tokenizer(run)
    check_recorded(run / "tokenizer.json")
    if other := {*config.attributes} - {*people.columns}:
        raise ValueError(f"attributes has {min(other)!r}, of which {run} was not trained")
    return people.drop(columns="sampling_weight"), tokenizer, own


def _folder_to_start_from(config: TrainConfig) -> Path:
    """The checkpoint that fine-tuning starts from.

    Raises:
        ValueError: there is none.
    """
    run = Path(config.from_run)
    folders = step_folders(run) if run.is_dir() else {}
    if config.from_step not in folders:
        raise ValueError(
            f"no checkpoint at from_step {config.from_step} in {run}; there are "
            f"{', '.join(map(str, folders)) or 'none'}"
        )
    return folders[config.from_step]


def n_slots(config: TrainConfig) -> int:
    """Neurons that ``mitigation`` adds to each MLP."""
    way, _, strength = config.mitigation.partition(":")
    return int(strength) if way == "slots" and strength.isdecimal() else 0


@torch.no_grad()
def start_from(model: HookedDecoder, base: HookedDecoder) -> None:
    """Copies the weights of ``base``; neurons that ``model`` has besides write nothing yet."""
    ours, theirs = model.state_dict(), base.state_dict()
    for name, weight in ours.items():
        if weight.shape == theirs[name].shape:
            weight.copy_(theirs[name])
        elif name.endswith("down.weight"):
            weight.zero_()
            weight[:, : base.cfg.d_mlp] = theirs[name]
        else:
            weight[: base.cfg.d_mlp] = theirs[name]


def begin_from(config: TrainConfig, trainee: Trainee, texts: Texts) -> Mitigation:
    """Sets the weights that fine-tuning starts from, and what else is trained."""
    if config.from_run:
        start_from(trainee.model, read_checkpoint(_folder_to_start_from(config)))
    ways = mitigation(config, trainee.model, texts)
    for name, (b, a) in ways.factors.items():
        trainee.beside |= {f"lora_b.{name}": b, f"lora_a.{name}": a}
    if trainee.beside:
        factors = {"params": list(trainee.beside.values()), "weight_decay": 0.0}
        trainee.optimizer.add_param_group(factors)
    return ways
