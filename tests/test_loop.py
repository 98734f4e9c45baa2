import json
import shutil
import signal
import time
from dataclasses import replace
from math import cos, pi

import pandas as pd
import pytest
import torch
from processes import finish, start

from interp.data.batches import evaluation_set, training_batch
from interp.model.checkpoint_io import checkpoint_sha256
from interp.training import loop, memory_estimate, run_folder
from interp.training.evaluation import evaluate
from interp.training.loop import make_step, train
from interp.training.memory_estimate import check_memory, least_bytes
from interp.training.optimizer import learning_rate, make_trainee
from interp.training.run_folder import read_config, read_record


class Stop(Exception):
    pass


def stop_at(step):
    def on_step(now, loss):
        if now == step:
            raise Stop

    return on_step


def digests(folder, config):
    steps = config.checkpoint_steps
    return {step: checkpoint_sha256(folder / f"step-{step:06d}") for step in steps}


def test_the_population_says_how_often_each_person_is_drawn(run, config):
    people = pd.read_parquet(run / "population.parquet").set_index("split")
    assert people.loc["train", "sampling_weight"].tolist() == [1 / 40] * 40
    assert people.loc["held-out", "sampling_weight"].tolist() == [0] * 20


def test_a_warm_up_that_lasts_is_the_distribution_on_record(config, tmp_path):
    warm = replace(config, n_steps=2, warmup_people=10, warmup_steps=2)
    people = pd.read_parquet(train(warm, tmp_path / "warm") / "population.parquet")
    assert people.sampling_weight.tolist() == [0.1] * 10 + [0] * 50


def test_a_run_folder_holds_what_the_design_says(run, config):
    names = {path.name for path in run.iterdir() if path.is_dir()}
    assert names == {"step-000000", "step-000010", "step-000020", "step-000030", "resume"}
    record = json.loads((run / "run.json").read_text())
    assert record["command"] == "interp-train --test"
    assert {"torch", "transformer-lens", "interp"} <= set(record["versions"])
    assert {"git_commit", "hardware", "no_knowledge_baseline"} <= set(record)
    assert replace(read_config(run), precision="auto") == config
    assert not list(run.glob(".*tmp"))


def test_metrics_cover_every_checkpoint_split_and_attribute(run, config):
    metrics = pd.read_parquet(run / "metrics.parquet")
    assert len(metrics) == len(config.checkpoint_steps) * 2 * 7
    assert sorted(metrics.step.unique()) == config.checkpoint_steps
    first, last = (metrics[metrics.step == s].set_index(["split", "attribute"]) for s in (0, 30))
    assert last.loc[("train", "average"), "loss"] < first.loc[("train", "average"), "loss"]
    assert metrics.tokens_seen.max() > 30 * config.batch_size * 50


def test_the_same_seed_trains_the_same_weights_and_another_does_not(run, config, tmp_path):
    short = replace(config, n_steps=10)
    train(short, tmp_path / "a")
    train(short, tmp_path / "b")
    train(replace(short, seed=1), tmp_path / "c")
    a, b, c = (digests(tmp_path / name, short) for name in "abc")
    assert a == b
    assert not set(a.values()) & set(c.values())


@pytest.mark.parametrize("stop", [7, 10, 25])
def test_a_stopped_and_resumed_run_ends_with_the_same_weights_and_metrics(
    run, config, tmp_path, stop
):
    with pytest.raises(Stop):
        train(config, tmp_path / "run", on_step=stop_at(stop))
    train(config, tmp_path / "run", resume=True)
    assert digests(tmp_path / "run", config) == digests(run, config)
    ours, whole = (pd.read_parquet(path / "metrics.parquet") for path in (tmp_path / "run", run))
    pd.testing.assert_frame_equal(ours, whole)


