"""Local drafts of the proposer machine: a scripted draft model beside an engine that verifies, on a virtual clock."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tests.core.protocol.events import Tokens

from wanspec.core.protocol import passes, proposer
from wanspec.core.protocol.effects import DraftsProposed, Effect, ReleaseSession, RoundFinished, StartDraft
from wanspec.core.protocol.events import (
    DeadlineReached,
    DraftFinished,
    DraftsReceived,
    PassFailed,
    PassKind,
    ProposerEvent,
    Row,
    StepFinished,
    WorkerJoined,
)
from wanspec.core.protocol.messages import Drafts
from wanspec.core.protocol.proposer import ABSENT_S, REST_S, LocalDrafting, Proposer
from wanspec.core.speculation.model_view import NEAR_TOKENS
from wanspec.core.speculation.types import DraftingConfig, NodeId, Position, ScoreItem, SessionId, WorkerId
from wanspec.engines.scripted import CONTEXT_TOKENS, ScriptedBackend
from wanspec.errors import LocalProtocolError

VOCABULARY, SEED, MAX_DRAFT_TOKENS = 32, 5, 4
STEP_S = 0.02
DRAFTING = DraftingConfig(branch=8, leaves=64, max_depth=64, path_prob_min=0.001, is_calibrated=True)
ONE = WorkerId(1)
TARGET = ScriptedBackend(vocabulary_size=VOCABULARY, seed=SEED)


def following(tokens: Sequence[int]) -> int:
    """The target's greedy token."""
    context = np.array([[-1] * CONTEXT_TOKENS + list(tokens)], np.int64)[:, -CONTEXT_TOKENS:]
    return int(TARGET.logits_after(context)[0].argmax())


class Request:
    """A row of the engine's."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.tokens, self.prompt_length = list(prompt), len(prompt)
        self.chain: tuple[int, ...] = ()
        self.proposed = self.accepted = 0

    def verify(self) -> int:
        """Commit what of the chain is the target's, and a token of its own. How many."""
        before = len(self.tokens)
        self.proposed += len(self.chain)
        for draft in (*self.chain, None):
            self.tokens.append(following(self.tokens))
            if self.tokens[-1] != draft:
                break
        self.accepted += len(self.tokens) - before - 1
        return len(self.tokens) - before


class Site:
    """An engine, and a draft model beside it."""

    def __init__(self, *, disagreement: float = 0.2, price_s: float = 0.0, context_length: int = 4096) -> None:
        self.draft = ScriptedBackend(vocabulary_size=VOCABULARY, seed=SEED, disagreement=disagreement)
        self.machine = Proposer(
            vocabulary_size=VOCABULARY,
            max_length=100_000,
            max_draft_tokens=MAX_DRAFT_TOKENS,
            path_prob_min=0.05,
            drafting=DRAFTING,
            local=LocalDrafting(context_length=context_length, redundancy_price_s=price_s),
        )
        self.now, self.step_s, self.verify_s = 0.0, STEP_S, 0.0
        self.pass_s: Callable[[Sequence[ScoreItem]], float] = lambda _: 0.001
        self.is_broken = False
        self.passes: list[tuple[ScoreItem, ...]] = []
        """Of the newest step."""
        self.effects: list[Effect] = []

    def step(self, *requests: Request) -> None:
        """The engine verifies what was proposed, and asks again."""
        self.now += self.step_s + self.verify_s * sum(len(request.chain) for request in requests)
        self.show(*[(request, request.verify()) for request in requests])

    def show(self, *rows: tuple[Request, int]) -> None:
        self.passes, self.effects = [], []
        event = StepFinished(rows=tuple(Row(tokens=Tokens(request.tokens), num_new=num_new) for request, num_new in rows))
        effects = self.handle(event)
        while starts := [effect for effect in effects if isinstance(effect, StartDraft)]:
            effects = self.handle(self.run(starts[0].items))
        (proposed,) = [effect for effect in effects if isinstance(effect, DraftsProposed)]
        self.proposed = proposed
        self.effects += self.machine.learn(self.now)  # while the engine verifies
        for (request, _), chain in zip(rows, proposed.chains, strict=True):
            request.chain = chain

    def run(self, items: tuple[ScoreItem, ...]) -> DraftFinished | PassFailed:
        self.passes.append(items)
        duration_s = self.pass_s(items)
        self.now += duration_s
        if self.is_broken:
            return PassFailed(kind=PassKind.DRAFT, reason="no memory")
        return DraftFinished(choices=self.draft.expand(items), duration_s=duration_s)

    def handle(self, event: ProposerEvent) -> list[Effect]:
        effects = self.machine.handle(event, now=self.now)
        for effect in effects:
            if isinstance(effect, ReleaseSession):
                self.draft.close_session(effect.session_id)
        self.effects += effects
        return effects

    def join(self) -> None:
        self.handle(WorkerJoined(worker_id=ONE, name="worker", max_sessions=8))

    def send(self, session: int, base: int, tokens: Sequence[int], *, parents: Sequence[int] | None = None, log_prob: float = -0.1) -> None:
        """A worker's first nodes, a chain unless `parents` says otherwise, below the committed token at position `base`."""
        drafts = Drafts(
            session_id=SessionId(session), opening=1, base_position=Position(base), held_s=0.0, step_s=0.01, first_node_id=NodeId(1),
            parent_ids=tuple(parents or range(len(tokens))), tokens=tuple(tokens), log_probs=(log_prob,) * len(tokens),
        )  # fmt: skip
        self.handle(DraftsReceived(worker_id=ONE, drafts=drafts))

    def knows_its_steps(self) -> None:
        """The engine's steps take no longer for a few drafts, as others have shown."""
        self.machine._passes.target_times.add(8 * MAX_DRAFT_TOKENS, STEP_S)

    def passes_of(self, steps: int, *requests: Request) -> int:
        """Batched passes in so many steps."""
        total = 0
        for _ in range(steps):
            self.step(*requests)
            total += len(self.passes)
        return total


