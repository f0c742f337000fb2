"""API keys, from a file or the environment. They are never shown again."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from wanspec.errors import ConfigError
from wanspec.files import read_text
from wanspec.transport.watched_files import WatchedFiles

ENVIRONMENT_VARIABLE = "WANSPEC_API_KEYS"
MIN_KEY_CHARACTERS = 16
"""A shorter key could be guessed."""
MAX_KEYS = 10_000
"""Keys of a server; each request is compared with every key."""
MAX_FILE_BYTES = 4 << 20
ANONYMOUS = "anonymous"
"""The key name of all requests where no keys are required."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCHEME = b"bearer "


class ApiKeys:
    """Named keys. Only their digests are stored."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """`keys`: by name, at least one. Raises ConfigError, with the name and never the key."""
        if not 0 < len(keys) <= MAX_KEYS:
            raise ConfigError(f"there are {len(keys)} API keys; give 1 to {MAX_KEYS}")
        for name, key in keys.items():
            if not _NAME.fullmatch(name) or name == ANONYMOUS:
                raise ConfigError("an API key's name has 1 to 64 letters, digits, dots, hyphens or underscores, and is not 'anonymous'")
            if len(key) < MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable():
                raise ConfigError(
                    f"the API key of {name} must have {MIN_KEY_CHARACTERS} or more printable ASCII characters; "
                    "`openssl rand -hex 32` makes one"
                )
        self._digests = {name: _digest(key.encode()) for name, key in keys.items()}

    def become(self, newer: ApiKeys) -> None:
        """Replace all keys by those of `newer`."""
        self._digests = newer._digests

    def __len__(self) -> int:
        return len(self._digests)

    @property
    def names(self) -> frozenset[str]:
        """The names of all keys."""
        return frozenset(self._digests)

    def name_of(self, authorization: bytes) -> str | None:
        """The name of the key in an `authorization` header; None: no such key. Takes the same time for every wrong key."""
        if not authorization.lower().startswith(_SCHEME):
            return None
        shown = _digest(authorization[len(_SCHEME) :].strip())
        found = [name for name, digest in self._digests.items() if hmac.compare_digest(shown, digest)]
        return found[0] if found else None


def load_keys(file: Path | None, environment: Mapping[str, str]) -> ApiKeys | None:
    """The keys of `file`, or else of WANSPEC_API_KEYS; None: neither is given. Raises ConfigError."""
    if file is not None:
        return ApiKeys(_parse(_read(file), str(file)))
    text = environment.get(ENVIRONMENT_VARIABLE, "")
    return ApiKeys(_parse("\n".join(text.split()), ENVIRONMENT_VARIABLE)) if text else None


def watched_keys(keys: ApiKeys, file: Path) -> WatchedFiles:
    """Keeps `keys` up to date with the file; requests under way go on. Raises ConfigError."""
    return WatchedFiles("API keys", [file], lambda: keys.become(ApiKeys(_parse(_read(file), str(file)))))


def _parse(text: str, source: str) -> dict[str, str]:
    """Parse lines of NAME:KEY; empty lines and those that begin with # are skipped."""
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, key = line.strip().partition(":")
        if not colon:
            raise ConfigError(f"{source}, entry {number}: write NAME:KEY")  # not quoted: it may be a key
        if name in keys:
            raise ConfigError(f"{source}, entry {number}: {name} has a key already; give each its own name")
        keys[name] = key.strip()
    return keys


def _read(file: Path) -> str:
    text = read_text(file, max_bytes=MAX_FILE_BYTES, what="a file of API keys, one NAME:KEY a line")
    if not text.isascii():
        raise ConfigError(f"{file} is not ASCII; write one NAME:KEY a line")
    return text


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
