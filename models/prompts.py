"""Chooses prompts from the held-out files: some lines of a module up to and including the head of a function or a class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import corpus
from wanspec.engines.tokenizer import JsonTokenizer

SHORTEST, LONGEST = 48, 96  # tokens
PER_FILE = 4  # at most, so that a long file does not speak for all


def held_out_texts() -> dict[str, str]:
    """The held-out files by their path below the standard library."""
    return {path.as_posix(): corpus.read(path) for path in corpus.standard_library_files() if corpus.is_held_out(path)}


def training_text() -> str:
    """Everything that the models were trained on."""
    return "\0".join(corpus.read(path) for path in corpus.standard_library_files() if not corpus.is_held_out(path))


def select_prompts(texts: Mapping[str, str], tokenizer: JsonTokenizer, *, count: int) -> list[dict[str, str]]:
    """`count` prompts of SHORTEST to LONGEST tokens, the same ones every time, none of which occurs in the training text."""
    seen = training_text()
    candidates = [{"file": file, "text": text} for file, source in texts.items() for text in beginnings(source, tokenizer)]
    candidates.sort(key=lambda candidate: hashlib.sha256(candidate["text"].encode()).digest())
    chosen: list[dict[str, str]] = []
    for candidate in candidates:
        from_file = sum(other["file"] == candidate["file"] for other in chosen)
        if from_file < PER_FILE and candidate["text"] not in seen and len(chosen) < count:
            chosen.append(candidate)
    return sorted(chosen, key=lambda candidate: candidate["file"])


def beginnings(source: str, tokenizer: JsonTokenizer) -> list[str]:
    """For each `def` or `class` line, that line and as many lines before it as make a prompt of the right length.

    A prompt stops short of the line's end, because the tokenizer joins a line feed with the indentation after it.
    """
    lines = source.splitlines(keepends=True)
    found = []
    for end, line in enumerate(lines, start=1):
        if not line.lstrip().startswith(("def ", "class ")) or not line.rstrip().endswith(":"):
            continue
        for start in range(end - 1, max(end - 24, -1), -1):
            text = "".join(lines[start:end]).rstrip()
            tokens = len(tokenizer.encode(text))
            if tokens > LONGEST:
                break
            if tokens >= SHORTEST and lines[start].strip() and (start == 0 or not lines[start - 1].strip()):
                found.append(text)
                break
    return found