def is_exact(request: Request) -> bool:
    tokens = request.tokens[: request.prompt_length]
    while len(tokens) < len(request.tokens):
        tokens.append(following(tokens))
    return tokens == request.tokens


def test_chains_are_drafted_here_where_no_worker_is_and_the_text_is_the_targets() -> None:
    site, request = Site(), Request([1, 2, 3])
    for _ in range(200):
        site.step(request)
    assert is_exact(request)
    assert request.accepted > 200
    finished = [effect for effect in site.effects if isinstance(effect, RoundFinished)]
    assert [round_.local_drafts > 0 for round_ in finished] == [True]


def test_what_was_drafted_is_told() -> None:
    site, requests = Site(disagreement=0.0), [Request([1, 2]), Request([3, 4])]
    for _ in range(50):
        site.step(*requests)
    assert site.proposed.local_drafts == sum(len(items) for items in site.passes) > 2
    assert site.proposed.local_draft_tokens >= site.proposed.local_drafts


def test_nothing_is_drafted_before_a_step_was_measured() -> None:
    site, request = Site(), Request([1, 2, 3])
    site.step(request)
    assert site.passes == []
    site.step(request)
    assert site.passes != []


def test_a_pass_over_many_requests_is_one() -> None:
    site, requests = Site(), [Request([number, 1]) for number in range(6)]
    for _ in range(20):
        site.step(*requests)
        assert len(site.passes) <= MAX_DRAFT_TOKENS
    assert max(len(items) for items in site.passes) == 6


def test_a_pass_that_takes_longer_than_it_saves_is_hardly_ever_made() -> None:
    site, request = Site(), Request([1, 2, 3])
    site.pass_s = lambda _: 0.1
    assert site.passes_of(300, request) < 10
    assert is_exact(request)


def test_a_pass_that_took_long_once_is_tried_again() -> None:
    site, request = Site(), Request([1, 2, 3])
    site.passes_of(50, request)
    site.pass_s = lambda _: 0.2
    site.passes_of(3, request)
    site.pass_s = lambda _: 0.001
    assert site.passes_of(100, request) < 10
    began = site.now
    while site.passes_of(100, Request([1, 2])) < 50:
        assert site.now < began + 25.0
    assert site.passes_of(100, Request([1, 2])) > 50


