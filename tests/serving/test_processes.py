"""Real worker processes over real sockets: killed, refused, stopped, and dialling again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.serving.scripted import GREEDY, PROMPT, collect, plainly
from tests.workers import WAIT_S, until

from wanspec.core.policy.registry import PolicyConfig
from wanspec.core.protocol.heartbeat import LOST_MIN_S, PING_PERIOD_S
from wanspec.core.protocol.messages import Pong
from wanspec.core.protocol.placement import ANYWHERE, Placement
from wanspec.engines.paced import PacedBackend
from wanspec.engines.registry import load_backend
from wanspec.errors import ConfigError, TransportError
from wanspec.serving.engine import ControllerEngine, expected_of
from wanspec.serving.worker_process import hello_for
from wanspec.transport import certificates
from wanspec.transport.certificates import add_controller_certificate, create_trial_certificates
from wanspec.transport.grpc_wire import GrpcListener, dial, listen
from wanspec.transport.limits import WireLimits
from wanspec.transport.security import ControllerSecurity, MutualTls, Plaintext

TARGET, DRAFT = "scripted:target,vocabulary=32,seed=5", "scripted:draft,vocabulary=32,seed=5,disagreement=0.2"
TOKEN = "a-secret"


@asynccontextmanager
async def controller(
    address: str = "127.0.0.1:0", security: ControllerSecurity | None = None
) -> AsyncIterator[tuple[ControllerEngine, str]]:
    target = PacedBackend(load_backend(TARGET), step_s=0.01, token_s=0.0)
    listener = await listen(address, expected=expected_of(target.info), security=security or Plaintext(token=TOKEN))
    async with ControllerEngine(target=target, draft=load_backend(DRAFT), listener=listener) as engine:
        yield engine, listener.address


@asynccontextmanager
async def worker(address: str, *arguments: str, token: str = TOKEN, draft: str = DRAFT) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "wanspec", "worker", "--controller", address, "--draft", draft, *arguments,
        stderr=asyncio.subprocess.PIPE, env={**os.environ, "WANSPEC_TOKEN": token},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Exit status and what it said."""
    async with asyncio.timeout(WAIT_S):
        _, words = await process.communicate()
    return process.returncode, words.decode()


async def text(engine: ControllerEngine, *, max_tokens: int = 40, placement: Placement = ANYWHERE) -> list[int]:
    policy = PolicyConfig(name="remote")
    return await collect(engine.submit(PROMPT, max_tokens=max_tokens, sampling=GREEDY, policy=policy, placement=placement))


async def joined(engine: ControllerEngine) -> None:
    async with asyncio.timeout(WAIT_S):
        await engine.wait_for_workers(1)


async def test_a_worker_killed_in_mid_generation_costs_no_text_and_the_next_one_is_used() -> None:
    async with (
        controller() as (engine, address),
        worker(address, "--name", "first") as first,
        worker(address, "--name", "second") as second,
        asyncio.timeout(WAIT_S),
    ):
        await engine.wait_for_workers(2)
        processes = {"first": first, "second": second}
        tokens: list[int] = []
        async for news in engine.submit(PROMPT, max_tokens=300, sampling=GREEDY, policy=PolicyConfig(name="remote")):
            tokens += news
            if len(tokens) > 30 and len(processes) == 2:
                (drafting,) = [known for known in engine.workers.connected if known.sessions]
                process = processes.pop(drafting.name)
                process.kill()
                await process.wait()
        assert tokens == plainly(max_tokens=300)
        (left,) = engine.workers.connected
        assert [left.name] == list(processes)
        assert left.proposed_tokens > 0
        await engine.drain("done")
        assert (await ended(processes[left.name]))[0] == 0


@pytest.mark.slow
async def test_a_worker_whose_machine_stands_still_is_given_up_in_seconds_and_let_in_again_at_once() -> None:
    async with controller() as (engine, address), worker(address) as process:
        await joined(engine)
        process.send_signal(signal.SIGSTOP)  # its TCP connection stays open
        async with asyncio.timeout(PING_PERIOD_S + LOST_MIN_S + WireLimits().close_timeout_s + 1.0):
            await until(lambda: not engine.worker_names)
        process.send_signal(signal.SIGCONT)
        await joined(engine)
        assert await text(engine) == plainly()


async def test_a_worker_in_quarantine_says_why_and_is_let_in_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("wanspec.transport.quarantine.FIRST_QUARANTINE_S", 1000.0)  # until we say so
    caplog.set_level(logging.DEBUG, "wanspec.transport")
    async with controller() as (engine, address):
        hello = hello_for(load_backend(DRAFT).info, worker_name="liar", max_sessions=1)
        _, connection = await dial(address, hello, security=Plaintext(token=TOKEN))
        await joined(engine)
        connection.send([Pong(number=99)])
        with contextlib.suppress(TransportError):
            while True:
                await connection.receive()
        async with asyncio.timeout(WAIT_S), worker(address, "--name", "liar") as process:
            await until(lambda: "turned away the worker" in caplog.text)
            assert isinstance(engine._listener, GrpcListener)
            (term,) = engine._listener._reception._quarantine._terms.values()
            term.until = 0.0
            await engine.wait_for_workers(1)
            assert await text(engine) == plainly()
            await engine.drain("done")
            status, said = await ended(process)
    assert status == 0
    assert "s: it answers ping 99, which never was; dialling again" in " ".join(said.split())


