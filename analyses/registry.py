"""The analyses that ``interp-analyse`` runs: each folder of this package registers one."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import analyses
from analyses.options import StudyConfig

Run = Callable[..., str]


@dataclass(frozen=True)
class Analysis:
    """An analysis as the command lists it, documents it and runs it.

    It is the ``ANALYSIS`` of its folder's ``__init__``, which imports nothing slow; the modules
    that compute are imported when it runs.
    """

    name: str
    question: str
    """In a sentence."""
    config: type
    """The dataclass of its options."""
    examples: tuple[str, ...]
    """What follows ``interp-analyse``."""
    run: Run
    """``run(config, command=, bar=)`` computes, writes, and returns what to print. ``command`` is
    the command line, for the record; ``bar`` is a progress bar without tasks."""
    details: str = ""
    """The end of its help."""
    study: str = ""
    """Of a study that trains runs, its module: see ``training_study``."""

    @property
    def description(self) -> str:
        """The help text above the options."""
        examples = [f"interp-analyse {example}" for example in self.examples]
        return "\n\n".join((self.question, "Examples:", *examples, self.details)).strip()


def registered() -> dict[str, Analysis]:
    """All analyses by name; those that train runs come last."""
    folders = (module.name for module in pkgutil.iter_modules(analyses.__path__) if module.ispkg)
    found = [import_module(f"analyses.{folder}").ANALYSIS for folder in folders]
    return {x.name: x for x in sorted(found, key=lambda x: (bool(x.study), x.name))}


def imported_late(module: str, function: str, *given: object) -> Run:
    """A function of a module that is imported only when it is called; ``given`` are its first
    arguments.
    """
    return partial(_call, module, function, *given)


def _call(module: str, function: str, *given: object, **options: object) -> str:
    return getattr(import_module(module), function)(*given, **options)


def training_study(
    name: str,
    question: str,
    module: str,
    *,
    takes: str,
    examples: tuple[str, ...],
    config: type[StudyConfig] = StudyConfig,
) -> Analysis:
    """An analysis that trains runs and writes tables and a page of figures.

    Args:
        module: its ``study(config, command=, on_step=)`` returns a ``Study``, its ``figures(tables,
            base)`` draws the figures of such tables.
        takes: runs and minutes of the preset laptop.
    """
    return Analysis(
        name,
        question,
        config,
        examples,
        imported_late("analyses.study_page", "run_study", name, module),
        f"With --preset laptop: {takes} on two cores. {_WRITES}",
        module,
    )


_WRITES = """Trains runs into OUT/runs, which all studies of a size share: what is there is used,
what was interrupted is resumed. Writes tables (CSV) and a page of figures, beside the paper's
(arXiv 2503.21676), to OUT."""
