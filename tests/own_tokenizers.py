"""Small tokenizers of the kinds that published models have, trained on a few sentences, and files
of facts in the words of those sentences.
"""

import csv
from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from interp.suite import Suite

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Costa Rica": "San Jose",
    "New Zealand": "Wellington",
    "South Korea": "Seoul",
    "Papua New Guinea": "Port Moresby",
    "Trinidad and Tobago": "Port of Spain",
    "Peru": "Lima",
    "Sri Lanka": "Colombo",
}
LANGUAGES = {
    "France": "French",
    "Italy": "Italian",
    "Costa Rica": "Spanish",
    "New Zealand": "English",
    "South Korea": "Korean",
    "Peru": "Spanish",
}
TEMPLATES = {
    "capital": "The capital city of {subject} is called",
    "language": "{subject} is where most people speak",
}
ROWS = [
    {"prompt": TEMPLATES[relation], "subject": subject, "answer": answer, "relation": relation}
    for relation, table in (("capital", CAPITALS), ("language", LANGUAGES))
    for subject, answer in table.items()
]
SENTENCES = [
    f"{row['prompt'].replace('{subject}', row['subject'])} {row['answer']}." for row in ROWS
] * 3
BOS, UNKNOWN, END = "<s>", "<unk>", "</s>"
KINDS = ("byte-level", "byte-level with BOS", "WordPiece", "Unigram")


def trained(kind: str) -> Tokenizer:
    """A tokenizer of one of ``KINDS``."""
    special = [BOS, UNKNOWN, END]
    if kind.startswith("byte-level"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=390, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    elif kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=100, special_tokens=special, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=80, special_tokens=special, unk_token=UNKNOWN, show_progress=False
        )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if kind in ("byte-level with BOS", "Unigram"):
        ids = [(token, tokenizer.token_to_id(token)) for token in (BOS, END)]
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{BOS} $A" if kind == "Unigram" else f"{BOS} $A {END}", special_tokens=ids
        )
    return tokenizer


def ids_of(tokenizer: Tokenizer, kind: str, words: list[str], *, first: bool) -> list[list[int]]:
    """Token ids of each word of a running text by itself; ``first``: the text begins with them."""
    found = []
    for i, word in enumerate(words):
        inside = kind.startswith("byte-level") and not (first and i == 0)
        found.append(tokenizer.encode(f" {word}" * inside or word, add_special_tokens=False).ids)
    return found


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)
    return path


def rows_of(suite: Suite, n: int, seed: int = 0) -> list[dict[str, str]]:
    """Facts about a run's people, as a user writes them, by the names that ``texts`` has."""
    people, rows = suite.population.set_index("id"), []
    for text in suite.facts(n, seed=seed).texts.to_dict("records"):
        person = people.loc[text["person"]]
        name = f"{person['first']} {person['middle']} {person['last']}"
        kept = ("clean_prompt", "corrupted_prompt", "answer", "corrupted_answer", "attribute")
        rows.append({"name": name} | {column: text[column] for column in kept})
    return rows
