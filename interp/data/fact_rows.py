"""Facts of one's own as a file holds them: prompt, subject, answer, relation, and a counterfactual
where the file has one. A CSV, or JSON in the format of one of three published sets:

- CounterFact (Meng et al. 2022, https://arxiv.org/abs/2202.05262): ``requested_rewrite`` with
  ``prompt``, ``subject``, ``target_true`` and ``relation_id``. ``target_new`` is what an edit would
  write and the answer of no prompt, so it is not used, nor are the other prompts.
- known_1000 (the same authors): ``prompt``, ``subject``, ``attribute``, ``relation_id``.
- LRE (Hernandez et al. 2023, https://arxiv.org/abs/2308.09124): a relation or a list of them, with
  ``name``, ``prompt_templates``, of which the first is taken, and ``samples``.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from interp.data.csv_table import read_csv_table
from interp.fields import shortened

SUBJECT = "{subject}"
"""Where the subject stands in a template."""
NEEDED = ("prompt", "subject", "answer")
OPTIONAL = ("counterfactual_prompt", "counterfactual_subject", "counterfactual_answer", "relation")
RENAMED = {
    "clean_prompt": "prompt",
    "name": "subject",
    "corrupted_prompt": "counterfactual_prompt",
    "corrupted_answer": "counterfactual_answer",
    "attribute": "relation",
}
"""Columns by the names that the texts of a ``FactSet`` have for them."""
_COUNTERFACT = {"case_id", "pararel_idx", "requested_rewrite", "paraphrase_prompts"} | {
    *("neighborhood_prompts", "attribute_prompts", "generation_prompts"),
}
_REWRITE = {"prompt", "relation_id", "target_new", "target_true", "subject"}
_KNOWN_1000 = {"known_id", "subject", "attribute", "template", "prediction", "prompt"} | {
    "relation_id"
}
_LRE = {"name", "prompt_templates", "prompt_templates_zs", "properties", "samples"}
_SHAPES = (
    "CounterFact has requested_rewrite, known_1000 prompt, subject and attribute, LRE "
    "prompt_templates and samples"
)


@dataclass(frozen=True)
class Prompt:
    """A prompt in three parts; without a subject the whole is in ``before``."""

    before: str
    subject: str
    after: str

    @property
    def text(self) -> str:
        """Without whitespace at its end: one space comes between prompt and answer."""
        return (self.before + self.subject + self.after).rstrip()

    @property
    def template(self) -> str:
        return f"{self.before}{SUBJECT}{self.after}"

    def about(self, subject: str) -> "Prompt":
        """The same with another subject."""
        return Prompt(self.before, subject, self.after)


@dataclass(frozen=True)
class FactRow:
    """One fact of a file."""

    number: int
    """Of the row below a CSV's header, or of the entry of a JSON list, from 1."""
    prompt: Prompt
    answer: str
    relation: str
    twin: Prompt | None = None
    twin_answer: str = ""

    @property
    def group(self) -> str:
        """Rows of one group ask for the same kind of thing: the relation, or the template where
        the file has no relations.
        """
        return self.relation or self.prompt.template


class UnusableRows(ValueError):
    """Rows of a file that can't be used, with a reason for each."""

    def __init__(self, path: Path, reasons: dict[int, str], n_rows: int) -> None:
        super().__init__(f"{path}: {listed(reasons, n_rows)}")


N_LISTED = 10


def listed(reasons: dict[int, str], n_rows: int) -> str:
    """Rows by number with their reasons, at most ``N_LISTED`` of them in full."""
    shown = "; ".join(f"row {number}: {why}" for number, why in [*reasons.items()][:N_LISTED])
    rest = [str(number) for number in [*reasons][N_LISTED : 4 * N_LISTED]]
    more = f"; and rows {', '.join(rest)}" if rest else ""
    more += " and more" if len(reasons) > 4 * N_LISTED else ""
    return f"{len(reasons)} of {n_rows} rows can't be used: {shown}{more}"


def read_rows(path: Path) -> tuple[list[FactRow], dict[int, str]]:
    """The facts of a CSV or JSON file; and by number, why a row can't be used.

    Raises:
        FileNotFoundError, ValueError: no such file, or one that is not understood.
    """
    if path.suffix != ".json":
        return _of_table(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give a CSV, or JSON of a published set of facts")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} can't be read as JSON ({error}); see that it is") from None
    return _of_json(path, content)


def _of_table(path: Path) -> tuple[list[FactRow], dict[int, str]]:
    table = read_csv_table(path, needed=NEEDED, optional=OPTIONAL, renamed=RENAMED)
    table = table.apply(lambda column: column.str.strip())
    rows, reasons = [], {}
    for number, row in table.iterrows():
        try:
            rows.append(_of_row(int(number), row.to_dict()))
        except ValueError as error:
            reasons[int(number)] = str(error)
    return rows, reasons


