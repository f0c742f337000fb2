"""The tokenizer of a model's folder: tokenizer.json, with end tokens and chat template from the files beside it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from wanspec.engines.chat_template import ChatTemplate
from wanspec.engines.hf.folder import Json, find_folder, read_json
from wanspec.engines.registry import ModelSpec
from wanspec.engines.tokenizer import NAMED_TOKENS, JsonTokenizer
from wanspec.errors import ConfigError
from wanspec.files import text_of

DEFAULT_TEMPLATE = "default"
"""Name of the template for chats without tools, where there are several."""
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def load_hf_tokenizer(spec: ModelSpec) -> JsonTokenizer:
    """The tokenizer of the model that `spec` names. Raises ConfigError."""
    return load_folder_tokenizer(find_folder(spec.name, spec.options.get("revision") or None))


def load_folder_tokenizer(folder: Path) -> JsonTokenizer:
    """The tokenizer of a folder. Raises ConfigError, naming the folder."""
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
    """Settings from the files beside tokenizer.json. As in transformers, one that lists its added tokens needs no older file."""
    settings, older = (read_json(folder / name) if (folder / name).exists() else {} for name in SETTINGS_FILES)
    return settings if "added_tokens_decoder" in settings else settings | older


def _template(folder: Path, settings: Json) -> str | None:
    """The chat template, from its own file or from the settings; None: there is none."""
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
