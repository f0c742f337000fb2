"""TLS at the port: strangers who do not end their handshake, or send something else, take a bounded place for a bounded time."""

from __future__ import annotations

import asyncio
import gc
import shutil
import ssl
import time
from pathlib import Path

import pytest
from tests.serving.server.site import Site, site
from tests.workers import until

from wanspec.serving.server.limits import ServerLimits
from wanspec.serving.server.tls import TlsDoor
from wanspec.transport import watched_files
from wanspec.transport.certificates import TrialCertificates, create_trial_certificates

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
ALIVE = b'{"status":"alive"}'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TrialCertificates:
    return create_trial_certificates(tmp_path_factory.mktemp("certificates"), ["127.0.0.1"])


def trusting(made: TrialCertificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=made.ca_file)


async def connect(place: Site) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """TCP alone."""
    return await asyncio.open_connection("127.0.0.1", place.port)


async def heard(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server hangs up, politely or not."""
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def until_cut_s(reader: asyncio.StreamReader) -> float:
    """How long it takes until the server hangs up."""
    began_at = time.monotonic()
    await heard(reader)
    return time.monotonic() - began_at


async def nobody_is_left(place: Site) -> None:
    await place.client.aclose()
    await until(lambda: not (place.server.handshakes or place.server.server_state.connections))


async def test_a_handshake_that_does_not_end_is_cut_off_soon(made: TrialCertificates) -> None:
    async with site(limits=ServerLimits(head_timeout_s=0.3), certificates=made) as place:
        silent, half = await connect(place), await connect(place)
        half[1].write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        await place.goes_on()
        assert len(place.server.handshakes) == 2
        for reader, _ in (silent, half):
            assert await until_cut_s(reader) < 5.0
        for _, writer in (silent, half):
            writer.close()
        await nobody_is_left(place)


async def test_handshakes_beyond_the_limit_are_cut_off_at_once_and_places_come_free(made: TrialCertificates) -> None:
    async with site(limits=ServerLimits(max_handshakes=3, head_timeout_s=60.0), certificates=made) as place:
        await place.goes_on()  # on a connection that is kept
        idle = [await connect(place) for _ in range(3)]
        await until(lambda: len(place.server.handshakes) == 3)
        crowd = [await connect(place) for _ in range(50)]
        assert max(await asyncio.gather(*[until_cut_s(reader) for reader, _ in crowd])) < 5.0
        assert len(place.server.handshakes) == 3
        await place.goes_on()
        for _, writer in (*idle, *crowd):
            writer.transport.abort()
        await until(lambda: not place.server.handshakes)
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port, ssl=trusting(made))
        writer.write(HEALTH)
        assert (await reader.read()).endswith(ALIVE)
        writer.close()
        await nobody_is_left(place)


async def test_who_speaks_no_tls_is_cut_off(made: TrialCertificates) -> None:
    async with site(certificates=made) as place:
        reader, writer = await connect(place)
        writer.write(HEALTH)
        assert ALIVE not in await heard(reader)
        writer.close()
        await place.goes_on()
        await nobody_is_left(place)


async def test_a_request_that_comes_with_the_end_of_the_handshake_is_answered(made: TrialCertificates) -> None:
    async with site(certificates=made) as place:
        reader, writer = await connect(place)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting(made).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await reader.read(65536))
        tls.write(HEALTH)
        writer.write(outgoing.read())  # Finished and the request in one piece
        incoming.write(await heard(reader))
        answer = b""
        while not answer.endswith(ALIVE):
            answer += tls.read()
        writer.close()
        await nobody_is_left(place)


async def test_who_hangs_up_at_any_point_of_the_handshake_leaves_nothing_behind(made: TrialCertificates) -> None:
    async with site(certificates=made) as place:
        for patience_s in (0.0, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01):
            for _ in range(5):
                dialling = asyncio.create_task(asyncio.open_connection("127.0.0.1", place.port, ssl=trusting(made)))
                await asyncio.wait([dialling], timeout=patience_s)
                if dialling.done():
                    dialling.result()[1].transport.abort()
                dialling.cancel()
                await asyncio.gather(dialling, return_exceptions=True)
        await place.goes_on()
        await nobody_is_left(place)


async def test_a_handshake_that_leads_nowhere_is_forgotten_before_garbage_is_collected(made: TrialCertificates) -> None:
    """Each takes 300 kB. Strangers who only looked whether the port is open took 700 MB."""
    async with site(certificates=made) as place:
        gc.collect()
        gc.disable()
        try:
            for sent in (b"", HEALTH):
                reader, writer = await connect(place)
                writer.write(sent)
                writer.write_eof()
                await heard(reader)
                writer.close()
            await nobody_is_left(place)
            await until(lambda: not any(isinstance(each, TlsDoor) for each in gc.get_objects()))
        finally:
            gc.enable()


async def test_connections_beyond_the_limit_are_told_so_under_tls_too(made: TrialCertificates) -> None:
    async with site(limits=ServerLimits(max_connections=2), certificates=made) as place:
        idle = [await asyncio.open_connection("127.0.0.1", place.port, ssl=trusting(made)) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port, ssl=trusting(made))
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        for _, open_writer in (*idle, (reader, writer)):
            open_writer.close()
        await nobody_is_left(place)


async def test_a_server_that_ends_waits_for_no_handshake(made: TrialCertificates) -> None:
    async with site(limits=ServerLimits(head_timeout_s=60.0), certificates=made) as place:
        reader, writer = await connect(place)
        await until(lambda: place.server.handshakes)
        place.serving.cancel()
        assert await until_cut_s(reader) < 5.0
        await asyncio.wait([place.serving], timeout=5)
        assert place.serving.done()
        writer.close()


async def test_new_certificates_are_shown_to_new_connections_and_cut_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watched_files, "PERIOD_S", 0.01)
    caplog.set_level("INFO", watched_files.__name__)
    old, new = (create_trial_certificates(tmp_path / name, ["127.0.0.1"]) for name in ("old", "new"))
    async with site(certificates=old) as place:
        kept_reader, kept = await asyncio.open_connection("127.0.0.1", place.port, ssl=trusting(old))
        shutil.copy(new.controller_certificate_file, old.controller_certificate_file)
        await until(lambda: "the new certificates of the API cannot be used, the old ones stay in force" in caplog.text)  # its key is old
        _, writer = await asyncio.open_connection("127.0.0.1", place.port, ssl=trusting(old))
        writer.close()
        shutil.copy(new.controller_key_file, old.controller_key_file)
        await until(lambda: "new certificates of the API are in force" in caplog.text)
        _, writer = await asyncio.open_connection("127.0.0.1", place.port, ssl=trusting(new))
        writer.close()
        kept.write(HEALTH)
        assert (await heard(kept_reader)).endswith(ALIVE)
        kept.close()
        await nobody_is_left(place)
