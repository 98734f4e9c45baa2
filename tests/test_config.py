"""What configurations refuse, from Python, from the shell and from a run.json."""

from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import pytest
from processes import finish

from analyses.emergence import EmergenceConfig
from analyses.localization import LocalizationConfig
from analyses.options import StudyConfig
from analyses.phases import PhasesConfig
from interp.config import PRESETS, PatchConfig, ReportConfig, train_config
from interp.fields import check_fields, number, path

TINY = PRESETS["tiny"]


@dataclass(frozen=True)
class Asked:
    n: int = number(2, least=2, most=9)
    share: float = number(0.5, above=0, below=1)
    shuffled: bool = True
    name: str = "x"
    keep: Literal["all", "last"] = "all"
    norm: float | None = number(None, above=0)
    layers: tuple[int, ...] = number((), least=0)
    words: tuple[str, ...] = ()
    out: str | None = path(None)
    runs: tuple[str, ...] | None = path(None)

    def __post_init__(self):
        check_fields(self)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 1}, "n is 1; it must be at least 2"),
        ({"n": 10}, "n is 10; it must be at most 9"),
        ({"n": 2.0}, "n is 2.0; it must be a whole number"),
        ({"n": True}, "n is True; it must be a whole number"),
        ({"n": None}, "n is None; it must be a whole number"),
        ({"share": 0}, "share is 0.0; it must be positive"),
        ({"share": 1.0}, "share is 1.0; it must be below 1"),
        ({"share": float("nan")}, "share is nan; it must be finite"),
        ({"share": float("inf")}, "share is inf; it must be finite"),
        ({"share": 10**400}, "share is 1000"),
        ({"share": "0.5"}, "share is '0.5'; it must be a number"),
        ({"share": False}, "share is False; it must be a number"),
        ({"shuffled": 1}, "shuffled is 1; it must be true or false"),
        ({"name": 3}, "name is 3; it must be text"),
        ({"keep": "x"}, "keep is 'x'; it must be one of all, last"),
        ({"keep": ["all"]}, "keep is ['all']; it must be one of all, last"),
        ({"norm": 0.0}, "norm is 0.0; it must be positive"),
        ({"layers": 3}, "layers is 3; give a list, each entry a whole number"),
        ({"layers": (0, -1)}, "layers is -1; it must be at least 0"),
        ({"layers": (0, 1.5)}, "layers is 1.5; it must be a whole number"),
        ({"words": "ab"}, "words is 'ab'; give a list, each entry text"),
        ({"out": ""}, "out is empty; name a file or folder"),
        ({"runs": ()}, "runs is empty; name at least one"),
        ({"runs": ("a", " ")}, "runs is empty; name a file or folder"),
    ],
)
def test_a_field_refuses_other_types_and_what_is_out_of_bounds(changes, message):
    with pytest.raises(ValueError) as refused:
        Asked(**changes)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_the_same_values_of_other_types_become_the_same_configuration(tmp_path):
    asked = Asked(np.int64(3), np.float32(0.25), layers=[np.int8(1)], words=["a"], out=tmp_path)
    assert asked == Asked(3, 0.25, layers=(1,), words=("a",), out=str(tmp_path))
    kinds = [type(value) for value in (asked.n, asked.share, *asked.layers, asked.out)]
    assert kinds == [int, float, int, str]
    assert type(Asked(norm=1).norm) is float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"power_law": float("nan")}, "power_law is nan; it must be finite"),
        ({"power_law": 10.5}, "power_law is 10.5; it must be at most 10"),
        ({"celebrities": 2, "celebrity_weight": float("inf")}, "celebrity_weight is inf; it must"),
        ({"celebrities": 2, "celebrity_weight": 1e308}, "it must be at most 1000000000.0"),
        ({"schedule": ("5:nan,1",)}, "schedule has '5:nan,1'; write STEPS:WEIGHTS"),
        (
            {"schedule": ("5:inf,1",)},
            "schedule has '5:inf,1'; a weight must be 0, or from 1e-09 to",
        ),
        ({"schedule": ("5:1e308,1e308",)}, "a weight must be 0, or from 1e-09 to 1e\\+09"),
        ({"schedule": ("5:1e-320,1",)}, "a weight must be 0, or from"),
        ({"n_cities": 1}, "n_cities is 1; it must be at least 2"),
        ({"n_last_names": 1}, "n_last_names is 1; it must be at least 2"),
        ({"n_birth_years": 10**9}, "n_birth_years is 1000000000; it must be at most 8100"),
        ({"n_people": 1}, "n_people is 1; it must be at least 2"),
        ({"n_steps": 99999999999999999999}, "n_steps is 9+; it must be at most 2147483647"),
        ({"n_steps": 2**31}, "n_steps is 2147483648; it must be at most 2147483647"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be at most 9223372036854775807"),
        ({"beta1": 1.0}, "beta1 is 1.0; it must be below 1"),
        ({"beta2": -0.1}, "beta2 is -0.1; it must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be finite"),
        ({"final_learning_rate": float("inf")}, "final_learning_rate is inf; it must be finite"),
        ({"weight_decay": float("nan")}, "weight_decay is nan; it must be finite"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0; it must be positive"),
        ({"dense_until": -1}, "dense_until is -1; it must be at least 0"),
        (
            {"n_steps": 100_000, "checkpoint_every": 1, "dense_until": 0},
            "checkpoint_every 1 and dense_every 25 make 100001 checkpoints in 100000 steps",
        ),
    ],
)
def test_training_refuses_what_would_be_silently_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_checkpoints_of_the_longest_run_are_counted_without_being_listed():
    long = {"n_steps": 2**31 - 1, "dense_until": 2**31 - 1, "dense_every": 2**30}
    assert len(replace(TINY, **long, checkpoint_every=1).checkpoint_steps) == 3


