"""What a result depends on is in its key."""

import json
from dataclasses import asdict, fields, replace
from hashlib import sha256

import pytest

from interp.results.request import Request, file_name, question_of

REQUEST = Request(
    step=600, site="z", checkpoint="c", run="r", facts="f", options={"by": "role", "n": (0, 2)},
    made_from={"corruption": "swap"}, device="cpu", precision="fp32", matmul_precision="highest",
    default_dtype="torch.float32", versions={"torch": "2.13"}, source="s",
)  # fmt: skip


def other(value):
    if isinstance(value, dict):
        return value | {"more": None}
    return value + (1 if isinstance(value, int) else "'")


@pytest.mark.parametrize("field", [field.name for field in fields(Request)])
def test_every_field_is_in_the_name_of_the_file_and_in_the_record(field):
    changed = replace(REQUEST, **{field: other(getattr(REQUEST, field))})
    assert changed.file_name != REQUEST.file_name and changed.json != REQUEST.json


@pytest.mark.parametrize("field", [field.name for field in fields(Request)])
def test_a_question_is_all_but_step_site_and_checkpoint(field):
    changed = replace(REQUEST, **{field: other(getattr(REQUEST, field))})
    same = changed.question == REQUEST.question
    assert same == (field in ("step", "site", "checkpoint"))


def test_a_file_is_named_by_step_site_and_a_digest_of_the_request():
    text = json.dumps(asdict(REQUEST), sort_keys=True)
    assert REQUEST.file_name == f"step-000600.z.{sha256(text.encode()).hexdigest()[:10]}.nc"


def test_a_recorded_request_has_the_same_name_and_question_whatever_the_order_of_its_keys():
    recorded = dict(reversed(json.loads(REQUEST.json).items()))
    recorded["options"] = dict(reversed(recorded["options"].items()))
    assert file_name(recorded) == REQUEST.file_name
    assert question_of(recorded) == json.loads(json.dumps(REQUEST.question))
