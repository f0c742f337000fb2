"""The tokenizer of a model's folder: tokenizer.json, with what tokenizer_config.json says of beginnings and chats."""

from __future__ import annotations

from pathlib import Path

from wanspec.backends.chat_template import ChatTemplate
from wanspec.backends.hf.folder import Json, find_folder, read_json
from wanspec.backends.model_spec import ModelSpec
from wanspec.backends.tokenizer import JsonTokenizer
from wanspec.errors import ConfigError

DEFAULT_TEMPLATE = "default"
"""Of several, the one for chats without tools."""


def load_hf_tokenizer(spec: ModelSpec) -> JsonTokenizer:
    """The tokenizer of the model that `spec` names. Raises ConfigError."""
    return load_folder_tokenizer(find_folder(spec.name, spec.options.get("revision") or None))


def load_folder_tokenizer(folder: Path) -> JsonTokenizer:
    """Raises ConfigError, naming the folder, where the tokenizer cannot be used."""
    try:
        definition = (folder / "tokenizer.json").read_text("utf-8-sig")
        plain = JsonTokenizer(definition)
        settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
        source = _template(folder, settings)
        variables = {
            name: content for name in ("bos_token", "eos_token", "pad_token", "unk_token") if (content := _content(settings, name))
        }
        controls = plain.control_tokens
        template = ChatTemplate(source, control_tokens=controls, variables=variables) if source else None
        return JsonTokenizer(definition, begins_with=_beginning(plain, settings, variables.get("bos_token")), chat_template=template)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error


def _beginning(plain: JsonTokenizer, settings: Json, bos_token: str | None) -> list[int]:
    """The token that begins a text, where the tokenizer adds one: of itself, or because tokenizer_config.json says so."""
    bos = plain.control_tokens.get(bos_token) if bos_token else None
    if bos is None:
        return []
    adds = settings.get("add_bos_token")
    return [bos] if (bos in plain.added_to_nothing() if adds is None else adds) else []


def _template(folder: Path, settings: Json) -> str | None:
    """In a file of its own, or in the settings, alone or by name."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text("utf-8-sig")
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
