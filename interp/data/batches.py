"""Training batches and evaluation sets: pure functions of (configuration, seed, step)."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from interp.config import TrainConfig
from interp.data.biographies import (
    Biographies,
    Texts,
    evaluation_templates,
    training_templates,
    write_biographies,
)
from interp.data.drawn_values import with_other_dates, with_other_values

UNKNOWN = "unknown"


def training_batch(texts: Texts, config: TrainConfig, step: int) -> Biographies:
    """The batch of optimizer step ``step``: people drawn by ``sampling_weights``, new templates,
    sentences in random order. With ``unknown_people``, some rows are of these instead.
    """
    rng = np.random.default_rng([config.seed, 2, step])
    people = _draw(sampling_weights(config, step, texts.weights), config.batch_size, rng)
    if config.unknown_people:
        return _with_unknown_people(texts, config, people, step, rng)
    return _training_biographies(texts, config, people, rng)


def _training_biographies(
    texts: Texts, config: TrainConfig, people: np.ndarray, rng: np.random.Generator
) -> Biographies:
    template = training_templates(texts, people, config.n_train_templates, rng)
    if config.shuffled:
        return _in_random_order(texts, config, people, template, rng)
    return _write(texts, people, _told(texts, config, people), template)


def _with_unknown_people(
    texts: Texts, config: TrainConfig, people: np.ndarray, step: int, rng: np.random.Generator
) -> Biographies:
    """Biographies of ``people``, of which ``unknown_share`` are of unknown people instead. All
    values of these are drawn for each biography, as ``with_other_values`` does.
    """
    unknown_rng = np.random.default_rng([config.seed, 4, step])
    unknown = unknown_rng.random(len(people)) < config.unknown_share
    first, n = people_of(config, UNKNOWN)
    people = np.where(unknown, first + unknown_rng.integers(n, size=len(people)), people)
    of_row = with_other_values(texts, people, unknown, config.n_people, unknown_rng)
    batch = _training_biographies(of_row, config, np.arange(len(people)), rng)
    batch = with_other_dates(batch, texts, unknown, config.n_people, unknown_rng)
    return replace(batch, people=people)


def evaluation_set(texts: Texts, config: TrainConfig, split: str) -> Biographies:
    """One biography, in evaluation templates, of each of ``n_evaluated`` people of ``split``, or of
    all if there are fewer. People are evenly spaced, so that frequent and rare ones are represented
    alike.
    """
    first, size = people_of(config, split)
    n = min(size, config.n_evaluated)
    people = first + np.arange(n) * size // n
    rng = np.random.default_rng([config.seed, 3, first])
    return _in_random_order(texts, config, people, evaluation_templates(texts, people, rng), rng)


def people_of(config: TrainConfig, split: str) -> tuple[int, int]:
    """The first person of a split, and how many there are. New people, whom fine-tuning adds, are
    the first of those held out; unknown people, who have no values of their own in training, the
    last.
    """
    n, n_new, n_unknown = config.n_people, config.new_people, config.unknown_people
    return {
        "train": (0, n),
        "new": (n, n_new),
        "held-out": (n + n_new, config.n_held_out - n_new - n_unknown),
        UNKNOWN: (n + config.n_held_out - n_unknown, n_unknown),
    }[split]


def sampling_weights(
    config: TrainConfig, step: int, given: Float[np.ndarray, " given"] | None = None
) -> Float[np.ndarray, " person"]:
    """Probability with which each training person, and each new one, is sampled at ``step``.
    ``given``: weights of people of one's own, by which those of training people are multiplied.
    """
    old = _old_weights(config, step)
    if given is not None:
        old = _normalised(old * given[: config.n_people])
    if not config.new_people:
        return old
    new = np.full(config.new_people, 1 / config.n_people)
    return _normalised(np.concatenate((config.replay * old, new)))


def _old_weights(config: TrainConfig, step: int) -> Float[np.ndarray, " person"]:
    end = 0
    for n_steps, weights in _stages(config):
        end += n_steps
        if step < end:
            return _of_groups(config.n_people, weights)
    warm = config.warmup_people and step < config.warmup_steps
    n_eligible = config.warmup_people if warm else config.n_people
    celebrities = config.celebrities, config.celebrity_weight
    return _weights(config.n_people, n_eligible, config.power_law, *celebrities)


@lru_cache(maxsize=4)
def _stages(config: TrainConfig) -> list[tuple[int, tuple[float, ...]]]:
    return config.stages


@lru_cache(maxsize=4)
def _of_groups(n_people: int, weights: tuple[float, ...]) -> Float[np.ndarray, " person"]:
    return _normalised(np.array(weights)[np.arange(n_people) * len(weights) // n_people])


@lru_cache(maxsize=4)
def _weights(
    n_people: int, n_eligible: int, power_law: float, n_celebrities: int, celebrity_weight: float
) -> Float[np.ndarray, " person"]:
    number = np.arange(n_people)
    weights = (number + 1.0) ** -power_law * (number < n_eligible)
    return _normalised(weights * np.where(number < n_celebrities, celebrity_weight, 1.0))


def _normalised(weights: Float[np.ndarray, " person"]) -> Float[np.ndarray, " person"]:
    weights = weights / weights.sum()
    weights.setflags(write=False)
    return weights


def _draw(weights: Float[np.ndarray, " person"], n: int, rng: np.random.Generator) -> np.ndarray:
    edges = np.cumsum(weights)
    return np.searchsorted(edges, rng.random(n) * edges[-1], side="right")


def _in_random_order(
    texts: Texts,
    config: TrainConfig,
    people: np.ndarray,
    template: np.ndarray,
    rng: np.random.Generator,
) -> Biographies:
    return _write(texts, people, rng.permuted(_told(texts, config, people), axis=1), template)


def _told(
    texts: Texts, config: TrainConfig, people: np.ndarray
) -> Int[np.ndarray, "batch sentence"]:
    """The attributes that each biography tells of."""
    told = [texts.attributes.index(name) for name in config.attributes]
    return np.broadcast_to(np.array(told), (len(people), len(told)))


def _write(
    texts: Texts, people: np.ndarray, order: np.ndarray, template: np.ndarray
) -> Biographies:
    return write_biographies(texts, people, order, np.take_along_axis(template, order, 1))
