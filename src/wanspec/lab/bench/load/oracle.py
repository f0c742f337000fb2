"""What every answer must say: plain target decoding, computed here, with the same model, before any load is sent."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.bundled_pair import load_bundled, load_bundled_tokenizer
from wanspec.errors import ConfigError
from wanspec.lab.bench.load.levels import LoadConfig, Question, questions_of
from wanspec.serving.engine import check_request
from wanspec.serving.model_runner import decode_plainly

SHOWN_CHARACTERS = 24
"""Of a text that is wrong, from the first difference on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The answer to a question."""

    text: str
    finish_reason: str
    ends: tuple[int, ...]
    """How many characters are there after each token."""

    def tokens_in(self, characters: int) -> int:
        """How many tokens a beginning of the text stands for."""
        return bisect_right(self.ends, characters)


class Oracle:
    """Every answer, by question."""

    def __init__(self, expected: Mapping[Question, Expected]) -> None:
        """`expected` is empty where nobody knows what the model would write."""
        self._expected = expected

    @property
    def knows(self) -> bool:
        """Whether there is anything to compare with."""
        return bool(self._expected)

    def of(self, question: Question) -> Expected | None:
        """What is to be written; None: nobody knows."""
        return self._expected.get(question)

    def complaint(self, question: Question, text: str, finish_reason: str | None) -> str:
        """What is wrong with an answer, or, where `finish_reason` is None, with the beginning of one; empty: nothing."""
        expected = self._expected.get(question)
        if expected is None:
            return ""
        wanted = expected.text if finish_reason is not None else expected.text[: len(text)]
        if text != wanted:
            pairs = zip(text, wanted, strict=False)
            at = next((place for place, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(text), len(wanted)))
            shown = slice(at, at + SHOWN_CHARACTERS)
            return f"differs from plain target decoding at character {at}: {text[shown]!r}, not {wanted[shown]!r}"
        if finish_reason not in {None, expected.finish_reason}:
            return f"ended with {finish_reason!r}, not {expected.finish_reason!r}"
        return ""


def compute_answers(config: LoadConfig) -> Iterator[tuple[Question, Expected]]:
    """Ask the bundled target every question. Raises ConfigError on a prompt that it cannot continue."""
    target, tokenizer = load_bundled("target"), load_bundled_tokenizer()
    prompts = [tokenizer.encode(text, reads_controls=True) for text in config.prompts]
    for index, prompt in enumerate(prompts):
        try:
            check_request(target.info, prompt, max_tokens=config.max_tokens)
        except ConfigError as error:
            raise ConfigError(f"prompt {index}: {error}") from error
    for question in questions_of(config):
        sampling = SamplingParams(temperature=question.temperature, seed=question.seed)
        stream, text, ends, token = tokenizer.stream(), "", list[int](), None
        for token in decode_plainly(target, prompts[question.prompt_index], max_tokens=config.max_tokens, sampling=sampling):
            text += stream.push([token])
            ends.append(len(text))
        text += stream.finish()
        reason = "stop" if token in target.info.end_tokens else "length"
        yield question, Expected(text=text, finish_reason=reason, ends=tuple(ends))
