"""Who is let in, and what nobody gets to see."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from tests.serving.server.site import bearer, site, slow_target
from tests.workers import until

from wanspec.errors import ConfigError
from wanspec.serving.server.keys import ApiKeys, load_keys, watched_keys
from wanspec.serving.server.limits import ServerLimits
from wanspec.serving.server.log import JsonLines, PlainLines
from wanspec.transport import watched_files

ALICE, BOB = "alice-secret-0123456789", "bob-secret-0123456789"
KEYS = ApiKeys({"alice": ALICE, "bob": BOB})
PATHS = [
    *("/v1/models", "/v1/completions", "/v1/chat/completions", "/metrics", "/openapi.json", "/status.json"),
    *("/nowhere", "/health/x", "/%2Fhealth", "/status", "/status/page.py"),
]


WRONG = [{}, bearer("wrong"), bearer(ALICE[:-1]), {"Authorization": ALICE}, {"Authorization": "Basic " + ALICE}]


async def test_nothing_but_health_and_readiness_is_told_without_a_key() -> None:
    async with site(keys=KEYS) as place:
        for path in PATHS:
            for headers in WRONG:
                for method in ("GET", "POST"):
                    answer = await place.client.request(method, path, headers=headers)
                    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
                    assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/ready", "/health/", "/ready/"):
            assert (await place.client.get(path)).status_code == 200


async def test_a_slash_at_the_end_is_no_redirect_and_opens_nothing() -> None:
    proxied = {"Host": "llm.example.org", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "llm.example.org"}
    async with site(keys=KEYS) as place:
        for path in ("/v1/completions/", "/v1/chat/completions//"):
            body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
            assert (await place.client.post(path, json=body, headers=proxied | bearer(ALICE))).status_code == 200
        for path in ("/v1/models/", "/health/", "/metrics/", "/status.json/", "/openapi.json/"):
            assert (await place.client.get(path, headers=proxied | bearer(ALICE))).status_code == 200
        for path in ("//", "/v1", "//llm.example.net/", "/v1//models/", "/nowhere/"):
            answer = await place.client.get(f"http://127.0.0.1:{place.port}{path}", headers=proxied | bearer(ALICE))
            assert (answer.status_code, answer.headers.get("location")) == (404 if path != "//" else 200, None), path


async def test_every_key_lets_in_by_its_name() -> None:
    async with site(keys=KEYS) as place:
        for key in (ALICE, BOB):
            assert (await place.client.get("/v1/models", headers=bearer(key))).status_code == 200
        assert KEYS.name_of(f"bearer  {BOB} ".encode()) == "bob"


async def test_one_key_cannot_use_up_what_is_anothers() -> None:
    async with site(keys=KEYS, limits=ServerLimits(key_requests_per_minute=2)) as place:
        body = {"prompt": "x", "max_tokens": 1}
        statuses = [(await place.client.post("/v1/completions", json=body, headers=bearer(ALICE))).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert (await place.client.post("/v1/completions", json=body, headers=bearer(BOB))).status_code == 200


async def test_the_key_file_is_read_again_while_answers_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watched_files, "PERIOD_S", 0.01)
    caplog.set_level("INFO", watched_files.__name__)
    path = tmp_path / "keys"
    path.write_text(f"alice:{ALICE}\n")
    keys = load_keys(path, {})
    assert keys is not None
    async with site(keys=keys, watched=[watched_keys(keys, path)], target=slow_target()) as place:
        body = {"prompt": "x", "max_tokens": 60, "temperature": 0}
        answer = asyncio.create_task(place.client.post("/v1/completions", json=body, headers=bearer(ALICE)))
        await until(lambda: place.is_busy)

        async def status(key: str) -> int:
            return (await place.client.get("/v1/models", headers=bearer(key))).status_code

        path.write_text(f"bob:{BOB}\n")
        await until(lambda: "new API keys are in force" in caplog.text)
        assert [await status(key) for key in (ALICE, BOB)] == [401, 200]
        path.write_text("bob\n")
        await until(lambda: "the new API keys cannot be used, the old ones stay in force" in caplog.text)
        assert [await status(key) for key in (ALICE, BOB)] == [401, 200]
        assert (await answer).status_code == 200
        assert ALICE not in caplog.text
        assert BOB not in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there are 0 API keys"),
        ("secret-secret-secret", "entry 1: write NAME:KEY"),
        ("a:short-key", "the API key of a must have 16"),
        ("a:secret-secret-secret\na:secret-secret-secret2", "entry 2: a has a key already"),
        ("a b:secret-secret-secret", "an API key's name"),
        ("anonymous:secret-secret-secret", "an API key's name"),
        ("a:sécret-secret-secret", "is not ASCII"),
    ],
)
def test_a_bad_key_file_is_named_and_no_key_repeated(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=words) as refused:
        load_keys(path, {})
    assert "secret" not in str(refused.value)
    assert "short" not in str(refused.value)


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\nalice:{ALICE}\n\n bob : {BOB}\n".replace(" : ", ":"), "utf-8")
    from_file = load_keys(path, {"WANSPEC_API_KEYS": "c:secret-secret-secret"})
    from_environment = load_keys(None, {"WANSPEC_API_KEYS": f"alice:{ALICE} bob:{BOB}"})
    for keys in (from_file, from_environment):
        assert keys is not None
        assert [keys.name_of(f"Bearer {key}".encode()) for key in (ALICE, BOB)] == ["alice", "bob"]
    assert load_keys(None, {}) is None
    with pytest.raises(ConfigError, match="/nowhere: No such file"):
        load_keys(Path("/nowhere"), {})


async def test_without_keys_no_web_page_can_reach_a_private_server_by_another_name() -> None:
    async with site(is_private=True) as place:
        for host in ("localhost:80", "127.0.0.1", "[::1]:8000"):
            assert (await place.client.get("/v1/models", headers={"Host": host})).status_code == 200
        for host in ("evil.example:80", "evil.example", "localhost.evil.example", ""):
            assert (await place.client.get("/v1/models", headers={"Host": host})).status_code == 421


async def test_a_web_page_cannot_post_without_being_asked_first() -> None:
    async with site() as place:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            answer = await place.client.post("/v1/completions", content=b'{"prompt": "x"}', headers={"Content-Type": kind})
            assert (answer.status_code, answer.json()["error"]["type"]) == (415, "invalid_request_error")
        answer = await place.client.options("/v1/completions", headers={"Origin": "http://evil.example"})
        assert "access-control-allow-origin" not in answer.headers


async def test_the_schema_promises_no_errors_that_are_not_sent() -> None:
    async with site() as place:
        schema = (await place.client.get("/openapi.json")).json()
        assert "HTTPValidationError" not in json.dumps(schema)
        assert set(schema["paths"]["/v1/completions"]["post"]["responses"]) == {"200", "4XX"}
        assert {"prompt", "max_tokens", "wanspec"} <= set(schema["components"]["schemas"]["CompletionRequest"]["properties"])


async def test_neither_prompts_nor_texts_nor_keys_reach_logs_or_metrics(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "wanspec")
    async with site(keys=KEYS) as place:
        answer = await place.client.post(
            "/v1/completions?prompt=xyzzy",
            json={"prompt": "xyzzy", "max_tokens": 30, "temperature": 0, "wanspec": {"offload": True}},
            headers=bearer(ALICE),
        )
        text = answer.json()["choices"][0]["text"]
        assert len(text) > 10  # long enough not to be anywhere by chance
        await place.client.get("/v1/models/xyzzy", headers=bearer(ALICE))
        await place.client.post("/v1/completions", json={"prompt": "xyzzy", "n": "xyzzy"}, headers=bearer(ALICE))
        await place.client.post("/v1/completions", json={"prompt": "xyzzy"}, headers=bearer("plugh-plugh-plugh-plugh"))
        metrics = (await place.client.get("/metrics", headers=bearer(BOB))).text
    ours = [record for record in caplog.records if not record.name.startswith("http")]  # not the client's own
    written = "\n".join(format_.format(record) for record in ours for format_ in (JsonLines(), PlainLines()))
    for secret in ("xyzzy", text, ALICE, BOB, "plugh"):
        assert secret not in written
        assert secret not in metrics


async def test_every_request_leaves_a_line_that_a_program_can_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "wanspec.serving.server")
    async with site(keys=KEYS) as place:
        headers = bearer(ALICE) | {"X-Request-Id": "mine-1"}
        answer = await place.client.post("/v1/completions", json={"prompt": "xyz", "max_tokens": 3, "n": 2}, headers=headers)
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.json()["id"] == "cmpl-mine-1"
        forged = await place.client.get("/health", headers={"X-Request-Id": 'a" \x7f'})
        assert len(forged.headers["x-request-id"]) == 32
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.message == "request"]
    first = lines[0]
    assert (first["request_id"], first["key"], first["method"], first["route"]) == ("mine-1", "alice", "POST", "/v1/completions")
    assert (first["status"], first["prompt_tokens"], first["completion_tokens"]) == (200, 3, 6)
    assert first["finish_reasons"] == ["length", "length"]
    assert first["duration_ms"] > 0
    assert (lines[1]["key"], lines[1]["route"]) == ("anonymous", "/health")
