"""Many runs: skipped, gone on with, by any executor."""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pandas as pd
import pytest

from interp.files import only_process
from interp.model.checkpoint_io import checkpoint_sha256
from interp.process import local_workers
from interp.suite import load_suite
from interp.training import run_many as runs
from interp.training.loop import train
from interp.training.run_many import is_done, newest_step, runs_left, train_all, train_share


@pytest.fixture(scope="module")
def short(config):
    """Checkpoints at 0, 4 and 8."""
    return replace(config, n_people=8, n_held_out=4, n_steps=8, batch_size=2, dense_every=4)


def weights(folder, step=8):
    return checkpoint_sha256(folder / f"step-{step:06d}")


def test_each_run_is_trained_as_it_would_be_alone(short, tmp_path):
    configs = {"a": short, "b": replace(short, seed=1)}
    folders = train_all(configs, tmp_path, command="interp-analyse x")
    for name, config in configs.items():
        assert weights(folders[name]) == weights(train(config, tmp_path / f"{name}-alone"))
        assert load_suite(folders[name]).run["command"] == "interp-analyse x"


def test_finished_runs_are_not_touched(short, tmp_path, monkeypatch):
    train_all({"a": short}, tmp_path)
    monkeypatch.setattr(runs, "train", None)  # would fail if called
    seen = []
    train_all({"a": short}, tmp_path, on_step=lambda *said: seen.append(said))
    assert seen == [("a", 8, 8)]


def test_an_interrupted_run_is_gone_on_with_and_ends_the_same(short, tmp_path):
    def stop(name, step, n_steps):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all({"a": short}, tmp_path, on_step=stop)
    assert not is_done(tmp_path / "a", short) and newest_step(tmp_path / "a") == 4
    taken = []
    train_all({"a": short}, tmp_path, on_step=lambda name, step, n: taken.append(step))
    assert taken == [4, 5, 6, 7, 8, 8]
    assert weights(tmp_path / "a") == weights(train(short, tmp_path / "whole"))


def test_a_run_of_another_configuration_is_refused_but_another_machine_is_not(short, tmp_path):
    train_all({"a": short}, tmp_path)
    assert is_done(tmp_path / "a", replace(short, precision="bf16", compile=True, device="cuda"))
    with pytest.raises(
        ValueError, match=r"a holds a run with learning_rate 0.004, not 0.001; give another"
    ):
        train_all({"a": replace(short, learning_rate=1e-3)}, tmp_path)


def test_a_second_process_is_refused_at_once_unless_nothing_is_left_to_train(short, tmp_path):
    with only_process(tmp_path, "training runs in"):
        with pytest.raises(ValueError, match=f"another process is training runs in {tmp_path}"):
            train_all({"a": short}, tmp_path)
        assert not (tmp_path / "a").exists()
    train_all({"a": short}, tmp_path)
    with only_process(tmp_path, "training runs in"):
        train_all({"a": short}, tmp_path)


def test_tasks_share_runs_beside_each_other(short, tmp_path):
    configs = {name: replace(short, seed=i) for i, name in enumerate("abc")}
    with only_process(tmp_path, "training runs in"):  # as if another task held it
        assert train_share(configs, tmp_path, 0, 2) == ["a", "c"]
        assert list(runs_left(configs, tmp_path)) == ["b"]
        assert train_share(configs, tmp_path, 1, 2) == ["b"]
    assert not runs_left(configs, tmp_path) and train_share(configs, tmp_path, 3, 4) == []
    assert weights(tmp_path / "c") == weights(train(configs["c"], tmp_path / "alone"))


def test_a_run_whose_last_metrics_are_missing_is_not_done(short, tmp_path):
    train_all({"a": short}, tmp_path)
    path = tmp_path / "a" / "metrics.parquet"
    table = pd.read_parquet(path)
    table[table.step < 8].to_parquet(path)
    assert not is_done(tmp_path / "a", short)


def test_of_kept_checkpoints_only_the_last_is_on_disk_and_metrics_are_of_all(short, tmp_path):
    train_all({"a": replace(short, keep="last")}, tmp_path)
    folder = tmp_path / "a"
    assert [path.name for path in folder.glob("step-*")] == ["step-000008"]
    assert sorted(set(pd.read_parquet(folder / "metrics.parquet").step)) == [0, 4, 8]
    assert is_done(folder, replace(short, keep="last")) and not (folder / "resume").exists()
    with pytest.raises(ValueError, match=r"lacks the checkpoint at step 0; delete the folder"):
        train_all({"a": short}, tmp_path)


def test_a_run_with_all_checkpoints_will_do_where_the_last_is_wanted(short, tmp_path):
    train_all({"a": short}, tmp_path)
    assert is_done(tmp_path / "a", replace(short, keep="last")) and is_done(tmp_path / "a", short)


