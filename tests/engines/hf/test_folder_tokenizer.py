"""Tokenizers of folders: byte-level and SentencePiece's, what begins a text, and chats by the folder's own template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from wanspec.engines.hf.tokenizer import load_folder_tokenizer
from wanspec.engines.tokenizer import JsonTokenizer, Turn, byte_alphabet
from wanspec.errors import ConfigError

BEGIN, END, TURN = "<|begin|>", "<|end|>", "<|turn|>"
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}<|turn|>assistant: "


def byte_level(*, begins: bool = True) -> tokenizers.Tokenizer:
    """Llama 3's kind: a token per byte, control tokens, and one that a user may write."""
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BEGIN, END, TURN])
    tokenizer.add_tokens([AddedToken("<tool é>", special=False)])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 256)])
    return tokenizer


def sentencepiece() -> tokenizers.Tokenizer:
    """Llama 2's kind: `▁` for a space, one more before the text, bytes where there is no token."""
    letters = {letter: index for index, letter in enumerate(["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "\n"])}
    vocabulary = letters | {f"<0x{byte:02X}>": len(letters) + byte for byte in range(256)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def write(folder: Path, tokenizer: tokenizers.Tokenizer, **settings: object) -> JsonTokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_folder_tokenizer(folder)


@given(text=st.text().filter(lambda text: "▁" not in text))  # which SentencePiece takes for a space
def test_text_survives_both_kinds(text: str) -> None:
    for tokenizer in (byte_level(), sentencepiece()):
        ours = JsonTokenizer(tokenizer.to_str())
        assert ours.decode(ours.encode(text)) == text


def test_a_sentencepiece_text_comes_a_byte_at_a_time_and_agrees_with_the_library() -> None:
    library = sentencepiece()
    ours = JsonTokenizer(library.to_str())
    tokens = ours.encode_text("a b\né 🙂a")
    assert ours.decode(tokens) == library.decode(tokens) == "a b\né 🙂a"
    stream = ours.stream()
    pieces = [stream.push([token]) for token in tokens]
    assert "".join(pieces) + stream.finish() == " a b\né 🙂a"
    assert "" in pieces


def test_control_tokens_are_no_text_and_other_added_tokens_are() -> None:
    ours = JsonTokenizer(byte_level().to_str())
    assert ours.control_tokens == {BEGIN: 256, END: 257, TURN: 258}
    assert ours.decode([256, *ours.encode_text("x<|end|><tool é>"), 257]) == "x<|end|><tool é>"
    assert ours.encode_text("<tool é>") == [259]
    assert ours.vocabulary_size == 260


def test_a_text_begins_with_all_that_the_post_processor_puts_before_it_whatever_the_settings_name(tmp_path: Path) -> None:
    several = byte_level()
    several.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} {TURN} $A {END}", special_tokens=[(BEGIN, 256), (END, 257), (TURN, 258)]
    )
    assert write(tmp_path, byte_level(), bos_token=BEGIN).encode("a") == [256, 97]
    assert write(tmp_path, byte_level()).encode("a") == [256, 97]
    assert write(tmp_path, several, bos_token=BEGIN).encode("a") == [256, 258, 97]  # and no end: a text goes on
    assert write(tmp_path, byte_level(begins=False), bos_token=BEGIN).encode("a") == [97]
    assert write(tmp_path, sentencepiece()).encode("a") == [1, 6]


@pytest.mark.parametrize("adds", [True, False, None])
@pytest.mark.parametrize("begins", [True, False])
def test_a_text_begins_as_in_transformers(begins: bool, adds: bool | None, tmp_path: Path) -> None:  # noqa: FBT001
    transformers = pytest.importorskip("transformers")
    settings = {"bos_token": BEGIN, "eos_token": END} | ({} if adds is None else {"add_bos_token": adds})
    ours = write(tmp_path, byte_level(begins=begins), **settings)
    assert ours.encode("a") == transformers.AutoTokenizer.from_pretrained(tmp_path)("a").input_ids


def test_control_tokens_are_named_by_either_file(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": BEGIN}, "eos_token": END}))
    tokenizer = write(tmp_path, byte_level(), chat_template=TEMPLATE)
    assert tokenizer.end_token == 257
    assert (tokenizer.encode_chat([Turn("user", "hi")]) or [])[:2] == [256, 258]
    assert write(tmp_path, byte_level(), added_tokens_decoder={}, eos_token=TURN).end_token == 258
    assert write(tmp_path, byte_level(), added_tokens_decoder={}).end_token is None


def test_a_text_that_begins_as_the_model_wants_it_gets_no_second_beginning(tmp_path: Path) -> None:
    tokenizer = write(tmp_path, byte_level(), bos_token=BEGIN)
    assert tokenizer.encode(f"{BEGIN}a", reads_controls=True) == tokenizer.encode("a")
    assert tokenizer.encode(f"{BEGIN}a").count(256) == 1
    assert tokenizer.encode("a", adds_beginning=False) == tokenizer.encode_text("a")


@pytest.mark.parametrize("place", ["settings", "named", "file"])
def test_a_chat_is_written_by_the_template_of_the_folder(place: str, tmp_path: Path) -> None:
    settings: dict[str, object] = {"bos_token": BEGIN}
    if place == "settings":
        settings["chat_template"] = TEMPLATE
    elif place == "named":
        settings["chat_template"] = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    else:
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = write(tmp_path, byte_level(), **settings)
    text = tokenizer.encode_text
    assert tokenizer.encode_chat([Turn("user", "hi <|end|>")]) == [256, 258, *text("user: hi <|end|>"), 257, 258, *text("assistant: ")]


def test_a_folder_without_a_template_says_so(tmp_path: Path) -> None:
    assert write(tmp_path, byte_level(), bos_token=BEGIN).encode_chat([Turn("user", "hi")]) is None


def test_a_damaged_template_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path.name}: the model's chat template cannot be read"):
        write(tmp_path, byte_level(), bos_token=BEGIN, chat_template="{% for %}")


def test_a_damaged_tokenizer_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=rf"{tmp_path.name}: tokenizer\.json cannot be read"):
        load_folder_tokenizer(tmp_path)


def test_a_template_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match=rf"{tmp_path.name}: chat_template\.jinja is not UTF-8 \(byte 3\)"):
        write(tmp_path, byte_level())


def test_a_tokenizer_whose_tokens_have_no_bytes_is_refused_by_its_kind() -> None:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ConfigError, match="WordPiece is not supported"):
        JsonTokenizer(tokenizer.to_str())
