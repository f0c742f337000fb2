"""The other processes of an experiment: what is awaited of them, and their end."""

from __future__ import annotations

import asyncio

import pytest

from wanspec.errors import TransportError
from wanspec.lab.wan import children
from wanspec.lab.wan.children import Child

WAITS = ("-c", "import sys; sys.stdin.read()")


async def test_what_comes_while_the_process_runs_is_handed_on() -> None:
    async with Child("patient", WAITS) as child:
        assert await child.wait_for(asyncio.sleep(0, "here"), otherwise="nothing came") == "here"


async def test_a_process_that_ends_first_is_named_with_its_last_words() -> None:
    async with Child("short", ("-c", "import sys; sys.exit('there is no model')")) as child:
        with pytest.raises(TransportError, match="the short process ended with status 1: there is no model"):
            await child.wait_for(asyncio.Event().wait(), otherwise="nothing came")


async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "START_TIMEOUT_S", 0.01)
    async with Child("patient", WAITS) as child:
        with pytest.raises(TransportError, match=r"nothing came within 0\.01 s"):
            await child.wait_for(asyncio.Event().wait(), otherwise="nothing came")
