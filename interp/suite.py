"""A run folder opened for reading: its checkpoints in order, and the population, tokenizer and
facts that go with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from tokenizers import Tokenizer

from interp.bios.text import Texts, lay_out
from interp.bios.tokenizer import read_tokenizer
from interp.checkpoints import checkpoint_sha256, read_checkpoint, read_shape
from interp.config import ATTRIBUTES, Corruption, TrainConfig, train_config
from interp.drawing import draw_facts
from interp.facts import FactSet, read_facts
from interp.files import read_table
from interp.model import DecoderConfig, HookedDecoder, device_of
from interp.training.run_folder import read_record


@dataclass(frozen=True)
class Suite:
    """The checkpoints of one run; reads weights only when asked for a step."""

    path: Path
    steps: list[int]
    """Sorted; optimizer steps taken before each checkpoint was written."""
    config: TrainConfig
    run: dict
    """Everything in run.json."""

    @cached_property
    def population(self) -> pd.DataFrame:
        """One row a person."""
        return read_table(self.path / "population.parquet")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.path)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row a (step, split, attribute); the attribute ``average`` is the mean of the six."""
        return read_table(self.path / "metrics.parquet")

    @cached_property
    def texts(self) -> Texts:
        return lay_out(self.population, self.tokenizer, seed=self.config.seed)

    @property
    def shape(self) -> DecoderConfig:
        """Of the models, without their weights."""
        return read_shape(self.step_dir(self.steps[0]))

    @property
    def no_knowledge_baseline(self) -> float:
        """Attribute loss, nats a value, of a model that knows the values' frequencies but nobody's
        value.
        """
        return sum(self.run["no_knowledge_baseline"].values()) / len(ATTRIBUTES)

    def step_dir(self, step: int) -> Path:
        """Folder of a checkpoint.

        Raises:
            ValueError: there is none at ``step``; the message names the nearest.
        """
        if step not in self.steps:
            nearest = sorted(sorted(self.steps, key=lambda other: abs(other - step))[:2])
            raise ValueError(
                f"no checkpoint at step {step} in {self.path}; "
                f"{'nearest are' if len(nearest) > 1 else 'there is only'} "
                f"{' and '.join(map(str, nearest))}"
            )
        return self.path / f"step-{step:06d}"

    def load(self, step: int, *, device: str = "cpu") -> HookedDecoder:
        """The model at ``step``, in fp32."""
        return read_checkpoint(self.step_dir(step), device=device_of(device))

    def sha256(self, step: int) -> str:
        """Digest of the weights at ``step``."""
        return checkpoint_sha256(self.step_dir(step))

    def facts(
        self,
        n: int = 128,
        *,
        attribute: str | Sequence[str] = ATTRIBUTES,
        seed: int = 0,
        corruption: Corruption = "swap",
        n_context: int = 0,
        length: int | None = None,
        fewer: bool = False,
    ) -> FactSet:
        """``n`` facts of this run's training people; see ``interp.drawing.draw_facts``."""
        attributes = (attribute,) if isinstance(attribute, str) else tuple(dict.fromkeys(attribute))
        return draw_facts(
            self.population,
            self.texts,
            n=n,
            attributes=attributes,
            seed=seed,
            corruption=corruption,
            n_context=n_context,
            length=length,
            fewer=fewer,
        )

    def read_facts(self, path: str | Path) -> FactSet:
        """Facts from a CSV of one's own prompts; see ``interp.facts.read_facts``."""
        return read_facts(path, self.tokenizer)


def load_suite(path: str | Path) -> Suite:
    """The run at ``path``; given one of its step folders, the run with that step only.

    Raises:
        FileNotFoundError: no such folder, or no checkpoint in it.
        ValueError: run.json is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"no folder {path}; give a run folder, such as checkpoints/demo, or one of its step "
            "folders"
        )
    run = path.resolve().parent if _step_of(path.resolve()) is not None else path
    record = read_record(run)
    folders = (
        [path.resolve()] if run != path else [folder for folder in run.iterdir() if folder.is_dir()]
    )
    steps = sorted(step for folder in folders if (step := _step_of(folder)) is not None)
    if not steps:
        raise FileNotFoundError(
            f"no step folder in {run}; wait for its first checkpoint, or train again"
        )
    return Suite(run, steps, train_config(record["config"]), record)


def select_steps(suite: Suite, wanted: str) -> list[int]:
    """Steps named by ``all``, a list such as ``0,200,1000``, or ``every:4`` (every fourth, and the
    last).

    Raises:
        ValueError: it is none of these, or names a step without a checkpoint.
    """
    kind, _, number = wanted.partition(":")
    if wanted == "all":
        return suite.steps
    if kind == "every" and number.isdecimal() and int(number) > 0:
        return sorted({*suite.steps[:: int(number)], suite.steps[-1]})
    if not all(part.strip().isdecimal() for part in wanted.split(",")):
        raise ValueError(
            f"steps {wanted!r} can't be read; write all, a list such as 0,200,1000, or every:4"
        )
    steps = sorted({int(part) for part in wanted.split(",")})
    for step in steps:
        suite.step_dir(step)
    return steps


def _step_of(folder: Path) -> int | None:
    name, _, step = folder.name.partition("-")
    return int(step) if name == "step" and step.isdecimal() else None
