"""Choices made in PyTorch: the same as in NumPy, for requests of every kind in one pass."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.engines.choosers import InNumpy  # noqa: E402
from tests.engines.hf.on_device import DEVICES, OnDevice, logits  # noqa: E402
from tests.engines.test_choosing import pass_of, peaked  # noqa: E402

from wanspec.core.speculation.types import NoiseName, SamplingParams, ScoreItem, SessionId  # noqa: E402
from wanspec.engines import choosing, noise  # noqa: E402
from wanspec.engines.hf import crossing, device_choosing, device_noise  # noqa: E402
from wanspec.engines.hf.device_choosing import Question, target_tokens  # noqa: E402
from wanspec.engines.hf.device_noise import words  # noqa: E402


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("size", [300, 128_256])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.8, seed=1),
        SamplingParams(temperature=1.0, seed=2, top_p=0.95),
        SamplingParams(temperature=0.01, seed=3, top_k=50),
        SamplingParams(temperature=50.0, seed=4, top_p=0.95),
        SamplingParams(temperature=0.8, seed=5, top_k=40, top_p=0.5),
    ],
)
def test_numpy_and_pytorch_choose_alike(params: SamplingParams, size: int, device: str) -> None:
    rng = np.random.default_rng(size)
    rows = [(peaked(size) + rng.normal(0.0, 1.0, size)).astype(np.float32) for _ in range(12)]
    positions = list(range(1, 13))
    assert OnDevice(device).tokens(rows, params, positions) == InNumpy().tokens(rows, params, positions)
    for one, two in zip(OnDevice(device).rankings(rows, params, positions), InNumpy().rankings(rows, params, positions), strict=True):
        assert one.tokens == two.tokens
        assert one.log_probs == pytest.approx(two.log_probs, abs=1e-3)
        assert one.entropy_nats == pytest.approx(two.entropy_nats, abs=1e-3)
    assert OnDevice(device).entropy_nats(rows[0], params) == pytest.approx(InNumpy().entropy_nats(rows[0], params), abs=1e-3)
    tokens = list(range(12))
    for mine, other in zip(OnDevice(device).log_probs(rows, tokens, 5), InNumpy().log_probs(rows, tokens, 5), strict=True):
        assert mine.log_prob == pytest.approx(other.log_prob, abs=1e-4)
        assert [token for token, _ in mine.top] == [token for token, _ in other.top]


def test_pytorch_hashes_are_numpys_to_the_last_bit(device: str) -> None:
    places = [(0, 0), (1, 5), (2**64 - 1, 131_071), (1 << 40, 77)]
    (states,) = crossing.sent([words([noise.mixed_words(seed, position) for seed, position in places])], torch.device(device))
    keys = [noise.philox_key(seed, position) for seed, position in places]
    low, high = crossing.sent([words([key & 0xFFFFFFFF for key in keys]), words([key >> 32 for key in keys])], torch.device(device))
    for (seed, position), murmurs, philoxes in zip(
        places, device_noise.murmur3(states, 128_256), device_noise.philox(low, high, 128_256), strict=True
    ):
        assert np.array_equal(murmurs.cpu().numpy().astype(np.uint32), noise.murmur3(seed, position, 128_256))
        assert np.array_equal(philoxes.cpu().numpy().astype(np.uint32), noise.philox(seed, position, 128_256))


@pytest.mark.parametrize("name", ["murmur3", "philox"])
def test_noise_is_numpys_but_for_the_last_digits(name: NoiseName, device: str) -> None:
    places: list[device_noise.Place | None] = [(name, 7, 30), None, (name, 7, 1), (name, 7, 30)]
    found = device_noise.exponentials(places, 50_000, torch.device(device))
    assert torch.equal(found[0], found[3])
    assert bool((found[1] == 1.0).all())
    np.testing.assert_allclose(found[2].cpu().numpy(), noise.exponentials(name, 7, 1, 50_000), rtol=1e-5, atol=1e-7)


def test_requests_of_every_kind_share_a_pass(device: str) -> None:
    rows = [peaked(500) + np.float32(index % 3) * np.roll(peaked(500), index) for index in range(300)]
    kinds = [SamplingParams(), SamplingParams(temperature=0.7, seed=9), SamplingParams(temperature=1.0, seed=4, top_p=0.9)]
    kinds += [SamplingParams(temperature=1.0, seed=4, top_k=5), SamplingParams(temperature=2.0, seed=1, noise="philox")]
    asked = [Question(kinds[index % len(kinds)], 1 + index // 7) for index in range(300)]
    together = target_tokens(logits(rows, device), asked)
    assert together == [InNumpy().tokens([row], one.sampling, [one.position])[0] for row, one in zip(rows, asked, strict=True)]


def test_a_verify_and_an_expand_are_the_same_by_both(device: str) -> None:
    rng = np.random.default_rng(1)
    rows = [rng.normal(0.0, 3.0, (4, 100)).astype(np.float32) for _ in range(3)]
    best = [[int(row.argmax()) for row in own] for own in rows]
    items = [
        pass_of([(1, None, best[0][0]), (2, 1, best[0][1]), (3, None, 7)], SamplingParams(), num_log_probs=2),
        pass_of([(1, None, 5), (2, 1, 6), (3, 2, 7)], SamplingParams(temperature=0.8, seed=3), wants_entropy=True),
        pass_of([(1, None, best[2][0]), (2, None, 6), (3, 2, 7)], SamplingParams(temperature=0.5, top_p=0.9)),
    ]
    together = logits([row for own in rows for row in own], device)
    piece = ScoreItem(session_id=SessionId(2), sampling=SamplingParams(), append=(1, 2))
    verified = device_choosing.verify([items[0], piece, *items[1:]], together)
    expected = [choosing.choose(item, own) for item, own in zip(items, rows, strict=True)]
    assert verified[1] == choosing.choose(piece, [])
    for found, right in zip([verified[0], *verified[2:]], expected, strict=True):
        assert found.tokens == right.tokens
        assert found.entropy_nats == (None if right.entropy_nats is None else pytest.approx(right.entropy_nats, abs=1e-4))
        assert [one.log_prob for one in found.log_probs] == pytest.approx([one.log_prob for one in right.log_probs], abs=1e-5)
    assert len(verified[0].tokens) == 3
    expanded = device_choosing.expand([items[0], piece, *items[1:]], together)
    assert [len(each) for each in expanded] == [4, 0, 4, 4]
    assert expanded[0][2].tokens == choosing.rank(items[0], rows[0])[2].tokens