@pytest.mark.slow
async def test_a_request_is_drafted_for_where_its_labels_allow_and_nowhere_else(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    async with (
        controller() as (engine, address),
        worker(address, "--name", "here", "--label", "region=eu", "--label", "gpu=t4") as here,
        worker(address, "--name", "there", "--label", "region=us", "--trace", str(trace)) as there,
    ):
        async with asyncio.timeout(WAIT_S):
            await engine.wait_for_workers(2)
        for placement in (Placement(labels=("region=eu",)), Placement(offload=False)):
            assert await text(engine, placement=placement) == plainly()
        with pytest.raises(ConfigError, match="write KEY=VALUE"):
            await text(engine, placement=Placement(labels=("eu",)))
        await engine.drain("done")
        assert [(await ended(process))[0] for process in (here, there)] == [0, 0]
    assert "OpenSession" not in trace.read_text()


@pytest.mark.slow
async def test_one_worker_process_serves_two_controllers() -> None:
    async with (
        controller() as (one, address),
        controller() as (other, second),
        worker(address, "--controller", second) as process,
    ):
        await asyncio.gather(joined(one), joined(other))
        assert list(await asyncio.gather(text(one, max_tokens=60), text(other, max_tokens=60))) == [plainly(max_tokens=60)] * 2
        await one.drain("done")
        await other.drain("done")
        assert (await ended(process))[0] == 0


async def test_certificates_on_both_sides_let_a_worker_in(tmp_path: Path) -> None:
    files = create_trial_certificates(tmp_path, [])
    security = MutualTls(ca_file=files.ca_file, certificate_file=files.controller_certificate_file, key_file=files.controller_key_file)
    flags = ["--tls-ca", files.ca_file, "--tls-cert", files.worker_certificate_file, "--tls-key", files.worker_key_file]
    async with controller(security=security) as (engine, address), worker(address, *map(str, flags), token=""):
        await joined(engine)
        assert await text(engine) == plainly()


@pytest.mark.slow
async def test_a_controller_that_is_dialled_by_its_address_is_known_by_the_name_in_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "LOOPBACK_HOSTS", ())
    files = create_trial_certificates(tmp_path, ["a.example.org"])
    own = MutualTls(ca_file=files.ca_file, certificate_file=files.controller_certificate_file, key_file=files.controller_key_file)
    certificate, key = add_controller_certificate(tmp_path, "b", ["b.example.org"])
    trust = ("--tls-ca", files.ca_file, "--tls-cert", files.worker_certificate_file, "--tls-key", files.worker_key_file)
    flags = [str(flag) for flag in trust]
    async with (
        controller(security=own) as (one, address),
        controller(security=replace(own, certificate_file=certificate, key_file=key)) as (other, second),
    ):
        async with worker(address, *flags, token="") as process:
            status, said = await ended(process)
            assert (status, "or name one by --server-name" in said) == (1, True)
        flags += ["--controller", second, "--server-name", "a.example.org", "--server-name", "b.example.org"]
        async with worker(address, *flags, token=""):
            await asyncio.gather(joined(one), joined(other))
            assert await text(one) == plainly()


@pytest.mark.parametrize(
    ("token", "draft", "words"),
    [
        ("wrong", DRAFT, "token"),
        (TOKEN, "scripted:draft,vocabulary=64,seed=5", "tokenizer fingerprint"),
    ],
)
async def test_a_worker_that_does_not_fit_is_told_why_and_exits(token: str, draft: str, words: str) -> None:
    async with controller() as (_, address), worker(address, token=token, draft=draft) as process:
        status, said = await ended(process)
    assert status == 1
    assert words in said
    assert "Traceback" not in said


async def test_a_worker_dials_again_when_its_controller_is_back() -> None:
    async with controller() as (engine, address), worker(address) as process:
        await joined(engine)
        await engine.__aexit__(None, None, None)
        async with controller(address) as (again, _):
            await joined(again)
            assert await text(again) == plainly()
            await again.drain("done")
            status, said = await ended(process)
    assert status == 0
    assert "dialling again" in said


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_a_worker_that_is_stopped_goes_quietly(number: signal.Signals, status: int) -> None:
    async with controller() as (engine, address), worker(address) as process:
        await joined(engine)
        process.send_signal(number)
        code, said = await ended(process)
    assert code == status
    assert "Traceback" not in said
