"""What is wrong with a model's folder is said by name, before anything is loaded from it; and downloads, from a hub on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wanspec.engines.bundled_export import export_bundled
from wanspec.engines.hf import folder as folder_module
from wanspec.engines.hf.folder import check_folder, find_folder, weight_bytes
from wanspec.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return export_bundled(tmp_path, "draft")


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        check_folder(folder)
    return str(raised.value)


def split_in_two(folder: Path) -> None:
    """As large models are stored."""
    whole = folder / "model.safetensors"
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (folder / name).write_bytes(whole.read_bytes())
    whole.unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_whole_folder_is_found_by_its_path(folder: Path) -> None:
    assert find_folder(str(folder), None) == folder
    assert weight_bytes(folder) == (folder / "model.safetensors").stat().st_size


def test_weights_may_be_in_several_files(folder: Path) -> None:
    split_in_two(folder)
    check_folder(folder)
    assert weight_bytes(folder) == 2 * (folder / "model-1.safetensors").stat().st_size
    (folder / "model-2.safetensors").unlink()
    assert "has no model-2.safetensors: half a download?" in refusal(folder)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "has no config.json: it is no model in Hugging Face's format, or half a download"),
        ("tokenizer.json", "has no tokenizer.json"),
        ("model.safetensors", "has no model.safetensors: half a download?"),
    ],
)
def test_a_missing_file_is_named(missing: str, message: str, folder: Path) -> None:
    (folder / missing).unlink()
    assert message in refusal(folder)


@pytest.mark.parametrize(("kept_bytes", "message"), [(4, "no file of safetensors"), (900, "no file of safetensors"), (100_000, "half a")])
def test_half_a_file_of_weights_is_named_with_its_length(kept_bytes: int, message: str, folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:kept_bytes])
    assert message in refusal(folder)
    file.write_bytes(whole[:-1])
    assert f"has {len(whole) - 1} bytes of {len(whole)}" in refusal(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_damaged_configuration_is_named(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refusal(folder)


def test_a_clone_without_its_large_files_is_told_how_to_get_them(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert "git lfs pull" in refusal(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickled" in refusal(folder)


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "a/b/c", "~/no-such-model"])
def test_what_is_clearly_a_path_is_not_looked_for_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_downloaded", pytest.fail)
    with pytest.raises(ConfigError, match="there is no folder"):
        find_folder(name, None)


def test_what_is_no_name_of_the_hub_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither a folder here nor a name on the Hugging Face hub"):
        find_folder("no folder!", None)
