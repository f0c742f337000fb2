"""The engine as it is on a GPU, on a CPU too: choices are made by PyTorch, and little crosses between host and device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.engines.hf.on_device import DEVICES  # noqa: E402
from tests.engines.hf.test_backend import info, random_model  # noqa: E402
from tests.engines.items import alone, assert_close, item, score  # noqa: E402

from wanspec.core.speculation.types import (  # noqa: E402
    NodeId,
    NodeSpec,
    Position,
    SamplingParams,
    ScoreItem,
    SessionId,
)
from wanspec.engines.hf import crossing, device_choosing  # noqa: E402
from wanspec.engines.hf.backend import HfBackend  # noqa: E402
from wanspec.errors import BackendError  # noqa: E402

VOCABULARY = 2000
KINDS = [
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=3),
    SamplingParams(temperature=0.8, seed=4, top_p=0.9),
    SamplingParams(temperature=1.5, seed=5, top_k=20, top_p=0.95),
    SamplingParams(temperature=0.8, seed=6, noise="philox"),
]
CROSSINGS = [
    *((torch.Tensor, name) for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")),
    *((torch, name) for name in ("tensor", "from_numpy", "as_tensor")),
]


@pytest.fixture(scope="module", params=DEVICES)
def on_device(request: pytest.FixtureRequest) -> HfBackend:
    model = random_model("Llama", vocab_size=VOCABULARY, max_position_embeddings=1024).to(request.param)
    return HfBackend(model, info(VOCABULARY, 1024), chooses_on_device=True)


@pytest.fixture(scope="module")
def in_numpy(on_device: HfBackend) -> HfBackend:
    return HfBackend(on_device._model, on_device.info, chooses_on_device=False)


@pytest.fixture(autouse=True)
def nothing_left(on_device: HfBackend, in_numpy: HfBackend) -> Iterator[None]:
    yield
    for session in range(1, 10):
        on_device.close_session(SessionId(session))
        in_numpy.close_session(SessionId(session))


def asked(
    session: int, sampling: SamplingParams, text: tuple[int, ...], *, width: int = 6, first: int = 1, says_all: bool = False
) -> ScoreItem:
    """A text and a tree below it, each node a child of one of the three before."""
    rng = np.random.default_rng(first + 100 * session)
    parents = [None if index == 0 else NodeId(first + index - 1 - int(rng.integers(min(3, index)))) for index in range(width)]
    return ScoreItem(
        session_id=SessionId(session),
        sampling=sampling,
        append=text,
        nodes=tuple(
            [NodeSpec(node_id=NodeId(first + i), parent_id=up, token=int(rng.integers(VOCABULARY))) for i, up in enumerate(parents)]
        ),
        next_positions=tuple([Position(1 + first + index) for index in range(width + bool(text))]),
        num_log_probs=2 if says_all else None,
        wants_entropy=says_all,
    )


def test_whole_rounds_choose_as_numpy_does(on_device: HfBackend, in_numpy: HfBackend) -> None:
    texts = [tuple(range(20 * session, 25 * session)) for session in range(1, 6)]
    for turn in range(5):
        pairs = enumerate(zip(KINDS, texts, strict=True), start=1)
        items = [asked(number, kind, text, first=1 + 10 * turn, says_all=turn % 2 == 1) for number, (kind, text) in pairs]
        found, expected = on_device.verify(items), in_numpy.verify(items)
        for one, two in zip(found, expected, strict=True):
            assert one.tokens == two.tokens
            assert one.entropy_nats == (None if two.entropy_nats is None else pytest.approx(two.entropy_nats, abs=1e-3))
            assert [token for each in one.log_probs for token, _ in each.top] == [token for each in two.log_probs for token, _ in each.top]
        leaves = [asked(n, kind, (), first=7 + 10 * turn, width=3) for n, kind in enumerate(KINDS, start=1)]
        for ours, numpys in zip(on_device.expand(leaves), in_numpy.expand(leaves), strict=True):
            assert [one.tokens for one in ours] == [one.tokens for one in numpys]
        texts = [one.tokens for one in found]


@pytest.fixture
def only_crossings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but `crossing` may turn a tensor into numbers, or numbers into a tensor."""

    def guarded(original: Callable[..., object], name: str) -> Callable[..., object]:
        def watched(*arguments: object, **more: object) -> object:
            caller = sys._getframe(1).f_code.co_filename
            assert caller == crossing.__file__, f"{name} is called in {caller}"
            return original(*arguments, **more)

        return watched

    for owner, name in CROSSINGS:
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name), name))


@pytest.mark.usefixtures("only_crossings")
def test_what_crosses_is_ids_positions_indices_and_choices(on_device: HfBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = crossing.Traffic()
    monkeypatch.setattr(crossing, "traffic", traffic)
    text, rows = tuple(range(500)), 61 * len(KINDS)

    on_device.verify([ScoreItem(session_id=SessionId(n), sampling=kind, append=text) for n, kind in enumerate(KINDS, start=1)])
    assert traffic.fetched_bytes == 0, "after a piece of a text nothing is chosen"
    assert traffic.sent_bytes <= 5 * 500 * 8 * 4, "a few words for each token and slot"

    traffic.sent_bytes = 0
    on_device.verify([asked(n, kind, (7,), width=60) for n, kind in enumerate(KINDS, start=1)])
    assert 0 < traffic.fetched_bytes <= rows * 64
    mask = rows * 560
    assert traffic.sent_bytes < 40_000 < mask / 4

    traffic.fetched_bytes = 0
    on_device.expand([asked(n, KINDS[n - 1], (), first=100, width=10) for n in (1, 2, 5)])
    assert traffic.fetched_bytes == 3 * 10 * (8 * 4 + 8 * 4 + 4), "eight tokens and scores, and an entropy"

    traffic.fetched_bytes = 0
    on_device.log_probs(asked(9, KINDS[0], (1, 2, 3), width=4), [5, 6, 7], count=2)
    assert traffic.fetched_bytes == 3 * (4 + 2 * (4 + 4))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "no memory left on .* for 8 tokens more"),
        (RuntimeError("device-side assert"), "PyTorch failed on tiny"),
    ],
)
@pytest.mark.parametrize("kind", ["verify", "expand", "log_probs"])
@pytest.mark.parametrize("where", ["device", "numpy"])
def test_a_choice_that_fails_leaves_the_caches_as_they_were(
    where: str, kind: str, error: Exception, message: str, on_device: HfBackend, in_numpy: HfBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    backend = on_device if where == "device" else in_numpy
    module: Any = device_choosing if where == "device" else sys.modules["wanspec.engines.hf.backend"]
    name = {"device": kind, "numpy": {"verify": "choose", "expand": "rank"}.get(kind)}[where] or "log_probs_of"
    prompt = tuple(range(30))
    score(backend, item(append=prompt, nodes=((1, None, 20),)))
    broken = asked(1, KINDS[1], (30, 40), first=2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "log_probs_of" if name == "log_probs" else name, failing)
        with pytest.raises(BackendError, match=message):
            backend.log_probs(broken, [1], count=1) if kind == "log_probs" else getattr(backend, kind)([broken])
    assert_close(score(backend, item(commit=(1,), nodes=((9, None, 30),))), [alone(backend, (*prompt, 20, 30))])
