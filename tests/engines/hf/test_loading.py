"""From a spec to a model, or to a refusal that names what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from wanspec.engines.bundled_export import export_bundled
from wanspec.engines.bundled_pair import bundled_info
from wanspec.engines.registry import load_backend, load_tokenizer
from wanspec.errors import BackendError, ConfigError
from wanspec.serving.engine import check_pair

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundled(tmp_path_factory.mktemp("exported"), "draft")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """One that may be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "owner" / "model"))


def change(folder: Path, changes: dict[str, object], *, file: str = "config.json") -> None:
    found: dict[str, object] = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(found | changes))


def test_a_folder_gives_what_the_bundled_pair_says_of_itself(whole: Path) -> None:
    info, bundled = load_backend(f"hf:{whole}").info, bundled_info("draft")
    assert info.tokenizer_fingerprint == bundled.tokenizer_fingerprint
    assert (info.vocabulary_size, info.context_length, info.end_tokens) == (
        bundled.vocabulary_size,
        bundled.context_length,
        bundled.end_tokens,
    )
    assert info.name == f"{whole.parent.name}/draft"
    assert load_tokenizer(f"hf:{whole},dtype=float32").encode("def f():") == load_tokenizer("bundled:draft").encode("def f():")


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")])
def test_a_model_is_run_in_the_precision_asked_for(dtype: str, expected: str, whole: Path) -> None:
    backend: Any = load_backend(f"hf:{whole},dtype={dtype},device=cpu")
    assert next(backend._model.parameters()).dtype == getattr(torch, expected)


def test_the_threads_are_those_asked_for(whole: Path) -> None:
    before = torch.get_num_threads()
    try:
        load_backend(f"hf:{whole},threads=2")
        assert torch.get_num_threads() == 2
        load_backend(f"hf:{whole}", threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("dtype=int3", "there is no dtype 'int3'; use auto, float32, bfloat16, float16"),
        ("device=gpu", "there is no device 'gpu'; use auto, cpu, cuda or cuda:1"),
        ("device=cuda:99", "use device=cpu"),
        ("device_map=balanced", "device_map is auto"),
        ("device_map=auto,device=cpu", "goes without device"),
        ("threads=0", "threads is 0"),
        ("threads=x", "'x' is not a number"),
        ("speed=2", "there is no option 'speed'; use dtype, device, device_map, revision, threads, compile"),
        ("compile=yes", "compile is 'yes'; use true or false"),
        ("compile=true,device_map=auto", "compile is for a model on one device"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: str, message: str, whole: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_backend(f"hf:{whole},{options}")


def test_several_end_tokens_are_all_ends(folder: Path) -> None:
    change(folder, {"eos_token_id": [7, 0, 5000]}, file="generation_config.json")
    assert load_backend(f"hf:{folder}").info.end_tokens == (0, 7)


def test_the_tokenizers_own_end_token_ends_a_text_too(folder: Path) -> None:
    change(folder, {"eos_token_id": 7}, file="generation_config.json")
    change(folder, {"eos_token": "<|endoftext|>"}, file="tokenizer_config.json")
    assert load_backend(f"hf:{folder}").info.end_tokens == (0, 7)


def test_a_vocabulary_padded_by_the_model_is_the_tokenizers(folder: Path) -> None:
    backend: Any = load_backend(f"hf:{folder}")
    model = backend._model
    model.resize_token_embeddings(2112)
    model.save_pretrained(folder)
    padded = load_backend(f"hf:{folder}").info
    assert padded.vocabulary_size == bundled_info("target").vocabulary_size == 2048
    check_pair(bundled_info("target"), padded)


def test_a_tokenizer_larger_than_its_model_is_refused(folder: Path) -> None:
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["added_tokens"].append({**definition["added_tokens"][0], "id": 2048, "content": "<|more|>"})
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ConfigError, match="its tokenizer has 2049 tokens, its model 2048"):
        load_backend(f"hf:{folder}")


def test_a_pair_with_different_tokenizers_is_refused_by_name(folder: Path) -> None:
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["added_tokens"][0]["content"] = "<|other|>"
    definition["model"]["vocab"]["<|other|>"] = definition["model"]["vocab"].pop("<|endoftext|>")
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ConfigError, match="target wanspec-bundled-target and draft owner/model do not share a tokenizer"):
        check_pair(bundled_info("target"), load_backend(f"hf:{folder}").info)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "unheard-of"}, BackendError, "unheard-of"),
        ({"architectures": ["LlamaForSequenceClassification"]}, ConfigError, "only causal language models"),
        ({"num_hidden_layers": 4}, BackendError, "lacks 9 of the weights of a LlamaForCausalLM, such as model.layers.3"),
        ({"hidden_size": 320}, BackendError, "owner/model"),
    ],
)
def test_a_configuration_of_another_model_is_refused(
    changes: dict[str, object], error: type[Exception], message: str, folder: Path
) -> None:
    change(folder, changes)
    with pytest.raises(error, match=message):
        load_backend(f"hf:{folder}")


def test_a_model_larger_than_the_memory_is_refused_before_it_is_loaded(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.engines.hf.loading._free_memory", lambda: 1_000_000)
    with pytest.raises(ConfigError, match=r"takes 0\.0 GB for its weights, and cpu has 0\.0 GB free; use dtype=bfloat16"):
        load_backend(f"hf:{whole},device=cpu")


def test_a_model_says_where_it_is_run(whole: Path) -> None:
    before = torch.get_num_threads()
    try:
        backend = load_backend(f"hf:{whole},dtype=bfloat16,device=cpu", threads=2)
    finally:
        torch.set_num_threads(before)
    parameters = sum(parameter.numel() for parameter in backend._model.parameters())  # type: ignore[attr-defined]
    residence = backend.info.residence
    assert residence is not None
    assert (residence.device, residence.precision, residence.threads) == ("cpu", "bfloat16", 2)
    assert residence.weight_bytes == pytest.approx(2 * parameters, rel=0.01)
