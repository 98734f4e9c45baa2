"""The questions that localization asks: how each is answered, when it can be asked, and where and
how its answer is shown. A new question is one entry here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from analyses.localization import in_depth, sections, tables
from analyses.localization.sections import has_people, heading_of
from interp.localization.formation import Localization
from interp.localization.mechanisms import MECHANISMS
from interp.report.page import Block, Paragraph, Section

Leading = dict[str, dict[str, str]]
"""By mechanism, the leading component and its place."""
EACH_MECHANISM = "each mechanism"
MEMORY = heading_of("memory")
NAMES, NEURONS = "Which part of the name, and what feeds extraction", "Neurons and edits"


@dataclass(frozen=True)
class Question:
    """A question, its answer's place on the page, and what is shown there.

    Without ``compute`` it is one of the ``QUESTIONS`` of ``checkpoint_answers``, which every
    checkpoint is asked; with it, it is asked of the last one.
    """

    name: str
    section: str
    """Heading, or ``EACH_MECHANISM``."""
    show: Callable[..., list[Block]]
    """Of what was found; with ``EACH_MECHANISM``, and of a mechanism."""
    compute: in_depth.Compute | None = None
    is_possible: Callable[[Leading], bool] = lambda leading: True
    otherwise: str = ""
    """What the page says where it is not possible."""
    without_people: str = ""
    """Of a question on a run's population: what the page says of facts from a file."""

    def blocks(self, found: Localization, mechanism: str = "") -> list[Block]:
        """The blocks of the page that show the answer."""
        if self.without_people and not has_people(found):
            lacking = Paragraph(self.without_people)
            return [lacking] if self.compute else [lacking, *self.show(found)]
        if self.compute and self.name not in found.depth:
            return [Paragraph(self.otherwise)] if self.otherwise else []
        return self.show(found, mechanism) if self.section == EACH_MECHANISM else self.show(found)


def _has_memory(leading: Leading) -> bool:
    return "memory" in leading


def _has_mlp_before_extraction(leading: Leading) -> bool:
    return "extraction" in leading and not leading["extraction"]["component"].startswith("L0")


_NO_PROBES = (
    "No linear probes: these facts are from a file, and a probe is fitted on many other people who "
    "are asked for the same. A run of interp-train has them; in Python, interp.localize(suite, "
    "facts, people=...) takes facts of your own to fit probes on."
)
_NO_PARTS = (
    "Which part of a name is where is not asked: it needs twins that differ in one part of the "
    "name, drawn from the population of a run of interp-train. These facts are from a file."
)
_NO_EDITS = (
    "No edits: a fact is overwritten with the help of training sentences of the population of a "
    "run of interp-train. These facts are from a file."
)
QUESTIONS = (
    Question("needs", EACH_MECHANISM, sections.needs),
    Question("value", EACH_MECHANISM, tables.whole_value, in_depth.whole_value),
    Question("attention", EACH_MECHANISM, sections.attention),
    Question("copying", EACH_MECHANISM, tables.copied, in_depth.copied),
    Question("probes", MEMORY, sections.probes, without_people=_NO_PROBES),
    Question("severed", MEMORY, sections.severed, in_depth.severed),
    Question("readings", MEMORY, tables.logit_lens),
    Question("parts", NAMES, sections.parts, in_depth.parts, without_people=_NO_PARTS),
    Question(
        "feeds",
        NAMES,
        tables.feeds,
        in_depth.feeds,
        _has_mlp_before_extraction,
        "There is no extraction head that an MLP could feed.",
    ),
    Question(
        "neurons",
        NEURONS,
        tables.neurons,
        in_depth.neurons,
        _has_memory,
        "No MLP is a memory, so there are no neurons to look at and no edits.",
    ),
    Question("edits", NEURONS, tables.edits, in_depth.edits, _has_memory, without_people=_NO_EDITS),
    Question("direct", "Direct effects", sections.direct),
)


def asked_in_depth(leading: Leading, *, has_people: bool) -> list[Question]:
    """The questions that the last checkpoint can answer, given which components lead."""
    possible = [x for x in QUESTIONS if x.compute and x.is_possible(leading)]
    return [x for x in possible if has_people or not x.without_people]


def evidence(found: Localization) -> list[Section]:
    """One section per mechanism, then those of the other questions."""
    shown = []
    for mechanism in MECHANISMS:
        heading, blocks = heading_of(mechanism), []
        for question in QUESTIONS:
            if question.section in (EACH_MECHANISM, heading):
                blocks += question.blocks(found, mechanism)
        shown.append(Section(heading, blocks))
    of_mechanisms = {EACH_MECHANISM, *map(heading_of, MECHANISMS)}
    for heading in dict.fromkeys(x.section for x in QUESTIONS if x.section not in of_mechanisms):
        blocks = [b for x in QUESTIONS if x.section == heading for b in x.blocks(found)]
        shown.append(Section(heading, blocks))
    return shown
