"""Requests and workers: who gets to see a prompt, and whether the report and the metrics say what was."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.serving.server.site import ONE_WAY_S, plain_text, site, site_with_a_worker

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.speculation.types import SamplingParams
from wanspec.engines.bundled_pair import load_bundled, load_bundled_tokenizer
from wanspec.serving.model_runner import decode_plainly
from wanspec.telemetry.records import MessageSent
from wanspec.telemetry.trace import Trace


def sent(trace: Trace) -> list[str]:
    return [record.message for record in trace.records if isinstance(record, MessageSent)]


async def test_a_workers_part_is_told_truly() -> None:
    async with site_with_a_worker("remote") as place:
        answer = (await place.post(prompt="x", max_tokens=60, temperature=0)).json()
        assert answer["choices"][0]["text"] == plain_text("x", max_tokens=60)
        report = answer["choices"][0]["wanspec"]
        assert (report["offload"], report["worker"], report["local_draft_passes"]) == (True, "campus", 0)
        assert 2e3 * ONE_WAY_S <= report["rtt_ms"] < 2000  # on a busy machine, too
        assert 0 < report["accepted_worker_tokens"] == report["accepted_draft_tokens"]  # `remote` has no drafts but the worker's
        assert report["committed_tokens"] == 60
        assert (await place.client.get("/ready")).json() == {"status": "ok", "workers": 1}
        assert place.gauge("wanspec:workers_connected") == 1


async def test_a_prompt_that_must_stay_is_sent_to_no_worker() -> None:
    trace = Trace()
    async with site_with_a_worker(trace=trace) as place:
        body = {"prompt": "x", "max_tokens": 40, "temperature": 0}
        answer = (await place.post(**body, wanspec={"offload": False})).json()
        assert sent(trace) == []
        report = answer["choices"][0]["wanspec"]
        assert (report["offload"], report["worker"], report["rtt_ms"]) == (False, None, None)
        assert answer["choices"][0]["text"] == plain_text("x", max_tokens=40)
        assert report["local_draft_passes"] > 0
        await place.post(**body, wanspec={"offload": True})
        assert sent(trace)[0] == "OpenSession"


async def test_a_policy_that_never_offloads_is_kept() -> None:
    async with site_with_a_worker("autoregressive") as place:
        report = (await place.post(prompt="x", max_tokens=10, wanspec={"offload": False})).json()["choices"][0]["wanspec"]
        assert (report["rounds"], report["local_draft_passes"]) == (10, 0)


@pytest.mark.parametrize("policy", ["adaptive", "remote", "autoregressive"])
async def test_without_a_draft_model_a_prompt_that_must_stay_is_served_by_the_target_and_its_own_text(policy: str) -> None:
    trace = Trace()
    async with site_with_a_worker(policy, has_draft_model=False, trace=trace) as place:
        body = {"prompt": "x", "max_tokens": 40, "temperature": 0}
        reports = []
        for options in ({"offload": False}, {"allowed_labels": ["region=eu"]}, {"offload": True}):
            (choice,) = (await place.post(**body, wanspec=options)).json()["choices"]
            assert choice["text"] == plain_text("x", max_tokens=40)
            reports.append(choice["wanspec"])
        assert [report["worker"] for report in reports] == [None, None, None if policy == "autoregressive" else "campus"]
        assert place.gauge("wanspec:local_draft_passes_total") == sum(report["local_draft_passes"] for report in reports) == 0
        assert sent(trace).count("OpenSession") == (policy != "autoregressive")
        assert (await place.client.get("/status.json")).status_code == 200


async def test_without_a_draft_model_and_a_worker_it_is_ready_to_serve() -> None:
    async with site(has_draft_model=False) as place:
        assert (await place.client.get("/ready")).json()["status"] == "degraded"
        await place.goes_on()


async def test_metrics_add_up_to_what_was_served() -> None:
    async with site(policy=PolicyConfig(name="colocated")) as place:
        reports = []
        for number in (10, 30):
            answer = (await place.post(prompt="abc", max_tokens=number, temperature=0)).json()
            reports.append(answer["choices"][0]["wanspec"])
        await place.post(prompt="abc", max_tokens=50, stop=[plain_text("abc", max_tokens=50)[10:20]], temperature=0)
        await place.idle()
        families = list(text_string_to_metric_families((await place.client.get("/metrics")).text))
        values = {
            (sample.name, sample.labels.get("reason", sample.labels.get("le"))): sample.value for f in families for sample in f.samples
        }
        labels = {sample.labels.get("model_name") for f in families for sample in f.samples if sample.name.startswith("vllm:")}
        assert labels == {"scripted-5-0"}
        assert values["wanspec:requests_finished_total", "length"] == 2
        assert values["wanspec:requests_finished_total", "stop"] == 1
        assert values["wanspec:prompt_tokens_total", None] == values["vllm:prompt_tokens_total", None] == 9
        assert values["wanspec:generated_tokens_total", None] == values["vllm:generation_tokens_total", None] == 60
        for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
            assert values[f"wanspec:{name}_count", None] == values[f"vllm:{name}_count", None] == 3
        assert values["wanspec:inter_token_latency_seconds_bucket", "0.001"] <= values["wanspec:inter_token_latency_seconds_count", None]
        assert 40 < values["wanspec:inter_token_latency_seconds_count", None] < 60
        tally = place.engine.tally
        assert values["vllm:spec_decode_num_drafts_total", None] == tally.drafted_rounds > 0
        assert values["vllm:spec_decode_num_draft_tokens_total", None] == tally.draft_tokens
        assert values["vllm:spec_decode_num_accepted_tokens_total", None] == tally.accepted_draft_tokens
        assert tally.accepted_draft_tokens >= sum(report["accepted_draft_tokens"] for report in reports) > 0
        assert values["wanspec:requests_running", None] == values["wanspec:requests_waiting", None] == 0


async def test_the_bundled_pair_is_served_with_its_own_tokenizer() -> None:
    prompt, tokenizer = "def größe(line):\n    ", load_bundled_tokenizer()
    expected = list(decode_plainly(load_bundled("target"), tokenizer.encode(prompt), max_tokens=40, sampling=SamplingParams()))
    async with site(target=load_bundled("target"), draft=load_bundled("draft"), spec="bundled:target") as place:
        answer = (await place.post(prompt=prompt, max_tokens=40, temperature=0)).json()
        assert answer["choices"][0]["text"] == tokenizer.decode(expected)
        assert answer["usage"]["completion_tokens"] == len(expected)
