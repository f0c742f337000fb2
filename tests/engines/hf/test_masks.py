"""Masks made on the device are those that the session's cache describes, for texts in pieces and trees that grow and move on."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.engines.items import item  # noqa: E402

from wanspec.engines.hf.batch import BatchLimits, PaddedBatch, batches  # noqa: E402
from wanspec.engines.hf.crossing import sent  # noqa: E402
from wanspec.engines.hf.masks import mask_of, over_pool  # noqa: E402
from wanspec.engines.hf.pool import PooledSlots, SlotPool  # noqa: E402
from wanspec.engines.slot_cache import SessionCaches  # noqa: E402


def check(batch: PaddedBatch) -> None:
    *_, reads, spans, appended, nodes = sent(batch.arrays, torch.device("cpu"))
    mask = mask_of(spans, appended, nodes, reads.shape[1])
    assert bool(mask.any(dim=3).all()), "padding sees something, or its softmax would be no number"
    for line, part in enumerate(batch.lines):
        prefix = part.cache.prefix_length
        rows = mask[line, 0, : part.tokens].numpy()
        assert rows[:, :prefix].all()
        assert np.array_equal(rows[:, prefix : part.total], part.extension.visible(part.start, part.stop))
        assert not rows[:, part.total :].any()
    if batch.reach:
        seen = over_pool(mask, reads, batch.reach)[0, 0].numpy()
        for row, slots in zip(seen, mask[0, 0].numpy(), strict=True):
            assert set(np.flatnonzero(row)) == set(batch.reads[0][slots])


@pytest.mark.parametrize("in_buckets", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_row_sees_what_its_session_says(seed: int, in_buckets: bool) -> None:  # noqa: FBT001  # a parameter
    rng = np.random.default_rng(seed)
    pool = SlotPool()
    caches = SessionCaches(lambda: PooledSlots(pool), vocabulary_size=100, context_length=10_000)
    trees: dict[int, list[int]] = {}
    reached = 0
    for turn in range(40):
        asked = []
        for session in rng.permutation(4)[: 1 + int(rng.integers(4))].tolist():
            known = trees.get(session)
            commit = [known[0]] if known and rng.random() < 0.5 else []
            append = tuple(range(int(rng.integers(1, 30)))) if known is None or rng.random() < 0.3 else ()
            first = 1000 * turn + 1
            fresh = list(range(first, first + int(rng.integers(1, 40))))
            parents = [None if rng.random() < 0.2 else int(rng.choice(fresh[:index])) if index else None for index in range(len(fresh))]
            asked.append(item(session, commit=commit, append=append, nodes=[(own, up, 5) for own, up in zip(fresh, parents, strict=True)]))
            trees[session] = fresh  # the first of which hangs off the text
        plans = caches.plan(asked)
        for batch in batches(plans, BatchLimits(pass_tokens=50, fill_tokens=20), in_buckets=in_buckets):
            check(batch)
            reached += bool(batch.reach)
        caches.apply(plans)
    assert reached > 0
