"""The tokenizer of a model's folder: tokenizer.json, with what the files beside it say of ends and chats."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from wanspec.engines.chat_template import ChatTemplate
from wanspec.engines.hf.folder import Json, find_folder, read_json
from wanspec.engines.model_spec import ModelSpec
from wanspec.engines.tokenizer import JsonTokenizer
from wanspec.engines.turns import NAMED_TOKENS
from wanspec.errors import ConfigError
from wanspec.files import text_of

DEFAULT_TEMPLATE = "default"
"""Of several, the one for chats without tools."""
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def load_hf_tokenizer(spec: ModelSpec) -> JsonTokenizer:
    """The tokenizer of the model that `spec` names. Raises ConfigError."""
    return load_folder_tokenizer(find_folder(spec.name, spec.options.get("revision") or None))


def load_folder_tokenizer(folder: Path) -> JsonTokenizer:
    """Raises ConfigError, naming the folder, where the tokenizer cannot be used."""
    try:
        settings = _settings(folder)
        named = {name: content for name in NAMED_TOKENS if (content := _content(settings, name))}
        source = _template(folder, settings)
        return JsonTokenizer(
            _text(folder / "tokenizer.json"),
            end_token=named.get("eos_token"),
            make_template=partial(ChatTemplate, source, variables=named) if source else None,
        )
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error


def _text(file: Path) -> str:
    try:
        return text_of(file.read_bytes(), file.name)
    except OSError as error:
        raise ConfigError(f"{file.name} cannot be read: {error.strerror}") from error


def _settings(folder: Path) -> Json:
    """What the files beside tokenizer.json say. As in transformers, a configuration that lists its added tokens needs no older file."""
    settings, older = (read_json(folder / name) if (folder / name).exists() else {} for name in SETTINGS_FILES)
    return settings if "added_tokens_decoder" in settings else settings | older


def _template(folder: Path, settings: Json) -> str | None:
    """In a file of its own, or in the settings, alone or by name."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return _text(file)
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get(DEFAULT_TEMPLATE)
    return found if isinstance(found, str) else None


def _content(settings: Json, name: str) -> str | None:
    """A control token of the settings: its text, or an object with that."""
    found = settings.get(name)
    if isinstance(found, dict):
        found = found.get("content")
    return found if isinstance(found, str) else None