def _of_row(number: int, row: dict[str, str]) -> FactRow:
    for column in NEEDED:
        if not row[column]:
            raise ValueError(f"{column} is empty; write at least one word")
    prompt = prompt_about(row["prompt"], row["subject"])
    other, subject, answer = (row.get(column, "") for column in OPTIONAL[:3])
    relation = row.get("relation", "")
    if not (other or subject or answer):
        return FactRow(number, prompt, row["answer"], relation)
    if not answer:
        raise ValueError(
            "counterfactual_answer is empty; write what should follow the other prompt"
        )
    if not (other or subject):
        raise ValueError(
            f"counterfactual_answer is {answer!r} without a prompt that it is the answer of; give "
            "counterfactual_prompt or counterfactual_subject, or leave all three empty and a "
            "twin is looked for among the rows"
        )
    if not subject:
        if SUBJECT in other:
            raise ValueError("counterfactual_prompt is a template; give counterfactual_subject")
        return FactRow(number, prompt, row["answer"], relation, Prompt(other, "", ""), answer)
    twin = prompt_about(other, subject) if other else prompt.about(subject)
    return FactRow(number, prompt, row["answer"], relation, twin, answer)


def prompt_about(text: str, subject: str) -> Prompt:
    """The prompt split around its subject: at ``{subject}`` in a template, otherwise where the
    subject's characters stand as words of their own.

    Raises:
        ValueError: it stands nowhere, or more than once.
    """
    if SUBJECT in text:
        if (n := text.count(SUBJECT)) > 1:
            raise ValueError(f"{SUBJECT} stands {n} times in {text!r}; write it once")
        before, after = text.split(SUBJECT)
        return Prompt(before, subject, after)
    as_words = [x.start() for x in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", text)]
    places = as_words or [x.start() for x in re.finditer(re.escape(subject), text)]
    if not places:
        raise ValueError(
            f"{subject!r} does not stand in the prompt {text!r}; write the subject as it stands "
            f"there, or {SUBJECT} in its place"
        )
    if len(places) > 1:
        raise ValueError(
            f"{subject!r} stands {len(places)} times in the prompt {text!r}; write {SUBJECT} where "
            "it is meant"
        )
    start = places[0]
    return Prompt(text[:start], subject, text[start + len(subject) :])


def _of_json(path: Path, content: object) -> tuple[list[FactRow], dict[int, str]]:
    entries = content if isinstance(content, list) else [content]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} holds {shortened(content)}; give a list of objects: {_SHAPES}")
    for needed, known, records in (
        ({"requested_rewrite"}, _COUNTERFACT, _of_counterfact),
        ({"prompt", "subject", "attribute"}, _KNOWN_1000, _of_known_1000),
        ({"prompt_templates", "samples"}, _LRE, _of_lre),
    ):
        if all(needed <= entry.keys() for entry in entries):
            for entry in entries:
                _check_keys(path, entry, needed, known)
            return _of_records(path, [x for entry in entries for x in records(path, entry)])
    keys = sorted({key for entry in entries for key in entry})
    raise ValueError(f"{path} has the keys {', '.join(keys)}, which fit no known format; {_SHAPES}")


def _check_keys(path: Path, entry: object, needed: set[str], known: set[str]) -> None:
    if not isinstance(entry, dict) or (missing := needed - entry.keys()):
        lacks = f", without {', '.join(sorted(missing))}" if isinstance(entry, dict) else ""
        raise ValueError(
            f"{path} has an entry {shortened(entry)}{lacks}; it needs {', '.join(sorted(needed))}"
        )
    if unknown := sorted(entry.keys() - known):
        raise ValueError(
            f"{path} has a key {unknown[0]!r}, which is not understood; there are "
            f"{', '.join(sorted(known))}"
        )


Record = tuple[str, str, str, str]
"""Template or prompt, subject, answer and relation."""


def _of_counterfact(path: Path, entry: dict) -> list[Record]:
    asked = entry["requested_rewrite"]
    _check_keys(path, asked, {"prompt", "subject", "target_true"}, _REWRITE)
    _check_keys(path, asked["target_true"], {"str"}, {"str", "id"})
    return [(
        _template(path, asked["prompt"]), asked["subject"], asked["target_true"]["str"],
        asked.get("relation_id", ""),
    )]  # fmt: skip


def _of_known_1000(path: Path, entry: dict) -> list[Record]:
    """The prompt as it is: it may go on where ``template`` ends."""
    return [(entry["prompt"], entry["subject"], entry["attribute"], entry.get("relation_id", ""))]


def _of_lre(path: Path, entry: dict) -> list[Record]:
    templates, samples = entry["prompt_templates"], entry["samples"]
    if not all(isinstance(x, list) and x for x in (templates, samples)):
        raise ValueError(f"{path} has a relation without templates or samples; give one or more")
    for sample in samples:
        _check_keys(path, sample, {"subject", "object"}, {"subject", "object"})
    template = _template(path, templates[0])
    name = entry.get("name", "")
    return [(template, sample["subject"], sample["object"], name) for sample in samples]


def _template(path: Path, text: object) -> str:
    if not isinstance(text, str) or text.count("{}") != 1:
        raise ValueError(
            f"{path} has a template {shortened(text)}; write {{}} in it once, for the subject"
        )
    return text.replace("{}", SUBJECT)


def _of_records(path: Path, records: list[Record]) -> tuple[list[FactRow], dict[int, str]]:
    rows, reasons = [], {}
    for number, record in enumerate(records, 1):
        for text in record:
            if not isinstance(text, str):
                raise ValueError(f"{path}, row {number}: {shortened(text)} is no text; write text")
        prompt, subject, answer, relation = (text.strip() for text in record)
        try:
            rows.append(
                _of_row(
                    number,
                    {"prompt": prompt, "subject": subject, "answer": answer, "relation": relation},
                )
            )
        except ValueError as error:
            reasons[number] = str(error)
    return rows, reasons
