"""Checkpoints opened for reading, in order: those of a run of ``interp-train``, with its
population, tokenizer and facts, or any others, with the tokenizer beside them.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from tokenizers import Tokenizer

from interp.config import ATTRIBUTES, Corruption, TrainConfig, train_config
from interp.data.biographies import Texts, lay_out
from interp.data.facts import FactSet, check_tokens, read_facts
from interp.data.sample_facts import sample_facts
from interp.data.tokenizer import read_tokenizer, vocabulary_digest
from interp.fields import LARGEST_SEED, argument
from interp.jupyter import html_table
from interp.model.checkpoint_folder import step_folders, step_of
from interp.model.checkpoint_io import (
    check_checkpoint,
    checkpoint_sha256,
    read_checkpoint,
    tensor_digests,
)
from interp.model.decoder import DecoderConfig, HookedDecoder, device_of
from interp.model.suite_folder import find_checkpoints
from interp.training.metrics_table import read_metrics
from interp.training.run_folder import check_recorded, read_population, read_record


@dataclass(frozen=True)
class Suite:
    """The checkpoints of one model; reads weights only when asked for a step."""

    path: Path
    folders: dict[int, Path]
    """Of each checkpoint, by its step, sorted."""
    config: TrainConfig | None
    """None for checkpoints that interp did not train."""
    run: dict
    """Everything in run.json; empty where there is none."""
    name: str
    """Name of the run folder, or of the model."""

    def __repr__(self) -> str:
        return f"Suite({str(self.path)!r}: {self._checkpoints()}; {self._people()})"

    def _repr_html_(self) -> str:
        of = self.config
        if of is None:
            rows = {"checkpoints": self._checkpoints(), "people": self._people()}
            return html_table(f"Suite {self.path}", list(rows.items()))
        blocks = ", attention and MLP in parallel" if of.parallel else ""
        shape = f"{of.n_layers} layers, {of.n_heads} heads, d_model {of.d_model}, d_mlp {of.d_mlp}"
        rows = {
            "checkpoints": self._checkpoints(),
            "people": self._people(),
            "attributes": ", ".join(of.attributes),
            "model": shape + blocks,
            "vocabulary": f"{self.tokenizer.get_vocab_size():,} tokens",
        }
        return html_table(f"Run {self.path}", list(rows.items()))

    def _checkpoints(self) -> str:
        if len(self.steps) == 1:
            return f"1 checkpoint, at step {self.steps[0]}"
        return f"{len(self.steps)} checkpoints, steps {self.steps[0]} to {self.steps[-1]}"

    def _people(self) -> str:
        if self.config is None:
            return "not a run of interp-train"
        return f"{self.config.n_people:,} people trained on, {self.config.n_held_out:,} held out"

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, sorted; each counts the optimizer steps taken before it was
        written.
        """
        return list(self.folders)

    @property
    def is_run(self) -> bool:
        """Whether interp trained these checkpoints."""
        return self.config is not None

    def _config_of(self, what: str) -> TrainConfig:
        """The configuration of the run.

        Raises:
            ValueError: there is none, so that there is no ``what`` either.
        """
        if self.config is None:
            raise ValueError(
                f"{self.path} is not a run of interp-train (it has no run.json), so it has no "
                f"{what}; give facts of your own, with --facts-csv FILE or suite.read_facts(FILE)"
            )
        return self.config

    def results_folder(self, analysis: str) -> Path:
        """Where results of an analysis are stored unless said otherwise: in the run folder, or,
        since checkpoints of others are never written to, in the current one.
        """
        return self._results / analysis

    def page(self, name: str) -> Path:
        """Where a page is written unless said otherwise."""
        return (self.path if self.is_run else self._results) / f"{name}.html"

    @property
    def _results(self) -> Path:
        return self.path / "results" if self.is_run else Path("results") / self.name

    @cached_property
    def population(self) -> pd.DataFrame:
        """The people of the run, one per row."""
        return read_population(self._config_of("population"), self.path)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer; for checkpoints of others tokenizer.json beside the step folders, or
        in the first that has one.

        Raises:
            FileNotFoundError, ValueError: there is none, or it is damaged.
        """
        if self.is_run:
            tokenizer = read_tokenizer(self.path)
            check_recorded(self.path / "tokenizer.json")
            return tokenizer
        places = [folder / "tokenizer.json" for folder in (self.path, *self.folders.values())]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"no tokenizer.json in {self.path} or its step folders; copy the model's there"
            )
        try:
            return Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises nothing more specific
            raise ValueError(f"{path} is damaged ({error}); copy it again") from None

    @cached_property
    def vocabulary(self) -> str:
        """Digest of the tokenizer's vocabulary; empty for checkpoints of others without one."""
        try:
            return vocabulary_digest(self.tokenizer)
        except FileNotFoundError:
            if self.is_run:
                raise
            return ""

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Metrics of the run, one row per (step, split, attribute); the attribute ``average`` is
        the mean of those that the run's biographies tell of.
        """
        self._config_of("metrics")
        return read_metrics(self.path / "metrics.parquet")

    @cached_property
    def texts(self) -> Texts:
        seed = self._config_of("biographies").seed
        return lay_out(self.population, self.tokenizer, seed=seed)

    @property
    def no_knowledge_baseline(self) -> float:
        """Attribute loss, in nats per value, of a model that knows how frequent each value is but
        not which person has it.
        """
        told = self._config_of("no-knowledge baseline").attributes
        return sum(self.run["no_knowledge_baseline"][name] for name in told) / len(told)

    def step_dir(self, step: int) -> Path:
        """Folder of a checkpoint.

        Raises:
            ValueError: there is none at ``step``; the message names the nearest.
        """
        if argument("step", step, int) not in self.folders:
            nearest = sorted(sorted(self.steps, key=lambda other: abs(other - step))[:2])
            raise ValueError(
                f"no checkpoint at step {step} in {self.path}; "
                f"{'nearest are' if len(nearest) > 1 else 'there is only'} "
                f"{' and '.join(map(str, nearest))}"
            )
        return self.folders[step]

    @property
    def shape(self) -> DecoderConfig:
        """Shape of the model at the first step; reads no weights."""
        return self.shape_at(self.steps[0])

    def shape_at(self, step: int) -> DecoderConfig:
        """Shape of the model at ``step``; reads no weights.

        Raises:
            ValueError: the checkpoint is damaged, or is not of the shape that run.json says.
        """
        return self._of_this_run(step, check_checkpoint(self.step_dir(step)))

    def _of_this_run(self, step: int, cfg: DecoderConfig) -> DecoderConfig:
        of_run = ("n_layers", "n_heads", "d_model", "d_mlp", "parallel") if self.is_run else ()
        for name in of_run:
            ours, theirs = getattr(self.config, name), getattr(cfg, name)
            if ours != theirs:
                raise ValueError(
                    f"{self.step_dir(step)} has {name} {theirs}, run.json says {ours}; it is not a "
                    "checkpoint of this run, move it away"
                )
        return cfg

    def check(self, steps: Sequence[int]) -> DecoderConfig:
        """The shape that the models at ``steps`` have in common; reads no weights.

        Raises:
            ValueError: a checkpoint is damaged, differs in shape from the others, or has fewer
                tokens than the run's tokenizer.
        """
        shapes = {step: self.shape_at(step) for step in steps}
        first, shape = next(iter(shapes.items()))
        for step, other in shapes.items():
            for name, value in asdict(other).items():
                if value != (wanted := getattr(shape, name)):
                    raise ValueError(
                        f"step {step} has {name} {value}, step {first} {wanted}; checkpoints of "
                        "different models can't be compared, choose among them with --steps"
                    )
        if self.is_run and shape.d_vocab < (n := self.tokenizer.get_vocab_size()):
            raise ValueError(
                f"the tokenizer in {self.path} has {n} tokens, its models {shape.d_vocab}; they "
                "don't belong together"
            )
        return shape

    def load(self, step: int, *, device: str = "cpu") -> HookedDecoder:
        """The model at ``step``, in fp32."""
        model = read_checkpoint(self.step_dir(step), device=device_of(device))
        self._of_this_run(step, model.cfg)
        model.vocabulary = self.vocabulary
        return model

    def sha256(self, step: int) -> str:
        """Digest of the checkpoint at ``step``."""
        return checkpoint_sha256(self.step_dir(step))

    def tensor_digests(self, step: int) -> dict[str, str]:
        """Digest of each tensor at ``step``, by name."""
        return tensor_digests(self.step_dir(step))

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
        """``n`` facts about this run's training people; see ``sample_facts.sample_facts``."""
        self._config_of("population to draw facts from")
        named = (attribute,) if isinstance(attribute, str) else attribute
        if not (named := argument("attribute", named, tuple[str, ...])):
            raise ValueError(f"attribute is empty; name some of {', '.join(ATTRIBUTES)}")
        facts = sample_facts(
            self.population,
            self.texts,
            n=argument("n", n, int),
            attributes=tuple(dict.fromkeys(named)),
            seed=argument("seed", seed, int, least=0, most=LARGEST_SEED),
            corruption=corruption,
            n_context=argument("n_context", n_context, int),
            length=argument("length", length, int | None),
            fewer=argument("fewer", fewer, bool),
        )
        return replace(facts, vocabulary=self.vocabulary)

    def read_facts(self, path: str | Path) -> FactSet:
        """Facts from a CSV of the user's own prompts; see ``interp.data.facts.read_facts``."""
        facts = replace(read_facts(path, self.tokenizer), vocabulary=self.vocabulary)
        check_tokens(facts, self.shape.d_vocab, self.shape.n_ctx)
        return facts


