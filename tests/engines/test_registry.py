"""Backends by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from wanspec.engines.registry import load_backend, load_tokenizer
from wanspec.engines.scripted import ScriptedBackend
from wanspec.errors import ConfigError


def test_bundled_models_are_found() -> None:
    assert load_backend("bundled:draft", threads=1).info.name == "wanspec-bundled-draft"


def test_a_scripted_pair_has_one_tokenizer() -> None:
    target, draft = load_backend("scripted:target,seed=7"), load_backend("scripted:draft,seed=7,disagreement=0.5,vocabulary=64")
    assert isinstance(draft, ScriptedBackend)
    assert draft.info.name == "scripted-7-0.5"
    assert target.info.tokenizer_fingerprint == draft.info.tokenizer_fingerprint


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpt-9", "'gpt-9'; use one of bundled:target, bundled:draft, scripted:target, scripted:draft"),
        ("bundled:medium", "no model 'bundled:medium'"),
        ("bundled:draft,threads=2", "take no options"),
        ("scripted:draft,speed=2", "no option 'speed'; use vocabulary, seed, context, disagreement"),
        ("scripted:draft,seed", "write option=value"),
        ("scripted:draft,seed=x", "'x' is not a number"),
        ("scripted:draft,seed=inf", "'inf' is not a finite number"),
        ("scripted:draft,vocabulary=nan", "'nan' is not a finite number"),
        ("scripted:draft,context=0", "context_length is 0; a scripted model holds 1 to 131072 tokens"),
        ("scripted:draft,context=1e30", "a scripted model holds 1 to 131072 tokens"),
    ],
)
def test_a_wrong_name_is_refused_with_what_would_be_right(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_backend(spec)


def test_each_kind_of_model_has_its_tokenizer() -> None:
    for spec, text in (("bundled:target", "größe = 1"), ("scripted:target,vocabulary=95", "size = 1")):
        tokenizer = load_tokenizer(spec)
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        stream = tokenizer.stream()
        assert "".join(stream.push([token]) for token in tokens) + stream.finish() == text


def test_no_engine_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, wanspec.engines.registry, wanspec.engines.bundled_pair; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