def test_a_run_killed_without_warning_is_resumed_to_the_same_weights(run, config, tmp_path):
    code = (
        "import sys, time; from conftest import SHORT; from interp.training.loop import train\n"
        "slow = lambda step, loss: time.sleep(0.1 * (step > 10))\n"
        "train(SHORT, sys.argv[1], on_step=slow)"
    )
    child = start(code, tmp_path / "run")
    while not (tmp_path / "run" / "step-000010").exists() and child.is_alive():
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL  # before its end
    assert not (tmp_path / "run" / "step-000030").exists()
    train(config, tmp_path / "run", resume=True)
    assert digests(tmp_path / "run", config) == digests(run, config)


@pytest.mark.parametrize("number", [1, 3])
def test_a_kill_between_checkpoint_and_state_is_made_good(
    run, config, tmp_path, monkeypatch, number
):
    writes, original = [], loop.write_state

    def fails_once(*arguments):
        writes.append(1)
        if len(writes) == number:
            raise Stop
        original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "write_state", fails_once)
        with pytest.raises(Stop):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    metrics = pd.read_parquet(tmp_path / "run" / "metrics.parquet")
    assert not metrics.duplicated(["step", "split", "attribute"]).any()
    assert digests(tmp_path / "run", config) == digests(run, config)


def test_a_copied_run_without_its_state_is_not_resumed_but_left_alone(run, config, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("resume"))
    with pytest.raises(ValueError, match=r"no resume/state.safetensors to go on from"):
        train(config, copy, resume=True)
    assert digests(copy, config) == digests(run, config)
    assert (copy / "metrics.parquet").read_bytes() == (run / "metrics.parquet").read_bytes()


COMPILE = """
import sys
from dataclasses import replace
from interp.data.batches import training_batch
from interp.config import TrainConfig
from interp.suite import load_suite
from interp.training.loop import make_step
from interp.training.optimizer import make_trainee

suite = load_suite(sys.argv[1])
for compiled in (False, True):
    config = replace(suite.config, precision="fp32", compile=compiled, n_layers=1)
    step = make_step(config, make_trainee(config, suite.tokenizer.get_vocab_size()))
    print(*(step(training_batch(suite.texts, config, i)).item() for i in range(3)))
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_compiled_steps_are_those_of_the_plain_ones(run):
    """In a process of its own, without the type checker, which can't be compiled."""
    code, said, _ = finish(COMPILE, run)
    plain, compiled = ([float(x) for x in line.split()] for line in said.splitlines())
    assert code == 0
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_a_folder_that_holds_a_run_is_not_overwritten(run, config):
    with pytest.raises(ValueError, match="holds a run already; add --resume"):
        train(config, run)