def test_every_request_waits_for_a_pass_so_what_is_worth_it_for_one_is_not_for_one_among_many() -> None:
    alone, among = Site(context_length=200), Site(context_length=200)
    others = [Request([number] * 300) for number in range(15)]  # longer than what the draft model takes
    one, another = Request([1, 2]), Request([1, 2])
    for site in (alone, among):
        site.pass_s = lambda _: 0.004
    assert alone.passes_of(100, one) > 50
    assert among.passes_of(100, another, *others) < 10


@pytest.mark.parametrize(("verify_s", "is_worth_it"), [(0.0001, True), (0.005, False)])
def test_what_the_engine_takes_longer_to_verify_more_drafts_is_weighed(verify_s: float, *, is_worth_it: bool) -> None:
    site, requests = Site(), [Request([number, 1]) for number in range(12)]
    site.verify_s = verify_s
    site.passes_of(30, *requests)
    assert (site.passes_of(100, *requests) > 100) == is_worth_it
    plainly_s, before, began = 100 * STEP_S, sum(len(request.tokens) for request in requests), site.now
    site.passes_of(100, *requests)
    per_token_s = 12 * (site.now - began) / (sum(len(request.tokens) for request in requests) - before)
    assert per_token_s < (0.7 if is_worth_it else 1.1) * plainly_s / 100


def test_where_a_worker_drafts_a_pass_has_its_price() -> None:
    passes = {}
    for price_s in (0.0, 0.03, math.inf):
        site, request = Site(price_s=price_s), Request([1, 2, 3])
        site.passes_of(3, request)
        site.join()
        passes[price_s] = 0
        for _ in range(50):
            passes[price_s] += site.passes_of(1, request)
            site.send(1, len(request.tokens) - 1, [])  # it lives, and has nothing to say
    assert passes[0.0] > 50
    assert passes[0.03] == passes[math.inf] == 0


def test_without_a_worker_there_is_no_price() -> None:
    assert Site(price_s=math.inf).passes_of(50, Request([1, 2, 3])) > 50


def test_a_chain_that_a_worker_has_made_long_enough_is_left_alone() -> None:
    site, request = Site(), Request([1, 2, 3])
    site.join()
    site.step(request)
    tokens: list[int] = list(request.tokens)
    while len(tokens) < len(request.tokens) + MAX_DRAFT_TOKENS + 2:
        tokens.append(following(tokens))
    site.send(1, len(request.tokens) - 1, tokens[len(request.tokens) :], log_prob=-0.01)
    site.step(request)
    assert (site.passes, len(request.chain)) == ([], MAX_DRAFT_TOKENS)


def test_a_chain_that_a_worker_has_begun_is_gone_on_with() -> None:
    site, request = Site(disagreement=0.0), Request([1, 2, 3])
    site.join()
    site.step(request)
    first = following(request.tokens)
    second = following([*request.tokens, first])
    site.send(1, len(request.tokens) - 1, [first, second], log_prob=-0.01)
    site.knows_its_steps()
    site.step(request)
    assert request.chain[0] == second
    assert len(request.chain) > 1


def test_what_a_worker_finds_improbable_is_not_asked_again() -> None:
    site, request = Site(), Request([1, 2, 3])
    site.join()
    site.step(request)
    many = [token for token in range(VOCABULARY) if token != following([*request.tokens, following(request.tokens)])][:16]
    site.send(1, len(request.tokens) - 1, [following(request.tokens), *many], parents=[0, *[1] * 16], log_prob=-3.2)
    site.step(request)
    assert (site.passes, request.chain) == ([], ())


def test_a_worker_that_is_sure_of_a_wrong_token_is_judged_by_the_local_model() -> None:
    site, request = Site(disagreement=0.0), Request([1, 2, 3])
    site.join()
    site.step(request)
    first = following(request.tokens)
    ranked = np.argsort(-TARGET.logits_after(np.array([[*request.tokens, first]], np.int64)[:, -CONTEXT_TOKENS:])[0])
    site.send(1, len(request.tokens) - 1, [first, int(ranked[1])], log_prob=-0.01)
    site.knows_its_steps()
    site.step(request)
    assert request.chain[0] == ranked[0]


PIECE = 512


