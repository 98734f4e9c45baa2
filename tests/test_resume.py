import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from interp.data.batches import training_batch
from interp.model.checkpoint_io import checkpoint_sha256, write_checkpoint
from interp.training.loop import make_step, train
from interp.training.optimizer import make_trainee
from interp.training.resume import read_state, write_state


def trained(suite, config, n_steps):
    trainee = make_trainee(config, suite.tokenizer.get_vocab_size())
    step = make_step(config, trainee)
    for i in range(n_steps):
        step(training_batch(suite.texts, config, i))
    return trainee


def test_state_holds_weights_moments_and_place(suite, config, tmp_path):
    trainee = trained(suite, config, 3)
    write_state(trainee, tmp_path)
    again = make_trainee(config, suite.tokenizer.get_vocab_size())
    read_state(again, tmp_path, steps=[0, 3])
    assert (again.step, again.tokens_seen) == (3, trainee.tokens_seen)
    for (name, ours), theirs in zip(again.model.named_parameters(), trainee.model.parameters()):
        assert torch.equal(ours, theirs), name
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            old, new = trainee.optimizer.state[theirs][moment], again.optimizer.state[ours][moment]
            assert torch.equal(old, new), (name, moment)


def test_state_of_an_untrained_model_has_zero_moments(suite, config, tmp_path):
    write_state(trained(suite, config, 0), tmp_path)
    state = load_file(tmp_path / "state.safetensors")
    assert state["exp_avg.embed.weight"].abs().sum() == 0


def test_a_damaged_state_says_what_to_do(suite, config, tmp_path):
    write_state(trained(suite, config, 0), tmp_path)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"is damaged .*; copy it again, or train again"):
        read_state(trained(suite, config, 0), tmp_path, steps=[0])


def changed(tensors, position):
    """Asks for one entry of the state to be replaced, or taken out where it is None."""

    def damage(path):
        with safe_open(path, "pt") as file:
            held, place = load_file(path), file.metadata()
        del place["interp_checksum"]  # of the tensors as they were
        held |= tensors
        place |= position
        save_file({k: v for k, v in held.items() if v is not None}, path,
                  {k: v for k, v in place.items() if v is not None})  # fmt: skip

    return damage


BIAS = "ln_final.bias"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_bytes(b"\xff" * 300), "is damaged"),
        (changed({BIAS: torch.zeros(5)}, {}), r"ln_final.bias has shape \(5,\), not \(32,\)"),
        (changed({BIAS: torch.full((32,), torch.nan)}, {}), "ln_final.bias holds NaN"),
        (
            changed({f"exp_avg.{BIAS}": torch.full((32,), torch.inf)}, {}),
            "exp_avg.ln_final.bias holds",
        ),
        (changed({BIAS: torch.zeros(32).half()}, {}), "is of type torch.float16, not float32"),
        (changed({BIAS: None}, {}), "it lacks ln_final.bias"),
        (changed({"bogus": torch.zeros(1)}, {}), "bogus is no weight of this run"),
        (changed({}, {"step": "7"}), "it is of step 7, at which this run has no checkpoint"),
        (changed({}, {"step": "-1"}), "step is '-1', not a whole number"),
        (changed({}, {"step": "many"}), "step is 'many', not a whole number"),
        (changed({}, {"step": None}), "step is '', not a whole number"),
        (changed({}, {"tokens_seen": "1e3"}), "tokens_seen is '1e3', not a whole number"),
        (changed({}, {"optimizer_step": "1"}), "optimizer_step is 1, later than step"),
    ],
)
def test_a_state_that_is_not_this_runs_is_refused_in_a_line_that_names_it(
    suite, config, tmp_path, damage, message
):
    trainee = make_trainee(config, suite.tokenizer.get_vocab_size())
    write_state(trainee, tmp_path)
    damage(tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match=message) as refused:
        read_state(trainee, tmp_path, steps=[0, 10])
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / 'state.safetensors'} is damaged") and "\n" not in said