def test_resuming_with_another_configuration_names_the_difference(run, config):
    with pytest.raises(ValueError, match=r"was started with batch_size 32, not 16"):
        train(replace(config, batch_size=16), run, resume=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_metrics_are_those_of_the_weights_as_saved_in_the_precision_of_the_run(
    config, tmp_path, precision
):
    rounded = replace(config, n_steps=10, checkpoint_dtype="bfloat16", precision=precision)
    out = train(rounded, tmp_path / "run")
    suite = loop_suite(out)
    model, people = suite.load(10), evaluation_set(suite.texts, rounded, "train")
    stored = suite.metrics.query("step == 10 and split == 'train'").reset_index()
    table = evaluate(model, people, precision=precision)
    assert stored.loss.tolist() == pytest.approx(table.loss.tolist(), rel=1e-5)
    other = evaluate(model, people, precision="bf16" if precision == "fp32" else "fp32")
    assert stored.loss.tolist() != pytest.approx(other.loss.tolist(), rel=1e-5)


def loop_suite(out):
    from interp.suite import load_suite

    return load_suite(out)


def test_learning_rate_follows_a_cosine():
    config = loop.TrainConfig(n_steps=300, learning_rate=1.0, final_learning_rate=0.1)
    assert learning_rate(config, 0) == 1.0
    assert learning_rate(config, 100) == pytest.approx(0.1 + 0.9 * (1 + cos(pi / 3)) / 2)
    assert learning_rate(config, 300) == pytest.approx(0.1)


def test_one_step_is_adamw_on_the_mean_loss_of_next_tokens(suite, config):
    exact = replace(config, precision="fp32", clip_norm=0.5)
    trainee = make_trainee(exact, suite.tokenizer.get_vocab_size())
    naive = make_trainee(exact, suite.tokenizer.get_vocab_size())
    batch = training_batch(suite.texts, exact, 0)
    loss = make_step(exact, trainee)(batch)

    losses, start = [], 0
    for length in batch.lengths:
        row = torch.from_numpy(batch.tokens[start : start + length])
        log_p = naive.model(row[None])[0].log_softmax(-1)
        losses += [-log_p[i, row[i + 1]] for i in range(length - 1)]
        start += length
    torch.stack(losses).mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(naive.model.parameters(), 0.5)
    for name, weight in naive.model.named_parameters():
        decay = exact.learning_rate * (exact.weight_decay if weight.ndim == 2 else 0)
        moved = weight * (1 - decay) - exact.learning_rate * weight.grad / (
            weight.grad.abs() + 1e-8
        )
        ours = trainee.model.get_parameter(name)
        large = weight.grad.abs() > 1e-5  # Adam's first step is a sign; of rounding, elsewhere
        torch.testing.assert_close(ours[large], moved[large], atol=1e-5, rtol=1e-4, msg=name)
    assert norm > 0.5
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@pytest.mark.parametrize(("able", "used"), [(True, "bf16"), (False, "fp32")])
def test_automatic_precision_is_what_the_device_has_instructions_for(
    config, tmp_path, monkeypatch, able, used
):
    monkeypatch.setattr(loop, "has_bf16", lambda device: able)
    short = replace(config, n_steps=2, n_evaluated=4)
    train(short, tmp_path)
    assert read_config(tmp_path).precision == used
    monkeypatch.setattr(loop, "has_bf16", lambda device: not able)
    train(short, tmp_path, resume=True)  # elsewhere: as it was begun
    assert read_config(tmp_path).precision == used


def test_weights_that_are_not_finite_stop_the_run(config, tmp_path):
    with pytest.raises(ValueError, match=r"not finite at step 10; use a smaller learning_rate"):
        train(replace(config, learning_rate=1e30, n_steps=10), tmp_path / "run")


def test_without_a_compiler_training_says_so_and_goes_on(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler found"):
        train(replace(config, compile=True, n_steps=2), tmp_path / "run")


def test_a_device_that_is_not_there_is_refused():
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            loop.device_of("cuda")
    assert loop.device_of("cpu") == "cpu"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n_layers": 1000, "d_model": 4_000_000},
            r"n_layers 1000 and d_model 4000000 need about 1,02.,.* TB to train, this machine",
        ),
        ({"batch_size": 10**8}, r"batch_size 100000000 and d_model 32 need about \d+ GB to train"),
        ({"n_people": 10**11}, r"n_people 100000000000 and n_held_out 20 need about 22 TB"),
    ],
)
def test_sizes_far_beyond_memory_are_refused_before_anything_is_made(
    config, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(memory_estimate, "_physical_memory", lambda: 25 * 10**9)
    with pytest.raises(ValueError, match=message + ".* has 25 GB; choose smaller sizes"):
        train(replace(config, device="cpu", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_memory_estimate_is_less_than_what_a_state_and_a_batch_take(run, suite, config):
    weights, batch, people = least_bytes(config).values()
    matrices = 3 * (4 * 32 * 32 + 2 * 32 * 64)
    assert (weights, batch, people) == (16 * matrices, 2 * 32 * 37 * 96, 60 * (72 + 150))
    assert weights < (run / "resume" / "state.safetensors").stat().st_size * 4 / 3
    tokens = len(training_batch(suite.texts, config, 0).tokens)
    assert batch < tokens * 96 * 2
    check_memory(loop.TrainConfig(device="cpu", n_people=64, n_held_out=16))


def test_an_empty_out_is_not_the_current_folder(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="out is empty; name a file or folder"):
        train(config, "")
    assert not list(tmp_path.iterdir())


FILES = ("population.parquet", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.mark.parametrize("name", [*FILES, "metrics.parquet", "step-000000", "step-7", "resume"])
def test_a_new_run_does_not_overwrite_anybodys_files(config, tmp_path, name):
    path = tmp_path / name
    path.write_text("mine") if path.suffix else path.mkdir()
    with pytest.raises(ValueError, match=f"holds {name} but no run.json, and a new run would over"):
        train(config, tmp_path)
    left = {file.name for file in tmp_path.iterdir()} - {".lock"}
    assert left == {name} and (path.is_dir() or path.read_text() == "mine")


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_kill_while_a_run_begins_is_made_good_by_the_same_command(
    config, tmp_path, monkeypatch, number
):
    short, writes = replace(config, n_steps=2, n_evaluated=4), []

    def killed(original):
        def write(path, content):
            writes.append(path.name)
            if len(writes) == number:
                raise Stop
            original(path, content)

        return write

    with monkeypatch.context() as patched:
        for name in ("write_bytes", "write_json"):
            patched.setattr(run_folder, name, killed(getattr(run_folder, name)))
        with pytest.raises(Stop):
            train(short, tmp_path)
    assert writes[-1] == [*FILES[1:], FILES[0], "run.json"][number - 1]
    assert (tmp_path / "population.parquet").exists() == (number == 5)
    train(short, tmp_path)
    assert read_config(tmp_path).n_steps == 2
    assert (tmp_path / "step-000002").is_dir()


def without(name):
    return lambda record: record.pop(name)


def within(name, **changes):
    return lambda record: record[name].update(changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("config"), "it lacks 'config'"),
        (without("no_knowledge_baseline"), "it lacks 'no_knowledge_baseline'"),
        (lambda record: record.update(bogus=1), "it has the unknown key 'bogus'"),
        (lambda record: record.update(command=3), "command is 3; it must be text"),
        (lambda record: record.update(config=[1]), r"config is \[1\]; it must be an object"),
        (lambda record: record.update(config=None), "config is None; it must be an object"),
        (lambda record: record.update(versions="2"), "versions is '2'; it must be an object"),
        (lambda record: record.update(hardware=[]), r"hardware is \[\]; it must be an object"),
        (lambda record: record.update(no_knowledge_baseline=2.5), "no_knowledge_baseline is 2.5"),
        (within("no_knowledge_baseline", pet=1.0), "no_knowledge_baseline is of birth_date, .*pet"),
        (
            within("no_knowledge_baseline", major="x"),
            "no_knowledge_baseline of major is 'x', not a",
        ),
        (within("no_knowledge_baseline", major=True), "no_knowledge_baseline of major is True"),
        (within("config", n_steps="30"), "n_steps is '30'; it must be a whole number"),
        (within("config", bogus=1), "config has the unknown field 'bogus'"),
    ],
)
def test_a_run_json_that_is_not_one_is_refused_in_a_line(run, tmp_path, damage, message):
    record = read_record(run)
    damage(record)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message) as refused:
        read_record(tmp_path)
    assert str(refused.value).startswith(f"{path} is damaged (")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe", b"[" * 10**5, b'{"a":' * 10**5, b"[1]", b"null", b'"x"', b"3",
     b'{"no_knowledge_baseline": NaN}'],
)  # fmt: skip
def test_a_run_json_that_is_no_json_object_is_refused_in_a_line(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} is damaged.*; copy it again$"):
        read_record(tmp_path)


def test_an_infinite_baseline_is_refused(run, tmp_path):
    text = (run / "run.json").read_text()
    baseline = str(read_record(run)["no_knowledge_baseline"]["major"])
    (tmp_path / "run.json").write_text(text.replace(baseline, "1e999"))
    with pytest.raises(ValueError, match="no_knowledge_baseline of major is inf, not a number"):
        read_record(tmp_path)