@pytest.mark.parametrize("length", [PIECE * 3, PIECE + 1, NEAR_TOKENS + 1])
def test_a_long_prompt_is_computed_in_pieces_and_drafts_come_after_it(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MAX_PIECE_TOKENS", PIECE)
    generator = random.Random(1)
    prompt = [generator.randrange(VOCABULARY) for _ in range(length)]
    site, request = Site(disagreement=0.0), Request(prompt)
    for _ in range(30):
        site.step(request)
        assert sum(item.tokens for items in site.passes for item in items) <= PIECE + NEAR_TOKENS
    assert site.draft.tokens_computed >= length
    assert request.accepted == request.proposed > 30


def test_a_text_has_to_go_on_for_a_while_before_its_long_prompt_is_computed() -> None:
    site = Site()
    site.pass_s = lambda items: 0.001 + 1e-3 * sum(item.tokens for item in items)
    site.passes_of(50, Request([1, 2, 3]))  # what passes take is known
    assert site.passes_of(50, Request([7] * 3000)) == 0
    assert site.passes_of(300, Request([8] * 3000)) > 0


def test_texts_that_the_draft_model_cannot_hold_are_left_alone() -> None:
    site, request = Site(context_length=20), Request([1, 2, 3])
    site.passes_of(100, request)
    assert len(request.tokens) > 100
    assert request.chain == ()
    assert Site().passes_of(10, Request([1, VOCABULARY])) == 0


def test_no_more_texts_than_so_many_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposer, "MAX_CACHES", 2)
    site = Site()
    assert site.passes_of(10, *[Request([number]) for number in range(5)]) > 0
    assert site.draft.open_sessions == 2


def test_a_finished_request_gives_its_cache_back() -> None:
    site, going, ending = Site(), Request([1, 2]), Request([3, 4])
    site.passes_of(5, going, ending)
    assert site.draft.open_sessions == 2
    while site.now < ABSENT_S + 1.0:
        site.step(going)
        site.handle(DeadlineReached())
    assert site.draft.open_sessions == 1


def test_after_a_pass_that_failed_caches_are_given_back_and_local_drafts_rest() -> None:
    site, request = Site(disagreement=0.0), Request([1, 2, 3])
    site.passes_of(5, request)
    site.is_broken = True
    failed_at = site.now
    site.step(request)
    assert (len(site.passes), site.draft.open_sessions) == (1, 0)
    site.is_broken = False
    while site.now < failed_at + REST_S:
        site.step(request)
        assert site.passes == []
    before = request.accepted
    site.passes_of(20, request)
    assert request.accepted > before
    assert is_exact(request)


def test_an_answer_to_no_pass_is_a_fault_of_the_driver() -> None:
    site = Site()
    with pytest.raises(LocalProtocolError, match="no draft pass"):
        site.handle(DraftFinished(choices=(), duration_s=0.0))
    request = Request([1, 2, 3])
    site.step(request)
    site.now += STEP_S
    num_new = request.verify()
    rows = (Row(tokens=Tokens(request.tokens), num_new=num_new),)
    assert isinstance(site.handle(StepFinished(rows=rows))[-1], StartDraft)
    with pytest.raises(LocalProtocolError, match="is in flight"):
        site.handle(StepFinished(rows=rows))


@pytest.mark.parametrize("seed", range(6))
def test_whatever_comes_and_goes_the_cache_is_that_of_the_text(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft model that is the target's equal is never wrong, unless its cache is."""
    monkeypatch.setattr(proposer, "REST_S", 0.1)
    generator = random.Random(seed)
    site = Site(disagreement=0.0, context_length=generator.choice([300, 4096]))
    site.join()
    requests = [Request(generator.choices(range(VOCABULARY), k=generator.choice([3, 100, 700]))) for _ in range(6)]
    for _ in range(100):
        shown = generator.sample(requests, generator.randrange(1, 7))
        if generator.random() < 0.1:
            for request in shown:
                request.chain = request.chain[: generator.randrange(3)]
        site.is_broken = generator.random() < 0.05
        site.step(*shown)
        if generator.random() < 0.05:
            requests.remove(shown[0])
            requests.append(Request(generator.choices(range(VOCABULARY), k=5)))
        site.handle(DeadlineReached())
    assert sum(request.accepted for request in requests) > 100
    assert all(is_exact(request) and request.accepted == request.proposed for request in requests)
