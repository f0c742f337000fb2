"""GGUF files by spec: what cannot be run is refused before anybody asks it anything."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from wanspec.engines.bundled_pair import bundled_info, load_bundled_tokenizer
from wanspec.engines.llamacpp import library
from wanspec.engines.llamacpp.gguf_export import write_gguf
from wanspec.engines.registry import load_backend, load_tokenizer
from wanspec.errors import ConfigError


def test_a_missing_binding_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    library.llama_cpp.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ConfigError, match=r"not installed \(.*\): pip install '\.\[llamacpp\]'"):
        load_backend("llamacpp:model.gguf")
    library.llama_cpp.cache_clear()


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp")
    path = tmp_path_factory.mktemp("models") / "draft.gguf"
    write_gguf("draft", path)
    return path


def test_a_file_says_about_itself_what_the_bundled_model_says(draft: Path) -> None:
    assert load_backend(f"llamacpp:{draft}").info == replace(bundled_info("draft"), name="draft")
    assert load_backend(f"llamacpp:{draft},context=300").info.context_length == 300


def test_its_tokenizer_is_the_one_that_it_was_written_with(draft: Path) -> None:
    ours, own = load_bundled_tokenizer(), load_tokenizer(f"llamacpp:{draft}")
    for text in ("def parse(line):\n    return größe  # <|endoftext|> 'tis 12345 \t\u3042\x00", " ", "", "\n\n\n  x"):
        tokens = ours.encode(text)
        assert own.encode(text) == tokens
        assert own.decode(tokens) == text
    assert own.control_name(0) == ours.control_name(0) == "<|endoftext|>"
    assert own.control_name(50) is None
    assert own.token_bytes([0]) == b""
    stream = own.stream()
    assert "".join(stream.push([token]) for token in own.encode("größe")) + stream.finish() == "größe"


def test_a_text_begins_as_llama_cpp_itself_has_it(draft: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    key = b"tokenizer.ggml.add_bos_token\x07\0\0\0"
    for adds in (b"\0", b"\x01"):
        path = tmp_path / "beginning.gguf"
        path.write_bytes(draft.read_bytes().replace(key + b"\0", key + adds))
        theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        ours = load_tokenizer(f"llamacpp:{path}")
        for text in ("def f(x):", ""):
            assert ours.encode(text) == theirs.tokenize(text.encode(), add_bos=True, special=False)
        assert len(ours.encode("")) == adds[0]


@pytest.mark.parametrize(("options", "threads"), [("", 2), (",threads=1", 1)])
def test_a_model_says_where_it_is_run(draft: Path, options: str, threads: int) -> None:
    residence = load_backend(f"llamacpp:{draft}{options}", threads=2).info.residence
    assert residence is not None
    assert (residence.device, residence.precision, residence.threads) == ("cpu", "all F32", threads)
    assert 4e6 < residence.weight_bytes < draft.stat().st_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("speed=2", "no option 'speed'; use gpu_layers, sessions, leaves, context, threads"),
        ("sessions=0", "sessions is 0; it is a whole number from 1 to 128"),
        ("threads=many", "'many' is not a number"),
        ("leaves=1.5", "leaves is 1.5; it is a whole number from 0 to 255"),
        ("context=1025", "a context of 1025 tokens, the model is made for 1024; lower context="),
        ("sessions=16,leaves=16", "need 272 sequence ids, llama.cpp has 256; lower sessions= or leaves="),
    ],
)
def test_a_wrong_option_is_refused_with_what_would_be_right(draft: Path, options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_backend(f"llamacpp:{draft},{options}")


def test_a_cache_that_no_machine_has_room_for_is_refused(draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda _: 1 << 10)
    with pytest.raises(ConfigError, match=r"takes 0\.0 GiB, this machine has 0\.0; lower context= or sessions="):
        load_backend(f"llamacpp:{draft}")


def test_a_missing_file_is_named(draft: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.gguf: No such file or directory; name a GGUF file"):
        load_backend(f"llamacpp:{draft.parent / 'nowhere.gguf'}")


@pytest.mark.usefixtures("draft")
def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigError, match="is no GGUF file"):
        load_backend(f"llamacpp:{tmp_path / 'model.gguf'}")


@pytest.mark.parametrize("share", [0.001, 0.01, 0.5, 0.99])
def test_half_a_download_is_refused(draft: Path, tmp_path: Path, share: float) -> None:
    data = draft.read_bytes()
    (tmp_path / "half.gguf").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ConfigError, match=r"half\.gguf cannot be loaded \((?!llama.cpp does not say).*is it all there"):
        load_backend(f"llamacpp:{tmp_path / 'half.gguf'}")


def test_an_architecture_that_llama_cpp_does_not_know_is_refused(draft: Path, tmp_path: Path) -> None:
    data = draft.read_bytes().replace(
        b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama", b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0lamas"
    )
    (tmp_path / "odd.gguf").write_bytes(data)
    with pytest.raises(ConfigError, match="unknown model architecture: 'lamas'"):
        load_backend(f"llamacpp:{tmp_path / 'odd.gguf'}")
