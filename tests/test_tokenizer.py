import pytest
from transformers import AutoTokenizer

from interp.data.tokenizer import build_tokenizer, encode, save_tokenizer

PIECES = ["As a birth date,", "Mary-Ann O'Brien", "always gives", "14 March 1987", "."]
TEXT = "As a birth date, Mary-Ann O'Brien always gives 14 March 1987."


def test_a_texts_tokens_are_those_of_its_pieces_one_after_the_other():
    tokenizer = build_tokenizer(PIECES)
    assert encode(tokenizer, [TEXT])[0] == [i for ids in encode(tokenizer, PIECES) for i in ids]


def test_a_word_is_one_token_and_every_punctuation_mark_one_of_its_own():
    tokens = build_tokenizer([TEXT, "AT&T (US)..."]).encode(TEXT + " AT&T (US)...").tokens
    assert tokens == [
        "<bos>", "As", "a", "birth", "date", ",", "Mary", "-", "Ann", "O", "'", "Brien", "always",
        "gives", "14", "March", "1987", ".", "AT", "&", "T", "(", "US", ")", ".", ".", ".",
    ]  # fmt: skip


def test_the_vocabulary_is_the_special_tokens_and_then_every_word_in_order():
    assert build_tokenizer(["b a.", "a B"]).get_vocab() == {
        "<pad>": 0, "<bos>": 1, "<unk>": 2, ".": 3, "B": 4, "a": 5, "b": 6,
    }  # fmt: skip


def test_encode_adds_no_bos():
    assert encode(build_tokenizer(["b a."]), ["a b.", "b"]) == [[4, 5, 3], [5]]


def test_decoding_puts_no_space_before_commas_and_full_stops():
    text = "In Rome, Ann works. Oslo."
    tokenizer = build_tokenizer([text])
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_transformers_loads_the_saved_folder_and_gives_the_same_ids(tmp_path):
    tokenizer = build_tokenizer(PIECES)
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded(TEXT).input_ids
    assert ids == tokenizer.encode(TEXT).ids
    assert ids[0] == loaded.bos_token_id == tokenizer.token_to_id("<bos>")
    assert ids.count(loaded.bos_token_id) == 1
    assert (loaded.pad_token, loaded.unk_token) == ("<pad>", "<unk>")
    assert loaded("Zanzibar").input_ids == [loaded.bos_token_id, loaded.unk_token_id]


def test_an_unknown_word_is_quoted_and_a_known_one_is_not():
    tokenizer = build_tokenizer(PIECES)
    with pytest.raises(ValueError, match=r"'always Zanzibar-Ann\.' holds 'Zanzibar', not in the"):
        encode(tokenizer, ["a date", "always Zanzibar-Ann."])
