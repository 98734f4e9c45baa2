"""What a result depends on, as the key under which it is stored.

A result is reused if its request is the same in every field, and computed otherwise: a changed
weight, fact, option, version, setting or line of source makes another request.
"""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256

_OF_ONE_RESULT = ("step", "site", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that determines a result."""

    step: int
    site: str
    """A site of patching, or the name of a question of an analysis."""
    checkpoint: str
    """Digest of the weights."""
    run: str
    """Digest of run.json, which holds the training configuration: which training it was."""
    facts: str
    """Digest of the facts' tensors, texts and names of roles."""
    options: dict
    """All fields of an ``Intervention``, or an analysis's options."""
    made_from: dict
    """Where the facts come from, as given by the caller."""
    device: str
    """Type of device, such as cpu."""
    precision: str
    matmul_precision: str
    default_dtype: str
    versions: dict
    source: str
    """Digest of the source code that computes the result."""

    @property
    def question(self) -> dict:
        """The request without step, site and checkpoint: results of one question form one curve."""
        return question_of(asdict(self))

    @property
    def file_name(self) -> str:
        return file_name(asdict(self))

    @property
    def json(self) -> str:
        return canonical(asdict(self))


def question_of(recorded: dict) -> dict:
    """A recorded request's question."""
    return {key: value for key, value in recorded.items() if key not in _OF_ONE_RESULT}


def file_name(recorded: dict) -> str:
    """Name of the file of a recorded request's result: step, site, and a digest of the request."""
    digest = sha256(canonical(recorded).encode()).hexdigest()[:10]
    return f"step-{recorded['step']:06d}.{recorded['site']}.{digest}.nc"


def canonical(recorded: dict) -> str:
    """The unique JSON text of a request or a question."""
    return json.dumps(recorded, sort_keys=True, allow_nan=False)