def test_all_checkpoints_of_a_run_begun_to_keep_its_last_are_refused_before_it_goes_on(
    short, tmp_path
):
    def stop(name, step, n_steps):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all({"a": replace(short, keep="last")}, tmp_path, on_step=stop)
    for asked in ({"a": short}, {"b": replace(short, seed=1), "a": short}):
        with pytest.raises(ValueError, match=r"a was begun with keep last, .*; delete the folder"):
            train_all(asked, tmp_path)
    assert newest_step(tmp_path / "a") == 4 and not (tmp_path / "b").exists()
    train_all({"a": replace(short, keep="last")}, tmp_path)


def test_a_run_begun_to_keep_all_checkpoints_goes_on_so_where_the_last_is_wanted(short, tmp_path):
    def stop(name, step, n_steps):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all({"a": short}, tmp_path, on_step=stop)
    train_all({"a": replace(short, keep="last")}, tmp_path)
    assert is_done(tmp_path / "a", short)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_fails_does_not_stop_the_others(short, tmp_path, workers):
    configs = {"a": replace(short, reference=str(tmp_path / "none")), "b": short}
    with (
        local_workers(workers) as executor,
        pytest.raises(ValueError, match=r"1 of 2 runs failed; a: .*none.*; run the same again"),
    ):
        train_all(configs, tmp_path, executor=executor)
    assert is_done(tmp_path / "b", short)


class Recorder(ThreadPoolExecutor):
    """An executor that is not ours, and remembers what it was given."""

    def __init__(self):
        super().__init__(1)
        self.given = []

    def submit(self, fn, /, *args, **kwargs) -> Future:
        self.given.append(args[1].name)
        return super().submit(fn, *args, **kwargs)


def test_any_executor_trains_the_runs_that_are_left(short, tmp_path):
    train_all({"b": short}, tmp_path)
    with Recorder() as executor:
        train_all({"a": replace(short, seed=1), "b": short}, tmp_path, executor=executor)
    assert executor.given == ["a"]
    assert is_done(tmp_path / "a", replace(short, seed=1))


def test_an_interrupted_run_that_keeps_its_last_checkpoint_ends_the_same(short, tmp_path):
    def stop(name, step, n_steps):
        if step == 6:
            raise KeyboardInterrupt

    asked = {"a": replace(short, keep="last")}
    with pytest.raises(KeyboardInterrupt):
        train_all(asked, tmp_path, on_step=stop)
    train_all(asked, tmp_path)
    assert weights(tmp_path / "a") == weights(train(short, tmp_path / "whole"))


def test_an_error_of_the_machine_does_not_stop_the_others_either(short, tmp_path, monkeypatch):
    def out_of_memory(config, folder, **options):
        if config.seed == 1:
            raise RuntimeError("out of memory")
        return train(config, folder, **options)

    monkeypatch.setattr(runs, "train", out_of_memory)
    with pytest.raises(ValueError, match="1 of 2 runs failed; a: RuntimeError: out of memory"):
        train_all({"a": replace(short, seed=1), "b": short}, tmp_path)
    assert is_done(tmp_path / "b", short)


@pytest.mark.parametrize("name", ["../evil", "", "a/b", ".", "..", ".lock", "a\0b", "a\\b"])
def test_a_run_is_named_as_one_folder(short, tmp_path, name):
    with pytest.raises(ValueError, match="can't be the name of a run; it becomes a folder"):
        train_all({"a": short, name: short}, tmp_path / "runs")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_of_runs_is_not_the_current_one(short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="out is empty"):
        train_all({"a": short}, "")


def test_the_error_of_a_run_that_diverges_is_one_line_and_the_others_are_trained(short, tmp_path):
    wild = replace(short, learning_rate=1e30)
    with pytest.raises(
        ValueError, match="1 of 2 runs failed; a: the weights are not finite"
    ) as said:
        train_all({"a": wild, "b": short}, tmp_path)
    assert "\n" not in str(said.value) and is_done(tmp_path / "b", short)


def test_an_error_of_several_lines_is_said_in_one(short, tmp_path, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("out\n  of memory")

    monkeypatch.setattr(runs, "train", fails)
    with pytest.raises(ValueError, match="a: RuntimeError: out of memory; run the same again"):
        train_all({"a": short}, tmp_path)


def test_a_newest_checkpoint_that_was_lost_is_written_again(short, tmp_path):
    train_all({"a": short}, tmp_path)
    before = weights(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "step-000008")
    assert not is_done(tmp_path / "a", short)
    train_all({"a": short}, tmp_path)
    assert weights(tmp_path / "a") == before and is_done(tmp_path / "a", short)


@pytest.mark.parametrize("name", ["step-x", "step-08"])
def test_strange_and_doubled_step_folders_are_named(short, tmp_path, name):
    train_all({"a": short}, tmp_path)
    (tmp_path / "a" / name).mkdir()
    with pytest.raises(ValueError, match=name):
        is_done(tmp_path / "a", short)
