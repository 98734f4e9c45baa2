"""A word-level tokenizer: one token per word, and every punctuation mark is a token of its own.

So names and values never merge with punctuation, and a text's tokens are those of its pieces, one
after the other.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from interp.files import write_bytes

PAD, BOS, UNKNOWN = "<pad>", "<bos>", "<unk>"
SPECIAL = {"pad_token": PAD, "bos_token": BOS, "unk_token": UNKNOWN}


def build_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Tokenizer whose vocabulary is every word and mark of ``texts``, sorted, after the three
    special tokens.
    """
    split = _splitter()
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    vocabulary = {word: i for i, word in enumerate([PAD, BOS, UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.WordPiece(
        prefix="##", cleanup=True
    )  # joins by spaces, none before punctuation
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return tokenizer


def split_words(text: str) -> list[str]:
    """The words and marks that become tokens."""
    return [word for word, _ in _splitter().pre_tokenize_str(text)]


def _splitter() -> pre_tokenizers.Sequence:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the three files from which ``transformers.AutoTokenizer`` loads the tokenizer."""
    for name, content in tokenizer_files(tokenizer).items():
        write_bytes(folder / name, content)


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Contents of the three files of ``save_tokenizer``, by name."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "special_tokens_map.json": (json.dumps(SPECIAL, indent=2) + "\n").encode(),
    }


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in ``folder``.

    Raises:
        FileNotFoundError, ValueError: tokenizer.json is missing or damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer.json in {folder}; copy the run folder again")
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(f"{path} is damaged ({error}); copy it again") from None
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in SPECIAL.values() if token not in vocabulary]:
        raise ValueError(f"{path} has no token {missing[0]}; copy it again")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ValueError(f"{path} numbers its tokens with gaps, or two alike; copy it again")
    if not isinstance(tokenizer.pre_tokenizer, pre_tokenizers.Sequence):
        raise ValueError(f"{path} does not split texts as a run's tokenizer does; copy it again")
    return tokenizer


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """Digest of the mapping from tokens to ids: facts of one vocabulary mean nothing in another."""
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without ``<bos>``.

    Raises:
        ValueError: a word is not in the vocabulary; the message quotes it.
    """
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    unknown = tokenizer.token_to_id(UNKNOWN)
    for text, tokens in zip(texts, ids):
        if unknown in tokens:
            known = tokenizer.get_vocab()
            words = [
                word
                for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)
                if word not in known
            ]
            raise ValueError(
                f"{text!r} holds {', '.join(map(repr, words))}, not in the vocabulary; use the "
                "run's own words"
            )
    return ids
