"""The bundled tokenizer: lossless, and its text comes out whole characters at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wanspec.engines.bundled_pair import bundled_info, held_out_prompts, load_bundled_tokenizer
from wanspec.engines.tokenizer import vocabulary_fingerprint

TOKENIZER = load_bundled_tokenizer()
token_ids = st.lists(st.integers(0, bundled_info("target").vocabulary_size - 1), max_size=30)


@given(st.text())
def test_text_survives_the_round_trip(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(token_ids)
def test_decoding_agrees_with_the_tokenizers_library(tokens: list[int]) -> None:
    assert TOKENIZER.decode(tokens) == TOKENIZER._tokenizer.decode(tokens, skip_special_tokens=True)


@given(token_ids, st.integers(1, 5))
def test_a_stream_gives_the_same_text_in_pieces(tokens: list[int], size: int) -> None:
    stream = TOKENIZER.stream()
    pieces = [stream.push(tokens[start : start + size]) for start in range(0, len(tokens), size)]
    assert "".join(pieces) + stream.finish() == TOKENIZER.decode(tokens)


def test_a_stream_never_gives_half_a_character() -> None:
    text = "naïve 日本語 🙂"
    stream = TOKENIZER.stream()
    pieces = [stream.push([token]) for token in TOKENIZER.encode(text)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces
    assert stream.finish() == ""


def test_half_a_character_at_the_end_is_replaced() -> None:
    stream = TOKENIZER.stream()
    assert stream.push(TOKENIZER.encode("🙂")[:1]) == ""
    assert stream.finish() == "\ufffd"


def test_a_control_token_is_written_only_where_that_is_asked_for() -> None:
    assert 0 not in TOKENIZER.encode("x <|endoftext|> y")
    assert TOKENIZER.encode("x <|endoftext|> y", reads_controls=True) == [*TOKENIZER.encode("x "), 0, *TOKENIZER.encode(" y")]
    assert TOKENIZER.decode([0]) == ""


def test_the_fingerprint_is_that_of_the_models() -> None:
    assert TOKENIZER.fingerprint == bundled_info("draft").tokenizer_fingerprint


def test_the_fingerprint_depends_on_the_vocabulary_and_not_on_its_order() -> None:
    assert vocabulary_fingerprint({"a": 0, "b": 1}) == vocabulary_fingerprint({"b": 1, "a": 0})
    assert vocabulary_fingerprint({"a": 0, "b": 1}) != vocabulary_fingerprint({"a": 1, "b": 0})


def test_the_held_out_prompts_are_of_useful_length() -> None:
    prompts = held_out_prompts()
    assert len(prompts) == len(set(prompts)) == 40
    assert all(48 <= len(TOKENIZER.encode(prompt)) <= 96 for prompt in prompts)
