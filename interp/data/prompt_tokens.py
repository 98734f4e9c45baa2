"""A prompt and its answer as the tokens of any Hugging Face tokenizer, with the role of each token.

Prompt and answer are tokenized together, as running text with one space between them, and split by
the characters that each token stands for. So the answer begins as it would in a text (``ĠParis``,
``▁Paris``), and the subject is where its characters are, whatever tokens it has elsewhere. Special
tokens that the tokenizer's post-processor puts in front are kept (``<bos>``), those that it puts at
the end are left out.
"""

import json
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer, models

from interp.data.fact_rows import Prompt

NAME_ROLES = ("name_first", "name_middle", "name_last")


@dataclass(frozen=True)
class PromptTokens:
    """Token ids of a prompt, up to just before its answer, and of the answer."""

    prompt: list[int]
    answer: list[int]
    roles: list[str]
    """Of each token of the prompt: bos, name_first, name_middle, name_last, cue, final; a subject
    of one token is ``name_last`` alone. Of a prompt without a subject all that is not bos or final
    is cue."""
    shown: str
    """The prompt's tokens as the tokenizer writes them."""
    leading: str
    """The special tokens in front; empty if there are none."""

    @property
    def n_subject(self) -> int:
        return sum(role in NAME_ROLES for role in self.roles)


class OwnTokenizer:
    """A tokenizer without padding and truncation, and what it takes for unknown and special."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.padding or tokenizer.truncation:
            tokenizer = Tokenizer.from_str(tokenizer.to_str())
            tokenizer.no_padding()
            tokenizer.no_truncation()
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special = {i: token.content for i, token in added.items() if token.special}
        self.unknown = _unknown(tokenizer)

    def tokens(self, prompt: Prompt, answer: str) -> PromptTokens:
        """Tokens of ``prompt`` and ``answer``.

        Raises:
            ValueError: a word is unknown, a special token stands in the text, a token holds both an
                end of the prompt or subject and more, or the subject is the end of the prompt.
        """
        text, boundary = f"{prompt.text} {answer}", len(prompt.text)
        encoding = self.tokenizer.encode(text)
        mask = encoding.special_tokens_mask
        start = mask.index(0) if 0 in mask else len(mask)
        own = [i for i in range(start, len(mask)) if not mask[i]]
        self._check_known(encoding, own, text)
        end = self._end_of_prompt(encoding, own, text, boundary)
        ids, n_own = encoding.ids, len(own[:end])
        if end == len(own):
            raise ValueError(f"answer {answer!r} has no token of its own; write at least one word")
        roles = ["cue"] * n_own
        if prompt.subject:
            at = self._subject(encoding, own[:end], prompt, text)
            roles[at[0]], roles[at[-1]] = NAME_ROLES[0], NAME_ROLES[2]
            roles[at[0] + 1 : at[-1]] = [NAME_ROLES[1]] * (len(at) - 2)
        if roles[-1] in NAME_ROLES:
            raise ValueError(
                f"{prompt.subject!r} ends the prompt {prompt.text!r}; at least one word must come "
                "between the subject and the answer"
            )
        roles[-1] = "final"
        return PromptTokens(
            prompt=[ids[i] for i in (*range(start), *own[:end])],
            answer=[ids[i] for i in own[end:]],
            roles=["bos"] * start + roles,
            shown="|".join(encoding.tokens[i] for i in (*range(start), *own[:end])),
            leading=" ".join(encoding.tokens[:start]),
        )

    def _check_known(self, encoding: Encoding, own: list[int], text: str) -> None:
        for i in own:
            start, end = encoding.offsets[i]
            if encoding.ids[i] == self.unknown:
                raise ValueError(
                    f"{text!r} holds {text[start:end]!r}, not in the vocabulary; use words that "
                    "the tokenizer knows"
                )
            if encoding.ids[i] in self.special:
                raise ValueError(
                    f"{text!r} holds {self.special[encoding.ids[i]]}, which is no word (what the "
                    "tokenizer puts before each prompt is there already); leave it out"
                )

    def _end_of_prompt(self, encoding: Encoding, own: list[int], text: str, boundary: int) -> int:
        """How many of the tokens ``own`` are the prompt's. A token that is the space before the
        answer alone is: it comes before every answer.
        """
        for n, i in enumerate(own):
            start, end = self._visible(encoding, i, text)
            if start >= end or end <= boundary:
                continue
            if start < boundary:
                alone = self.tokenizer.encode(text[:boundary], add_special_tokens=False).tokens
                together = [encoding.tokens[i] for i in own]
                raise ValueError(
                    f"the prompt {text[:boundary]!r} ends inside the token {encoding.tokens[i]!r}: "
                    f"{'|'.join(together)} with its answer, {'|'.join(alone)} alone; end the "
                    "prompt where a word ends"
                )
            return n
        return len(own)

    def _subject(self, encoding: Encoding, own: list[int], prompt: Prompt, text: str) -> range:
        """Numbers among ``own`` of the subject's tokens."""
        first, last = len(prompt.before), len(prompt.before) + len(prompt.subject)
        there = []
        for n, i in enumerate(own):
            start, end = self._visible(encoding, i, text)
            if start >= end or end <= first or start >= last:
                continue
            if start < first or end > last:
                tokens = "|".join(encoding.tokens[i] for i in own)
                raise ValueError(
                    f"the token {encoding.tokens[i]!r} holds an end of the subject "
                    f"{prompt.subject!r} and more ({tokens}); write the subject as whole tokens"
                )
            there.append(n)
        if not there:
            raise ValueError(f"the subject {prompt.subject!r} has no token of its own")
        return range(there[0], there[-1] + 1)

    def _visible(self, encoding: Encoding, i: int, text: str) -> tuple[int, int]:
        """The characters of a token without the blanks around them; none of a token that is a
        blank, also of one that the tokenizer put in front of the text.
        """
        start, end = encoding.offsets[i]
        if not self.tokenizer.decode([encoding.ids[i]], skip_special_tokens=False).strip():
            return start, start
        piece = text[start:end]
        return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


def _unknown(tokenizer: Tokenizer) -> int | None:
    """Id of the token for what is not in the vocabulary; None if there is none."""
    if isinstance(tokenizer.model, models.Unigram):
        return json.loads(tokenizer.to_str())["model"]["unk_id"]
    unknown = tokenizer.model.unk_token
    return None if unknown is None else tokenizer.token_to_id(unknown)
