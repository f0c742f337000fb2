"""A model's folder, local or downloaded from the Hugging Face hub, and checks that it is complete.

Half a download, a clone without its large files and a format that could run code are reported before loading, with the fix.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from wanspec.errors import ConfigError
from wanspec.extras import how_to_install

DOWNLOADED = ["*.json", "*.safetensors", "*.jinja"]
"""Files downloaded from a repository; weights in other formats would double the size."""
MAX_HEADER_BYTES = 100_000_000
"""Longest header of a safetensors file: the format's own limit."""
LARGE_FILE_POINTER = b"version https://git-lfs"
INSTALL = how_to_install("hf")

Json = dict[str, Any]


@cache
def find_folder(name: str, revision: str | None) -> Path:
    """The folder of that name, or else a download of the hub's repository of that name. Raises ConfigError unless it is complete."""
    folder = local_folder(name) or _downloaded(name, revision)
    check_folder(folder)
    return folder


def local_folder(name: str) -> Path | None:
    """The folder of that name; None: it may be a name on the hub. Raises ConfigError where it can be neither."""
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if local.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ConfigError(f"there is no folder {name!r}; name one with a model in Hugging Face's format, or the hub's OWNER/MODEL")
    return None


def check_folder(folder: Path) -> None:
    """Raise ConfigError where a file is missing or truncated."""
    read_json(folder / "config.json")
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"{folder} has no tokenizer.json; only tokenizers in that format are read (transformers can convert others)")
    for file in _weight_files(folder):
        _check_weights(file)


def read_json(path: Path) -> Json:
    """Read a JSON object from a file of a model's folder. Raises ConfigError."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path.parent} has no {path.name}: it is no model in Hugging Face's format, or half a download") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no object; download it again")
    return found


def weight_bytes(folder: Path) -> int:
    """Size of the stored weights."""
    return sum(file.stat().st_size for file in _weight_files(folder))


def _weight_files(folder: Path) -> Iterable[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        parts = read_json(index).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise ConfigError(f"{index} names no files; download it again")
        return [folder / part for part in sorted(set(parts.values()))]
    if not (folder / "model.safetensors").exists() and next(folder.glob("*.bin"), None) is not None:
        raise ConfigError(f"the weights in {folder} are pickled, which can run code as they are read; convert them to safetensors")
    return [folder / "model.safetensors"]


def _check_weights(file: Path) -> None:
    """Raise ConfigError unless a file of weights is as long as its header says."""
    try:
        with file.open("rb") as opened:
            start = opened.read(len(LARGE_FILE_POINTER))
            if start == LARGE_FILE_POINTER:
                raise ConfigError(f"{file} is only a pointer to the weights; fetch them: git lfs pull")
            opened.seek(0)
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length)) if length <= MAX_HEADER_BYTES else {}
            size = opened.seek(0, 2)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except FileNotFoundError:
        raise ConfigError(f"{file.parent} has no {file.name}: half a download? Fetch the model again; complete files are kept") from None
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ConfigError(f"{file} is no file of safetensors, or the beginning of one; fetch it again") from error
    if not ends or size != 8 + length + max(ends):
        wanted = f"{8 + length + max(ends)}" if ends else "more"
        raise ConfigError(f"{file} has {size} bytes of {wanted}: half a download; fetch it again")


def _downloaded(name: str, revision: str | None) -> Path:
    """Download a repository of the hub, showing progress; a complete earlier download needs no network."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise ConfigError(f"{name!r} is no folder here, and to download it takes huggingface_hub: {INSTALL}") from error

    where = f"{name!r}" if revision is None else f"{name!r} at revision {revision!r}"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=DOWNLOADED))
    except HFValidationError as error:
        raise ConfigError(f"{name!r} is neither a folder here nor a name on the Hugging Face hub (OWNER/MODEL)") from error
    except GatedRepoError as error:
        raise ConfigError(f"{where} is gated: request access on its page of the hub, and log in here with `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"there is no {where} on the Hugging Face hub") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{name!r} is neither a folder here nor on the Hugging Face hub; if it is private, log in with `hf auth login`"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ConfigError(
            f"{name!r} is no folder here, was never downloaded whole, and the Hugging Face hub cannot be reached (or HF_HUB_OFFLINE is set)"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(f"{where} cannot be downloaded: {error}; start again; downloaded files are kept") from error
