"""What `/status.json` tells, to whom, and how much of it; and what the page comes with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from tests.serving.server.site import Site, bearer, plain_text, site, site_with_a_worker, slow_target

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.snapshot import MAX_SHOWN_COMMITTED, MAX_SHOWN_DRAFTS
from wanspec.engines.paced import PacedBackend
from wanspec.engines.registry import load_tokenizer
from wanspec.errors import ConfigError
from wanspec.serving.server.keys import ANONYMOUS, ApiKeys
from wanspec.serving.server.limits import ServerLimits
from wanspec.serving.server.status import MAX_SHOWN_REQUESTS, Access, status_of
from wanspec.serving.server.status_page import PAGE_FILES

ALICE, BOB, OPS = "alice-secret-0123456789", "bob-secret-0123456789", "ops-secret-0123456789"
KEYS = ApiKeys({"alice": ALICE, "bob": BOB, "ops": OPS})
ACCESS = Access(operators=frozenset({"ops"}))
HOSTILE = "<img src=x onerror=alert(1)>"
MAX_ANSWER_BYTES = 64 << 10
"""Of an answer about one worker with a usual name, 64 requests and a full tree."""


def slow() -> PacedBackend:
    return slow_target(step_s=0.02)


@asynccontextmanager
async def under_way(place: Site, *, key: str = "", number: int = 1, **body: object) -> AsyncIterator[list[str]]:
    """Requests that are in the engine, and stay there until the block ends; their ids."""
    ids = [f"request-{key[:3]}-{index}" for index in range(number)]
    order = {"prompt": "xyzzy", "max_tokens": 3000, "temperature": 0} | body
    requests = [
        asyncio.create_task(place.client.post("/v1/completions", json=order, headers=bearer(key) | {"X-Request-Id": request_id}))
        for request_id in ids
    ]
    try:
        yield ids
    finally:
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)


async def status(place: Site, *, key: str = "", request: int | None = None, since: int = -1) -> dict[str, Any]:
    query = {"since": since} | ({} if request is None else {"request": request})
    answer = await place.client.get("/status.json", params=query, headers=bearer(key))
    assert answer.status_code == 200
    told: dict[str, Any] = answer.json()
    return told


async def until(place: Site, *, key: str = "", requests: int = 1, tokens: int = 1) -> list[dict[str, Any]]:
    """The requests under way, once each of so many has so many tokens."""
    async with asyncio.timeout(20):
        while True:
            page = await status(place, key=key)
            told: list[dict[str, Any]] = page["requests"]
            if len(told) + page["left_out"] == requests and all(request["tokens"] >= tokens for request in told):
                return told
            await asyncio.sleep(0.01)


async def test_a_request_under_way_is_told_in_figures_without_its_prompt() -> None:
    async with site(target=slow(), policy=PolicyConfig(name="colocated")) as place, under_way(place) as ids:
        (request,) = await until(place, tokens=20)
        answer = await place.client.get("/status.json", params={"request": request["number"]})
    assert (request["id"], request["choice"], request["worker"]) == (ids[0], 0, None)
    assert 0 < request["rounds"] <= request["tokens"]
    assert request["accepted_draft_tokens"] > 0
    assert request["local_draft_passes"] > 0
    assert 0 < request["tokens"] / request["age_s"] < request["tokens_per_s"] * 2
    assert "xyzzy" not in answer.text


async def test_the_tree_that_is_told_is_the_engines_and_its_spine_is_the_text() -> None:
    tokenizer = load_tokenizer("scripted:target,vocabulary=95")
    expected = tokenizer.encode(plain_text("xyzzy", max_tokens=400))
    async with site(target=slow(), policy=PolicyConfig(name="colocated-tree")) as place, under_way(place):
        (request,) = await until(place, tokens=5)
        told = await status(place, request=request["number"])
        while len(told["tree"]["nodes"]) < 2:  # between a commit and the next draft pass there is no draft
            told = await status(place, request=request["number"])
    head = next(node for node in told["tree"]["nodes"] if node["node_id"] == told["tree"]["head_id"])
    assert head["token"] == expected[head["position"] - len("xyzzy")]
    drafts = [node for node in told["tree"]["nodes"] if not node["is_committed"]]
    assert all(0 < node["probability"] <= 1 and not node["is_from_worker"] for node in drafts)
    assert (told["shows_text"], told["texts"]) == (False, None)


async def test_text_is_told_where_the_server_was_started_to_tell_it() -> None:
    async with site(target=slow(), access=Access(shows_text=True)) as place, under_way(place):
        (request,) = await until(place, tokens=5)
        told = await status(place, request=request["number"])
    tokenizer = load_tokenizer("scripted:target,vocabulary=95")
    assert told["texts"] == [tokenizer.decode([node["token"]]) for node in told["tree"]["nodes"]]


async def test_a_key_sees_its_own_requests_and_an_operators_sees_all() -> None:
    async with site(target=slow(), keys=KEYS, access=ACCESS) as place, under_way(place, key=ALICE), under_way(place, key=BOB):
        (hers,) = await until(place, key=ALICE)
        (his,) = await until(place, key=BOB)
        assert (hers["id"], his["id"]) == ("request-ali-0", "request-bob-0")
        assert {request["id"] for request in await until(place, key=OPS, requests=2)} == {hers["id"], his["id"]}
        for key, number, is_told in [(ALICE, hers, True), (ALICE, his, False), (BOB, hers, False), (OPS, hers, True), (OPS, his, True)]:
            told = await status(place, key=key, request=number["number"])
            assert (told["tree"] is not None) == is_told
            assert (told["sees_all"], told["running"]) == (key == OPS, 2)


async def test_what_is_asked_for_without_sense_is_refused_or_not_there() -> None:
    async with site() as place:
        for query in ("request=x", "since=x", "request=1.5"):
            answer = await place.client.get(f"/status.json?{query}")
            assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
        for number in (0, -1, 7, 10**30):
            assert (await status(place, request=number))["tree"] is None


async def test_an_answer_is_bounded_however_many_ask_and_however_large_their_trees_are() -> None:
    number = MAX_SHOWN_REQUESTS + 6
    limits = ServerLimits(max_running=8, max_queued=number)
    async with site(target=slow(), limits=limits) as place, under_way(place, number=number // 2, n=2):
        await until(place, requests=number, tokens=0)
        (session_id, session), *_ = place.engine._machine._sessions.items()
        for token in range(90):
            child = session.tree.add(session.tree.head, token, log_prob=-1.0)
            if child is not None:
                session.tree.add(child, token, log_prob=-1.0)
        answer = msgspec.json.encode(
            status_of(place.service, Access(shows_text=True), ANONYMOUS, number=session_id, since=-1)
        )  # before a commit
    told = msgspec.json.decode(answer)
    assert (len(told["requests"]), told["left_out"]) == (MAX_SHOWN_REQUESTS, 6)
    assert (told["running"], told["waiting"]) == (8, number - 8)
    assert MAX_SHOWN_DRAFTS < len(told["tree"]["nodes"]) <= MAX_SHOWN_DRAFTS + MAX_SHOWN_COMMITTED
    assert told["tree"]["left_out"] > 50
    assert len(answer) < MAX_ANSWER_BYTES
    ages = [request["age_s"] for request in told["requests"]]
    assert ages == sorted(ages, reverse=True)
    assert {request["number"] is None for request in told["requests"]} == {True, False}


async def test_a_worker_is_told_as_it_is_whatever_it_calls_itself() -> None:
    async with site_with_a_worker("remote", name=HOSTILE, labels=("region=eu",)) as place:
        async with under_way(place):
            (request,) = await until(place, tokens=60)
            async with asyncio.timeout(20):
                told = await status(place, request=request["number"])
                while not any(node["is_from_worker"] for node in told["tree"]["nodes"]):  # its drafts have all been committed, just now
                    told = await status(place, request=request["number"])
            answer = await place.client.get("/status.json")
        (seen,) = told["workers"]
        assert (seen["name"], seen["labels"], seen["sessions"], seen["max_sessions"]) == (HOSTILE, ["region=eu"], 1, 4)
        assert 0.02 <= seen["rtt_s"] < 2
        assert 0 < seen["share"] <= 1
        assert (request["worker"], told["state"]) == (HOSTILE, "ok")
        assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == ("application/json", "nosniff")


async def test_seconds_that_are_known_are_not_told_again() -> None:
    async with site(target=slow()) as place, under_way(place):
        await until(place, tokens=1)
        told = await status(place)
        async with asyncio.timeout(20):
            while not told["seconds"]:
                await asyncio.sleep(0.05)
                told = await status(place)
        newest = told["seconds"][-1][0]
        assert [second[0] for second in (await status(place, since=newest))["seconds"] if second[0] <= newest] == []
        assert told["seconds"][0][1] > 0


async def test_the_page_needs_no_key_and_holds_no_data_and_may_run_nothing_but_itself() -> None:
    async with site(keys=KEYS) as place:
        for path, (_, kind) in PAGE_FILES.items():
            answer = await place.client.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
            policy = answer.headers["content-security-policy"].split("; ")
            assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"} <= set(
                policy
            )
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert "access-control-allow-origin" not in answer.headers
            for word in ("://", "innerHTML", "onclick", "style=", "eval(", place.service.model_name):
                assert word not in answer.text.replace("http://www.w3.org/2000/svg", ""), path
        assert (await place.client.get("/status.json")).status_code == 401
        told = await place.client.get("/status.json", headers=bearer(ALICE))
        assert told.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in told.headers["content-security-policy"]


async def test_another_name_of_a_private_server_gets_no_page() -> None:
    async with site(is_private=True) as place:
        for path in ("/", "/status.json"):
            assert (await place.client.get(path, headers={"Host": "evil.example"})).status_code == 421


async def test_a_page_that_asks_every_second_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wanspec.serving.server")
    async with site(keys=KEYS) as place:
        await status(place, key=ALICE)
        await place.client.get("/status.json")
    lines = [record.__dict__["fields"] for record in caplog.records if record.message == "request"]
    assert [(line["status"], line["key"]) for line in lines] == [(401, "anonymous")]


def test_an_operator_without_a_key_is_named() -> None:
    assert Access.checked(" ops  bob ", shows_text=False, keys=KEYS).operators == {"ops", "bob"}
    assert Access.checked("", shows_text=True, keys=None) == Access(shows_text=True)
    for keys in (KEYS, None):
        with pytest.raises(ConfigError, match="--operators eve: no API key has that name"):
            Access.checked("eve", shows_text=False, keys=keys)
