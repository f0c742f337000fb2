"""Passes by `torch.compile`: the same logits and tokens, from few compilations. It takes a C++ compiler, and some ten seconds for each."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.engines.hf.on_device import DEVICES  # noqa: E402
from tests.engines.hf.test_backend import info, random_model  # noqa: E402
from tests.engines.hf.test_device_path import KINDS, asked  # noqa: E402
from tests.engines.items import assert_close, item, score_all  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

from wanspec.engines.hf.backend import HfBackend  # noqa: E402
from wanspec.engines.hf.loading import compile_passes  # noqa: E402

VOCABULARY = 2000
COMPILED_KINDS = 3
"""Several lines, one that is read where it lies, and one that is gathered."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of PyTorch's compiler, at itself
    pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="there is no C++ compiler"),
]


@pytest.fixture(scope="module", params=DEVICES)
def pair(request: pytest.FixtureRequest) -> tuple[HfBackend, HfBackend]:
    """A model as it is, and the same one compiled."""
    model = random_model("Llama", vocab_size=VOCABULARY, max_position_embeddings=2048).to(request.param)
    facts = info(VOCABULARY, 2048)
    plain = HfBackend(model, facts, chooses_on_device=True)
    compiled = HfBackend(model, facts, chooses_on_device=True, is_compiled=True)
    counters.clear()
    compile_passes(compiled)
    return plain, compiled


def test_trees_of_many_sizes_have_the_same_logits_and_tokens_and_nothing_is_compiled_again(pair: tuple[HfBackend, HfBackend]) -> None:
    plain, compiled = pair
    rng = np.random.default_rng(0)
    texts = {session: tuple(rng.integers(1, VOCABULARY, 60 * session).tolist()) for session in range(1, 6)}
    for backend in pair:
        score_all(backend, [item(session, append=text) for session, text in texts.items()])
    first = 1
    for turn in range(30):
        sessions = rng.permutation(5)[: 1 + turn % 5] + 1
        width = int(rng.integers(1, 50))
        new = tuple(rng.integers(1, VOCABULARY, 1 + turn % 3).tolist())
        asks = [asked(int(number), KINDS[number - 1], new, width=width, first=first) for number in sessions]
        first += width
        if turn % 2:
            for ours, plains in zip(score_all(compiled, asks), score_all(plain, asks), strict=True):
                assert_close(ours, plains)
        else:
            found, expected = compiled.verify(asks), plain.verify(asks)
            assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert counters["stats"]["unique_graphs"] == COMPILED_KINDS
    assert not counters["graph_break"]
