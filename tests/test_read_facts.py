"""Facts of one's own from files, with tokenizers of several kinds."""

import json
import warnings

import pytest
from own_tokenizers import (
    BOS,
    CAPITALS,
    KINDS,
    LANGUAGES,
    ROWS,
    TEMPLATES,
    ids_of,
    rows_of,
    trained,
    write_rows,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from interp.data.own_facts import read_facts

TOKENIZERS = {kind: trained(kind) for kind in KINDS}
LEADING = {"byte-level with BOS": [BOS], "Unigram": [BOS]}


def naive(kind, template, subject, answer):
    """Ids, roles and answer ids of a fact, word by word: these tokenizers split at blanks."""
    tokenizer, ids, roles = TOKENIZERS[kind], [], []
    for token in LEADING.get(kind, []):
        ids.append(tokenizer.token_to_id(token))
        roles.append("bos")
    before, after = template.split("{subject}")
    words = [(w, False) for w in before.split()] + [(w, True) for w in subject.split()]
    words += [(w, False) for w in after.split()]
    pieces = ids_of(tokenizer, kind, [word for word, _ in words], first=True)
    named = []
    for (_, is_subject), piece in zip(words, pieces):
        for token in piece:
            if is_subject and tokenizer.id_to_token(token) not in "Ġ▁":
                named.append(len(ids))
            ids.append(token)
            roles.append("cue")
    for at in named:
        roles[at] = "name_middle"
    roles[named[0]] = "name_first"
    roles[named[-1]] = "name_last"
    answers = [i for p in ids_of(tokenizer, kind, answer.split(), first=False) for i in p]
    if tokenizer.id_to_token(answers[0]) in "Ġ▁":  # the blank alone says nothing of the answer
        ids.append(answers.pop(0))
        roles.append("cue")
    roles[-1] = "final"
    return ids, tuple(roles), answers


@pytest.fixture
def facts(tmp_path):
    """Of each kind of tokenizer, what is read of ``ROWS``."""
    path = write_rows(tmp_path / "mine.csv", ROWS)

    def read(kind, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_facts(path, TOKENIZERS[kind], **options)

    return read


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_answer_and_roles_are_those_of_a_naive_reading_word_by_word(facts, kind):
    found = facts(kind)
    assert len(found) >= 4
    for fact in found:
        text = fact.text
        template = TEMPLATES[text["attribute"]]
        ids, roles, answer = naive(kind, template, text["subject"], text["answer"])
        assert fact.clean.tolist() == ids and fact.roles == roles
        assert fact.answer.tolist() == answer
        ids, roles, answer = naive(
            kind, template, text["corrupted_subject"], text["corrupted_answer"]
        )
        assert fact.corrupted.tolist() == ids and fact.roles == roles
        assert fact.corrupted_answer.tolist() == answer
        table = CAPITALS if text["attribute"] == "capital" else LANGUAGES
        assert table[text["corrupted_subject"]] == text["corrupted_answer"]
        assert ROWS[text["row"] - 1]["subject"] == text["subject"]
        assert text["bos"] == " ".join(LEADING.get(kind, []))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_left_out_exactly_where_no_other_of_its_relation_fits(tmp_path, kind):
    path = write_rows(tmp_path / "mine.csv", ROWS)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = read_facts(path, TOKENIZERS[kind])
    wanted = []
    for number, row in enumerate(ROWS, 1):
        ids, _, answer = naive(kind, row["prompt"], row["subject"], row["answer"])
        for other in ROWS:
            there, _, its = naive(kind, row["prompt"], other["subject"], other["answer"])
            same = other["relation"] == row["relation"] and other is not row
            if same and len(ids) == len(there) and its[0] != answer[0]:
                wanted.append(number)
                break
    assert found.texts["row"].tolist() == wanted and 0 < len(wanted) < len(ROWS)
    left = len(ROWS) - len(wanted)
    (text,) = [str(x.message) for x in said]
    assert f"{len(wanted)} facts are taken; {left} of {len(ROWS)} rows can't be used: row" in text
    assert "no twin: none of the" in text


def test_a_subject_of_one_token_is_name_last_and_may_begin_the_prompt(tmp_path):
    rows = [
        {"prompt": "Paris is in", "subject": "Paris", "answer": "France"},
        {"prompt": "Rome is in", "subject": "Rome", "answer": "Italy"},
    ]
    words = ["Paris", "Rome", "is", "in", "France", "Italy"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    facts = read_facts(write_rows(tmp_path / "mine.csv", rows), tokenizer)
    assert [fact.roles for fact in facts] == [("name_last", "cue", "final")] * 2
    assert facts[0].clean.tolist() == [0, 2, 3] and facts[0].corrupted.tolist() == [1, 2, 3]
    assert facts[0].answer.tolist() == [4] and facts[0].corrupted_answer.tolist() == [5]
    assert facts.texts.bos.tolist() == ["", ""] and facts.texts.attribute.tolist() == ["", ""]


def with_twin(**changes):
    return {
        "prompt": "The capital city of {subject} is called",
        "subject": "France",
        "answer": "Paris",
        "counterfactual_subject": "Spain",
        "counterfactual_answer": "Madrid",
    } | changes


def tokens_of(kind, text):
    return "|".join(TOKENIZERS[kind].encode(text).tokens)


def test_all_rows_whose_twin_is_not_aligned_are_listed_with_both_tokenizations(tmp_path):
    kind = "byte-level"
    rows = [
        with_twin(),
        with_twin(counterfactual_subject="Papua New Guinea"),
        with_twin(counterfactual_answer="Pa"),
        with_twin(counterfactual_subject="France"),
        with_twin(counterfactual_prompt="Italy is where most people speak"),
    ]
    with pytest.raises(ValueError, match=r"4 of 5 rows can't be used: row 2: ") as refused:
        read_facts(write_rows(tmp_path / "mine.csv", rows), TOKENIZERS[kind])
    said = str(refused.value)
    short = tokens_of(kind, "The capital city of France is called")
    long = tokens_of(kind, "The capital city of Papua New Guinea is called")
    counts = [text.count("|") + 1 for text in (short, long)]
    assert f"row 2: {short} has {counts[0]} tokens, its twin {long} {counts[1]}" in said
    assert "row 3: the answers 'Paris' and 'Pa' begin with the same token" in said
    assert "row 4: the two prompts are the same" in said
    assert "row 5: 'Spain' does not stand in the prompt 'Italy is" in said and "row 1" not in said


def test_more_than_ten_rows_are_listed_by_number_only(tmp_path):
    rows = [with_twin(counterfactual_subject="Papua New Guinea")] * 60
    with pytest.raises(ValueError, match="60 of 60 rows can't be used") as refused:
        read_facts(write_rows(tmp_path / "mine.csv", rows), TOKENIZERS["byte-level"])
    said = str(refused.value)
    assert said.count("its twin") == 10 and "; and rows 11, 12, " in said
    assert said.endswith("40 and more")


def test_a_subject_at_another_place_in_the_twin_is_not_aligned(tmp_path):
    words = {w: i for i, w in enumerate(["now", "Ann", "Bob", "is", "in", "Rome", "Oslo"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    row = {
        "prompt": "now {subject} is in", "subject": "Ann", "answer": "Rome",
        "counterfactual_prompt": "{subject} is now in", "counterfactual_subject": "Bob",
        "counterfactual_answer": "Oslo",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"row 1: the subject has other places in now\|Ann\|is"):
        read_facts(write_rows(tmp_path / "mine.csv", [row]), tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": ""}, "row 1: answer is empty; write at least one word"),
        ({"counterfactual_answer": ""}, "row 1: counterfactual_answer is empty"),
        ({"counterfactual_subject": ""}, "'Madrid' without a prompt that it is the answer of"),
        ({"prompt": "{subject} {subject} is"}, "{subject} stands 2 times in"),
        ({"prompt": "France of France is"}, r"'France' stands 2 times in .* write {subject} where"),
        (
            {"prompt": "the France is", "subject": "Fran"},
            "the token 'ĠFrance' holds an end of the s",
        ),
        ({"prompt": "The city of {subject}"}, "'France' ends the prompt"),
        ({"answer": "<unk>"}, "holds <unk>, which is no word"),
        ({"notes": "x"}, "has a column 'notes', which is not understood; write the columns prompt"),
        ({"clean_prompt": "x"}, "has a column 'prompt' 2 times"),
        (
            {"counterfactual_prompt": "{subject} is", "counterfactual_subject": ""},
            "counterfactual_prompt is a template; give counterfactual_subject",
        ),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_used_is_refused_with_its_reason(tmp_path, changes, message):
    path = write_rows(tmp_path / "mine.csv", [with_twin(**changes)])
    with pytest.raises(ValueError, match=message):
        read_facts(path, TOKENIZERS["byte-level"])


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_a_word_that_a_tokenizer_does_not_know_is_quoted(tmp_path, kind):
    path = write_rows(tmp_path / "mine.csv", [with_twin(answer="Ω")])
    with pytest.raises(ValueError, match=r"row 1: 'The capital.*Ω' holds ' ?Ω', not in the vocab"):
        read_facts(path, TOKENIZERS[kind])


def test_a_prompt_that_ends_inside_a_token_is_refused_with_both_tokenizations(tmp_path):
    """A tokenizer that merges across words."""
    vocabulary = {c: i for i, c in enumerate("abcd ")} | {" c": 5, "b c": 6}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(" ", "c"), ("b", " c")]))
    rows = [{"prompt": "a db", "subject": "a", "answer": "cd"}]
    with pytest.raises(
        ValueError,
        match=r"'a db' ends inside the token 'b c': a\| \|d\|b c\|d with .*\| \|d\|b alo",
    ):
        read_facts(write_rows(tmp_path / "mine.csv", rows), tokenizer)


def test_a_token_that_is_the_blank_alone_belongs_to_the_prompt(tmp_path):
    vocabulary = {c: i for i, c in enumerate("abcd ")}
    rows = [
        {"prompt": "{subject} a", "subject": "b", "answer": "c"},
        {"prompt": "{subject} a", "subject": "d", "answer": "dc"},
    ]
    facts = read_facts(write_rows(tmp_path / "m.csv", rows), Tokenizer(models.BPE(vocabulary, [])))
    assert facts[0].clean.tolist() == [1, 4, 0, 4] and facts[0].answer.tolist() == [2]
    assert facts[0].roles == ("name_last", "cue", "cue", "final")
    assert facts[1].answer.tolist() == [3, 2]


def test_a_blank_that_a_tokenizer_puts_in_front_is_not_the_subjects(tmp_path):
    vocabulary = {c: i for i, c in enumerate("abcd▁")}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    rows = [
        {"prompt": "{subject} c", "subject": "ab", "answer": "c"},
        {"prompt": "{subject} c", "subject": "bb", "answer": "d"},
    ]
    facts = read_facts(write_rows(tmp_path / "mine.csv", rows), tokenizer)
    assert facts[0].clean.tolist() == [4, 0, 1, 4, 2, 4] and facts[0].answer.tolist() == [2]
    assert facts[0].roles == ("cue", "name_first", "name_last", "cue", "cue", "final")


def test_padding_and_truncation_of_a_tokenizer_are_not_used(tmp_path, facts):
    path = write_rows(tmp_path / "mine.csv", [with_twin()])
    wanted = read_facts(path, TOKENIZERS["byte-level"])
    tokenizer = Tokenizer.from_str(TOKENIZERS["byte-level"].to_str())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    found = read_facts(path, tokenizer)
    assert found[0].clean.tolist() == wanted[0].clean.tolist()
    assert tokenizer.truncation and tokenizer.padding  # the caller's own is left as it is


def test_n_facts_are_spread_over_relations_and_the_seed_decides(facts):
    few = facts("byte-level", n=4)
    assert few.texts.attribute.value_counts().to_dict() == {"capital": 2, "language": 2}
    assert few.texts["row"].is_monotonic_increasing
    same, other = facts("byte-level", n=4), facts("byte-level", n=4, seed=1)
    assert same.texts.equals(few.texts) and not other.texts.equals(few.texts)
    assert len(facts("byte-level", n=500)) == len(facts("byte-level"))
    only = facts("byte-level", relations=("language",))
    assert set(only.texts.attribute) == {"language"}
    with pytest.raises(ValueError, match="no fact of the relation 'currency'; it has capital, la"):
        facts("byte-level", relations=("currency",))


def test_no_fact_with_a_twin_is_an_error_that_lists_them(tmp_path):
    rows = [row for row in ROWS if row["subject"] in ("France", "Papua New Guinea")][:2]
    with pytest.raises(ValueError, match=r"2 of 2 rows can't be used: row .: no twin: none of"):
        read_facts(write_rows(tmp_path / "mine.csv", rows), TOKENIZERS["byte-level"])


def counterfact():
    return [
        {
            "case_id": i,
            "pararel_idx": 7,
            "requested_rewrite": {
                "prompt": row["prompt"].replace("{subject}", "{}"),
                "relation_id": row["relation"],
                "target_new": {"str": "Oslo", "id": "Q585"},
                "target_true": {"str": row["answer"], "id": "Q1"},
                "subject": row["subject"],
            },
            "paraphrase_prompts": ["Its capital is"],
            "neighborhood_prompts": [],
            "attribute_prompts": [],
            "generation_prompts": [],
        }
        for i, row in enumerate(ROWS)
    ]


def known_1000():
    return [
        {
            "known_id": i,
            "subject": row["subject"],
            "attribute": row["answer"],
            "template": " ".join(row["prompt"].replace("{subject}", "{}").split()[:-1]),
            "prediction": f" {row['answer']}.",
            "prompt": row["prompt"].replace("{subject}", row["subject"]),
            "relation_id": row["relation"],
        }
        for i, row in enumerate(ROWS)
    ]


def lre():
    return [
        {
            "name": name,
            "prompt_templates": [template.replace("{subject}", "{}"), "{} is"],
            "prompt_templates_zs": [],
            "properties": {"symmetric": False},
            "samples": [
                {"subject": row["subject"], "object": row["answer"]}
                for row in ROWS
                if row["relation"] == name
            ],
        }
        for name, template in TEMPLATES.items()
    ]


@pytest.mark.parametrize("published", [counterfact, known_1000, lre])
def test_a_published_set_reads_as_the_csv_with_its_columns(tmp_path, facts, published):
    path = tmp_path / "published.json"
    path.write_text(json.dumps(published()))
    with pytest.warns(UserWarning, match="rows can't be used"):
        found = read_facts(path, TOKENIZERS["byte-level"])
    wanted = facts("byte-level")
    assert found.texts.equals(wanted.texts) and found.clean.equal(wanted.clean)
    assert found.answers.equal(wanted.answers)


def test_one_relation_of_lre_is_a_file_of_its_own(tmp_path):
    path = tmp_path / "capital.json"
    path.write_text(json.dumps(lre()[0]))
    with pytest.warns(UserWarning):
        found = read_facts(path, TOKENIZERS["byte-level"], n=3)
    assert set(found.texts.attribute) == {"capital"}


def test_an_entry_of_a_published_set_that_cannot_be_used_is_left_out(tmp_path):
    entries = known_1000()
    entries[0]["prompt"] = "It is where most people speak"
    path = tmp_path / "published.json"
    path.write_text(json.dumps(entries))
    with pytest.warns(UserWarning, match=r"row 1: 'France' does not stand in the prompt 'It is wh"):
        found = read_facts(path, TOKENIZERS["byte-level"])
    assert 1 not in found.texts["row"].values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [{"question": "?", "gold": "!"}],
            "has the keys gold, question, which fit no known",
        ),
        (["text"], r"holds \['text'\]; give a list of objects: CounterFact has requested_rewrite"),
        ([], "give a list of objects"),
        ([known_1000()[0] | {"language": "en"}], "has a key 'language', which is not understood"),
        ([{"requested_rewrite": {"prompt": "{} is"}}], "without subject, target_true; it needs"),
        ([{"requested_rewrite": "x"}], "has an entry 'x'; it needs"),
        ([known_1000()[0] | {"subject": 3}], "row 1: 3 is no text; write text"),
        (lre()[0] | {"samples": []}, "a relation without templates or samples"),
        (
            lre()[0] | {"prompt_templates": ["{} or {}"]},
            r"a template '{} or {}'; write {} in it",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_json_of_no_known_format_is_refused_by_its_keys(tmp_path, content, message):
    path = tmp_path / "published.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_facts(path, TOKENIZERS["byte-level"])


def test_a_damaged_or_missing_json_is_refused(tmp_path):
    path = tmp_path / "published.json"
    with pytest.raises(FileNotFoundError, match=r"no file .*published.json; give a CSV, or JSON"):
        read_facts(path, TOKENIZERS["byte-level"])
    path.write_text("[{")
    with pytest.raises(ValueError, match="can't be read as JSON"):
        read_facts(path, TOKENIZERS["byte-level"])


def test_facts_of_a_run_written_to_a_csv_come_back_token_by_token(suite, tmp_path):
    drawn = suite.facts(24, seed=5)
    found = suite.read_facts(write_rows(tmp_path / "mine.csv", rows_of(suite, 24, seed=5)))
    for name in ("clean", "corrupted", "lengths", "roles", "answers", "corrupted_answers"):
        assert getattr(found, name).equal(getattr(drawn, name)), name
    assert found.texts.attribute.tolist() == drawn.texts.attribute.tolist()