def load_suite(path: str | Path) -> Suite:
    """The checkpoints at ``path``: a run of ``interp-train``, or what ``find_checkpoints`` takes;
    given a step folder, that step only.

    Raises:
        FileNotFoundError: no such folder, or no checkpoint in it.
        ValueError: run.json is damaged; something in the folder is not understood.
    """
    path = Path(argument("path", path, str, is_path=True))
    if not path.is_dir() and "*" not in path.name:
        raise FileNotFoundError(
            f"no folder {path}; give a run folder, such as checkpoints/demo, a folder of other "
            "checkpoints, or one of its step folders"
        )
    if "*" in path.name and (path.parent / "run.json").is_file():
        raise ValueError(f"{path} names steps of a run; give {path.parent}, and --steps")
    step = step_of(path.resolve())
    run = path if step is None else path.resolve().parent
    if not (run / "run.json").is_file():
        found = find_checkpoints(path)
        return Suite(found.path, found.folders, None, {}, found.name)
    record = read_record(run)
    folders = step_folders(run) if step is None else {step: path.resolve()}
    if not folders:
        raise FileNotFoundError(
            f"no step folder in {run}; wait for its first checkpoint, or train again"
        )
    return Suite(run, folders, train_config(record["config"]), record, run.resolve().name)


def select_steps(suite: Suite, wanted: str) -> list[int]:
    """Steps named by ``all``, a list such as ``0,200,1000``, or ``every:4`` (every fourth, and the
    last).

    Raises:
        ValueError: it is none of these, or names a step without a checkpoint.
    """
    kind, _, number = wanted.partition(":")
    if wanted == "all":
        return suite.steps
    if kind == "every" and re.fullmatch("0*[1-9][0-9]{0,9}", number):
        return sorted({*suite.steps[:: int(number)], suite.steps[-1]})
    if not re.fullmatch(r"\s*[0-9]{1,12}\s*(,\s*[0-9]{1,12}\s*)*", wanted):
        raise ValueError(
            f"steps {wanted!r} can't be read; write all, a list such as 0,200,1000, or every:4"
        )
    steps = sorted({int(part) for part in wanted.split(",")})
    for step in steps:
        suite.step_dir(step)
    return steps