class Opened:
    """What a pickle can do: leave a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_in_place_of_the_state_is_never_opened(suite, config, tmp_path, protocol):
    content = pickle.dumps(Opened(tmp_path / "opened"), protocol)
    (tmp_path / "state.safetensors").write_bytes(content)
    trainee = make_trainee(config, suite.tokenizer.get_vocab_size())
    with pytest.raises(ValueError, match=r"state.safetensors is damaged"):
        read_state(trainee, tmp_path, steps=[0])
    assert not (tmp_path / "opened").exists()
    pickle.loads(content)
    assert (tmp_path / "opened").exists()


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


DAMAGES = {
    "missing": shutil.rmtree,
    "without weights": lambda step: (step / "model.safetensors").unlink(),
    "without config": lambda step: (step / "config.json").unlink(),
    "truncated": lambda step: os.truncate(step / "model.safetensors", 1000),
    "not JSON": lambda step: (step / "config.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_newest_checkpoint_that_is_damaged_is_written_again_from_the_state(
    run, copy, config, damage
):
    damage(copy / "step-000030")
    train(config, copy, resume=True)
    for step in config.checkpoint_steps:
        ours, whole = (checkpoint_sha256(path / f"step-{step:06d}") for path in (copy, run))
        assert ours == whole


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_an_older_checkpoint_that_is_damaged_is_named_with_what_to_do(copy, config, damage):
    damage(copy / "step-000010")
    with pytest.raises(ValueError, match=r"step-000010.*copy step-000010 from elsewhere, or train"):
        train(config, copy, resume=True)


@pytest.mark.parametrize("step", [10, 30])
def test_a_checkpoint_of_another_shape_is_not_taken_for_this_runs(copy, config, step):
    folder = copy / f"step-{step:06d}"
    other = make_trainee(replace(config, d_mlp=16), 99).model
    write_checkpoint(other, folder, dtype=torch.float32)
    with pytest.raises(ValueError, match=f"{folder} has d_mlp 16, this run 64; it is not a"):
        train(config, copy, resume=True)


def test_a_pickle_in_place_of_the_newest_weights_is_replaced_unopened(run, copy, config, tmp_path):
    weights = copy / "step-000030" / "model.safetensors"
    weights.write_bytes(pickle.dumps(Opened(tmp_path / "opened")))
    train(config, copy, resume=True)
    assert not (tmp_path / "opened").exists()
    assert weights.read_bytes() == (run / "step-000030" / "model.safetensors").read_bytes()


def keep(table, rows):
    return table[rows].reset_index(drop=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: keep(t, t.step != 10), "lacks rows of step 10, or holds others"),
        (lambda t: keep(t, t.split == "train"), "lacks rows of step 0, or holds others"),
        (lambda t: pd.concat([t, t[:1]]), "step 0, train, birth_date is there twice"),
        (lambda t: t.drop(columns="loss"), "it has no column 'loss'"),
        (lambda t: t.assign(bogus=1), "it has the unknown column 'bogus'"),
        (lambda t: t.assign(step=t.step.astype(str)), "column 'step' holds str, not numbers"),
        (lambda t: t.assign(loss="x"), "column 'loss' holds str, not numbers"),
    ],
)
def test_metrics_that_are_not_this_runs_are_refused_in_a_line(copy, config, damage, message):
    path = copy / "metrics.parquet"
    damage(pd.read_parquet(path)).to_parquet(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"{path}.*{message}.*; copy it again, or train again"):
        train(config, copy, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [None, b"no parquet"])
def test_metrics_that_are_missing_or_damaged_are_not_begun_anew(copy, config, content):
    path = copy / "metrics.parquet"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} (lacks rows of step 0|is damaged)"):
        train(config, copy, resume=True)


def test_people_of_another_run_are_not_gone_on_with(copy, config):
    path = copy / "population.parquet"
    pd.read_parquet(path)[:50].to_parquet(path)
    with pytest.raises(ValueError, match="holds 40 training and 10 held-out people, and"):
        train(config, copy, resume=True)


def test_a_flipped_bit_of_the_state_is_noticed(suite, config, tmp_path):
    trainee = trained(suite, config, 2)
    write_state(trainee, tmp_path)
    path, rng = tmp_path / "state.safetensors", np.random.default_rng(0)
    content = path.read_bytes()
    for place in rng.integers(len(content), size=40):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="is damaged"):
            read_state(trained(suite, config, 0), tmp_path, steps=[0, 2])
    path.write_bytes(content)
    read_state(trained(suite, config, 0), tmp_path, steps=[0, 2])