@pytest.mark.parametrize("dense_until", [0, 150, 170, 10**6])
def test_checkpoints_are_at_0_the_dense_the_sparse_and_the_last_step(dense_until):
    config = replace(TINY, n_steps=1201, dense_until=dense_until)
    dense = [s for s in range(1202) if s <= dense_until and s % 25 == 0]
    sparse = [s for s in range(1202) if s > dense_until and s % 150 == 0]
    assert config.checkpoint_steps == sorted({0, *dense, *sparse, 1201})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchConfig("x", noise_std=float("inf")), "noise_std is inf; it must be finite"),
        (
            lambda: PatchConfig("x", noise_draws=10**9),
            "noise_draws is 10+; it must be at most 10000",
        ),
        (
            lambda: PatchConfig("x", window=int("9" * 30)),
            "window is 9{30}; it must be at most 1000",
        ),
        (lambda: PatchConfig("x", window=0), "window is 0; it must be at least 1"),
        (lambda: PatchConfig("x", n_neurons=0), "n_neurons is 0; it must be at least 1"),
        (lambda: PatchConfig("x", max_memory=float("nan")), "max_memory is nan; it must be finite"),
        (lambda: PatchConfig("x", workers=10**6), "workers is 1000000; it must be at most 256"),
        (lambda: PatchConfig("x", seed=2**63), "seed is 9223372036854775808; it must be at most"),
        (lambda: PatchConfig(""), "ckpt is empty; name a file or folder"),
        (lambda: PatchConfig("x", out=""), "out is empty"),
        (lambda: PatchConfig("x", report=""), "report is empty"),
        (lambda: ReportConfig("", "r.html"), "results is empty"),
        (lambda: ReportConfig("x", ""), "out is empty"),
        (lambda: LocalizationConfig(""), "ckpt is empty"),
        (lambda: LocalizationConfig("x", report=""), "report is empty"),
        (lambda: LocalizationConfig("x", workers=257), "workers is 257; it must be at most 256"),
        (lambda: LocalizationConfig("x", max_memory=float("inf")), "max_memory is inf; it must be"),
        (lambda: StudyConfig(out=""), "out is empty"),
        (lambda: StudyConfig(workers=10**6), "workers is 1000000; it must be at most 256"),
        (lambda: PhasesConfig(ckpt=()), "ckpt is empty; name at least one"),
        (lambda: PhasesConfig(ckpt=("",)), "ckpt is empty; name a file or folder"),
        (
            lambda: EmergenceConfig("x.csv", confidence=1.0),
            "confidence is 1.0; it must be at most 0.9999",
        ),
        (lambda: EmergenceConfig(""), "curves is empty"),
    ],
)
def test_commands_refuse_empty_paths_and_numbers_that_no_machine_can_serve(make, message):
    with pytest.raises(ValueError, match=message):
        make()


TYPES = """
from analyses.localization import LocalizationConfig
from interp.config import PatchConfig, preset
for make in (
    lambda: preset("tiny", keep="x"),
    lambda: preset("tiny", precision="x"),
    lambda: preset("tiny", n_people=64.0),
    lambda: PatchConfig("x", facts=2.5),
    lambda: LocalizationConfig("x", attributes="major"),
):
    try:
        make()
    except ValueError as error:
        print(error)
"""


def test_wrong_types_are_refused_from_python_too():
    """In a process of its own, without the type checker of the tests."""
    _, said, _ = finish(TYPES)
    assert said.splitlines() == [
        "keep is 'x'; it must be one of all, last",
        "precision is 'x'; it must be one of fp32, bf16, auto",
        "n_people is 64.0; it must be a whole number",
        "facts is 2.5; it must be a whole number",
        "attributes is 'major'; give a list, each entry text",
    ]


RECORDED = asdict(replace(TINY, schedule=("5:1,0",)))


def test_a_recorded_configuration_is_read_as_it_was_and_older_ones_with_defaults():
    assert train_config(RECORDED | {"schedule": ["5:1,0"]}) == replace(TINY, schedule=("5:1,0",))
    older = {name: value for name, value in RECORDED.items() if name not in ("schedule", "keep")}
    assert train_config(older) == TINY


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "config is None; it must be an object"),
        ([1], r"config is \[1\]; it must be an object"),
        (RECORDED | {"bogus": 1}, "config has the unknown field 'bogus'"),
        ({n: v for n, v in RECORDED.items() if n != "d_mlp"}, "config lacks the field 'd_mlp'"),
        (RECORDED | {"n_people": "64"}, "n_people is '64'; it must be a whole number"),
        (RECORDED | {"n_people": [64]}, r"n_people is \[64\]; it must be a whole number"),
        (RECORDED | {"schedule": "5:1"}, "schedule is '5:1'; give a list"),
        (RECORDED | {"keep": "x"}, "keep is 'x'; it must be one of all, last"),
        (RECORDED | {"compile": 1}, "compile is 1; it must be true or false"),
        (RECORDED | {"n_people": 1}, "n_people is 1; it must be at least 2"),
    ],
)
def test_a_recorded_configuration_that_is_not_one_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        train_config(values)
