"""What is the transformers engine's own beyond the contract of all backends: its pool, its batches, other architectures, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engines.items import alone, assert_close, item, score, score_all

from wanspec.core.speculation.types import ScoreItem, SessionId
from wanspec.engines.bundled_export import export_bundled
from wanspec.engines.bundled_pair import load_bundled
from wanspec.engines.interface import ModelInfo
from wanspec.errors import BackendError, ConfigError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from wanspec.engines.hf import batch as batch_module  # noqa: E402  # needs PyTorch
from wanspec.engines.hf.backend import HfBackend  # noqa: E402
from wanspec.engines.hf.batch import BatchLimits  # noqa: E402
from wanspec.engines.hf.loading import check_architecture, check_tree  # noqa: E402
from wanspec.engines.hf.pool import FIRST_SLOTS, PooledSlots, SlotPool  # noqa: E402
from wanspec.engines.registry import load_backend  # noqa: E402

Model = Any
"""Of transformers, which has no types where it is not installed."""

PROMPT = tuple(range(300, 340))
SIZES: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": None},
    "Gemma": {"head_dim": 8},
    "Phi3": {"pad_token_id": 0},
    "Granite": {},
    "Olmo2": {},
    "GPT2": {"n_inner": 48},
    "GPTNeoX": {},
    "Mixtral": {"num_local_experts": 4, "sliding_window": None},
    "DeepseekV3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
}


def info(vocabulary_size: int = 500, context_length: int = 256) -> ModelInfo:
    return ModelInfo(
        name="tiny", vocabulary_size=vocabulary_size, tokenizer_fingerprint="0" * 64, context_length=context_length, end_tokens=()
    )


def random_model(family: str, **changes: object) -> Model:
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES.get(family, {}), **changes})
    check_architecture(config, family)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.eval()


@pytest.fixture(scope="module")
def tiny() -> HfBackend:
    return HfBackend(random_model("Llama"), info())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundled(tmp_path_factory.mktemp("exported"), "draft")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_architecture_scores_trees_and_batches_as_transformers_scores_their_paths(family: str) -> None:
    model = random_model(family)
    backend = HfBackend(model, info())
    check_tree(backend)
    nodes = ((1, None, 20), (2, None, 30), (3, 1, 40), (4, 3, 50), (5, 2, 60))
    paths: list[tuple[int, ...]] = [(), (20,), (30,), (20, 40), (20, 40, 50), (30, 60)]
    rows = score_all(backend, [item(1, append=PROMPT, nodes=nodes), item(2, append=PROMPT[:7])])
    after = score(backend, item(commit=(2, 5), nodes=((6, None, 70),)))
    expected = [*(PROMPT + path for path in paths), PROMPT[:7], (*PROMPT, 30, 60, 70)]
    with torch.no_grad():
        plainly = [model(torch.tensor([tokens])).logits[0, -1].numpy() for tokens in expected]
    assert_close(np.concatenate([*rows, after]), plainly)


def test_the_exported_model_has_the_logits_of_onnx_runtime(exported: Path) -> None:
    backend = load_backend(f"hf:{exported},device=cpu")
    nodes = ((1, None, 20), (2, None, 30), (3, 1, 40))
    assert_close(score(backend, item(append=PROMPT, nodes=nodes)), score(load_bundled("draft"), item(append=PROMPT, nodes=nodes)))


def test_how_a_batch_is_cut_into_passes_does_not_show(tiny: HfBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {1: 40, 2: 3, 3: 25, 4: 1}
    asked = [item(s, append=PROMPT[:length], nodes=((1, None, 20), (2, 1, 30), (3, None, 40))) for s, length in lengths.items()]
    expected = score_all(tiny, asked)
    for session in lengths:
        tiny.close_session(SessionId(session))
    for limits in (BatchLimits(pass_tokens=7, fill_tokens=2), BatchLimits(pass_tokens=1000, fill_tokens=1000)):
        monkeypatch.setattr(tiny, "_limits", limits)
        for found, rows in zip(score_all(tiny, asked), expected, strict=True):
            assert_close(found, rows)
        for session in lengths:
            tiny.close_session(SessionId(session))


@pytest.mark.parametrize(
    ("limits", "lines"),
    [
        (BatchLimits(pass_tokens=1000, fill_tokens=1000), [4]),
        (BatchLimits(pass_tokens=1000, fill_tokens=40), [2, 2]),
        (BatchLimits(pass_tokens=90, fill_tokens=1000), [2, 2]),
        (BatchLimits(pass_tokens=40, fill_tokens=0), [1, 1, 1, 1]),
    ],
)
def test_lines_share_a_pass_as_long_as_the_fill_costs_less_than_one(limits: BatchLimits, lines: list[int], tiny: HfBackend) -> None:
    lengths = {1: 40, 2: 3, 3: 25, 4: 1}
    plans = tiny._caches.plan([item(s, append=PROMPT[:length]) for s, length in lengths.items()])
    assert [len(batch.lines) for batch in batch_module.batches(plans, limits)] == lines


def test_a_lone_session_is_read_where_it_lies_and_others_are_gathered() -> None:
    backend = HfBackend(random_model("Llama"), info())

    def reaches(*asked: ScoreItem) -> list[int]:
        return [batch.reach for batch in batch_module.batches(backend._caches.plan(asked), BatchLimits(pass_tokens=256, fill_tokens=256))]

    score(backend, item(append=PROMPT * 4))
    score(backend, item(2, append=PROMPT[:2]))
    (reach,) = reaches(item(append=(7,), nodes=((1, None, 5),)))
    assert reach >= 4 * len(PROMPT) + 4
    assert reaches(item(2, append=(7,))) == [0], "its slots are behind the first one's"
    assert reaches(item(append=(7,)), item(2, append=(7,))) == [0]
    rows = score_all(backend, [item(append=(7,), nodes=((1, None, 5),))])[0]
    assert_close(rows, [alone(backend, (*PROMPT * 4, 7)), alone(backend, (*PROMPT * 4, 7, 5))])


def test_keys_and_values_of_grouped_heads_are_not_repeated(tiny: HfBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.integrations.sdpa_attention.repeat_kv", None)
    score(tiny, item(append=PROMPT, nodes=((1, None, 20),)))
    tiny.close_session(SessionId(1))


def test_only_the_rows_asked_for_are_computed_and_a_vocabulary_padded_by_the_model_is_cut() -> None:
    model = random_model("Llama")
    seen = []
    model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[:2])))
    backend = HfBackend(model, info(vocabulary_size=400))
    assert score(backend, item(append=PROMPT, nodes=((1, None, 5),))).shape == (2, 400)
    assert seen == [(1, 2)]
    with pytest.raises(BackendError, match="token 400 is outside the vocabulary of 400"):
        score(backend, item(nodes=((2, None, 400),)))


def test_a_pool_grows_and_keeps_what_it_has() -> None:
    backend = HfBackend(random_model("Llama"), info())
    score(backend, item(append=PROMPT))
    for session in range(2, 12):
        score(backend, item(session, append=PROMPT))
    assert backend.pool.slots_in_use == 11 * len(PROMPT) > FIRST_SLOTS
    assert_close(score(backend, item(append=(5,))), [alone(backend, (*PROMPT, 5))])


def test_a_pool_that_nobody_uses_gives_its_memory_back() -> None:
    backend = HfBackend(random_model("Llama"), info())
    for session in range(1, 12):
        score(backend, item(session, append=PROMPT))
    assert backend.pool.slot_bytes > 0
    for session in range(1, 12):
        backend.close_session(SessionId(session))
    assert (backend.pool.slots_in_use, backend.pool.slot_bytes) == (0, 0)


def test_slots_that_two_share_are_free_when_both_are_gone() -> None:
    pool = SlotPool()
    first = PooledSlots(pool)
    first.reserve(10)
    second = first.first(6)
    assert set(second.indices) < set(first.indices)
    second.reserve(8)
    assert pool.slots_in_use == 12
    first.move(6, [3, 1])
    assert pool.slots_in_use == 10
    del first
    assert pool.slots_in_use == 8
    del second
    assert pool.slots_in_use == 0


def test_a_kept_prefix_is_shared_and_not_copied(tiny: HfBackend) -> None:
    before = tiny.pool.slots_in_use
    score(tiny, item(append=PROMPT, key="alice"))
    tiny.close_session(SessionId(1))
    for session in (2, 3):
        assert_close(score(tiny, item(session, append=(*PROMPT, 7), key="alice")), [alone(tiny, (*PROMPT, 7))])
    assert tiny.pool.slots_in_use == before + len(PROMPT) + 2
    for session in (2, 3):
        tiny.close_session(SessionId(session))
    tiny._caches.forget_kept()
    assert tiny.pool.slots_in_use == before


class Full:
    """A model that finds no memory so many times."""

    def __init__(self, model: Model, failures: int) -> None:
        self._model, self._failures = model, failures

    def __call__(self, **arguments: object) -> Model:
        if self._failures:
            self._failures -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._model(**arguments)


def test_out_of_memory_leaves_the_caches_as_they_were(tiny: HfBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    score(tiny, item(append=PROMPT, nodes=((1, None, 20),)))
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "_model", Full(tiny._model, 1))
        with pytest.raises(BackendError, match="has no memory left on cpu for 2 tokens more"):
            score(tiny, item(commit=(1,), append=(30, 40)))
    assert_close(score(tiny, item(nodes=((2, 1, 30),))), [alone(tiny, (*PROMPT, 20, 30))])
    tiny.close_session(SessionId(1))


def test_what_finished_sessions_left_goes_before_a_request_does(tiny: HfBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    score(tiny, item(append=PROMPT, key="alice"))
    tiny.close_session(SessionId(1))
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "_model", Full(tiny._model, 1))
        rows = score(tiny, item(append=PROMPT))
    tiny.close_session(SessionId(1))
    assert_close(rows, [alone(tiny, PROMPT)])
    assert tiny.pool.slots_in_use == 0


def test_any_other_failure_of_the_engine_is_a_backend_error(tiny: HfBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(tiny, "_model", broken)
    with pytest.raises(BackendError, match="PyTorch failed on tiny: device-side assert"):
        score(tiny, item(append=PROMPT))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("Mistral", {"sliding_window": 32}, "a sliding window of 32 tokens"),
        ("Qwen3", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}, "has sliding_attention"),
        ("Gemma3Text", {}, "has sliding_attention"),
        ("Mamba", {}, "has linear_attention"),
        ("Bloom", {"max_position_embeddings": None}, "does not say how long a text it takes"),
        ("T5", {}, "only causal language models"),
    ],
)
def test_an_architecture_that_cannot_score_trees_is_refused_by_name(family: str, changes: dict[str, object], message: str) -> None:
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **changes})
    config.architectures = [f"{family}ForConditionalGeneration" if family == "T5" else f"{family}ForCausalLM"]
    with pytest.raises(ConfigError, match=f"{family}.*{message}"):
        check_architecture(config, "some/model")


def test_a_model_that_ignores_its_mask_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("Llama")
    plain = model.forward

    def causal_only(**arguments: Model) -> Model:
        mask = arguments["attention_mask"]
        arguments["attention_mask"] = torch.ones_like(mask).tril(mask.shape[-1] - mask.shape[-2])
        return plain(**arguments)

    backend = HfBackend(model, info())
    monkeypatch.setattr(backend, "_model", causal_only)
    with pytest.raises(ConfigError, match="scores a tree otherwise than its paths"):
        check_tree(backend)
