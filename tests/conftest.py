"""A tiny trained run and a random model, made once a session and only read."""

from interp.process import tune_process

tune_process()

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Timer
from zlib import crc32

import jaxtyping
import pytest
import torch

from interp.config import PRESETS, TrainConfig
from interp.data.facts import FactSet
from interp.model.decoder import DecoderConfig, HookedDecoder, initialise
from interp.suite import Suite, load_suite
from interp.training.loop import train

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes that share the cores
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
SHORT = replace(
    PRESETS["tiny"],
    device="cpu",
    n_people=40,
    n_held_out=20,
    n_layers=3,
    d_model=32,
    d_mlp=64,
    n_steps=30,
    dense_every=10,
    dense_until=10,
    checkpoint_every=20,
)


LONG = (
    *("test_readme", "test_studies", "test_report_page", "test_loop", "test_cli"),
    *("test_edge_estimates", "test_interventions", "test_hooks", "test_localization"),
    *("test_tasks", "test_executors"),
    *("test_faults", "test_docs", "test_run_many", "test_reference_attention", "test_sweep"),
)


def pytest_report_header() -> str:
    """Which GPU the tests marked ``cuda`` run on."""
    there = torch.cuda.is_available()
    return f"cuda: {torch.cuda.get_device_name() if there else 'none, only a simulated GPU'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left with one at the end."""
    order = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests marked ``cuda`` are skipped where there is none; for all others, and the processes they
    start, there is none: what is expected of them was computed on a CPU.
    """
    if not request.node.get_closest_marker("cuda"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    elif not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def type_checks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Types are checked in the first third of a second of a test, and of tests with parameters in
    every eighth: loops, and other parameters, call the same functions again, and checking them can
    take twenty times as long as running them.
    """
    name = request.node.nodeid
    skipped = "[" in name and crc32(name.encode()) % 8 > 0
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", skipped)
    enough = Timer(0.3, setattr, (jaxtyping.config, "jaxtyping_disable", True))
    enough.start()
    yield
    enough.cancel()
    enough.join()


@pytest.fixture(scope="session")
def config() -> TrainConfig:
    """Thirty steps with checkpoints at 0, 10, 20 and 30."""
    return SHORT


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, config: TrainConfig) -> Path:
    return train(config, tmp_path_factory.mktemp("runs") / "short", command="interp-train --test")


@pytest.fixture(scope="session")
def suite(run: Path) -> Suite:
    return load_suite(run)


@pytest.fixture(scope="session")
def model(suite: Suite) -> HookedDecoder:
    """Three random layers, with weights so large that every cell matters."""
    shape = DecoderConfig(3, 4, 32, 64, suite.tokenizer.get_vocab_size())
    model = HookedDecoder(shape)
    initialise(model, std=0.3, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data.normal_(std=0.1, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def facts(suite: Suite) -> FactSet:
    """Twelve facts, two of each attribute, with prompts and values of several lengths."""
    return suite.facts(12, seed=3)
