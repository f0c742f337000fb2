"""A child process that ends with its parent: the kernel closes our standard input when the parent dies, however it dies."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine


async def while_stdin_is_open(work: Coroutine[object, None, None]) -> None:
    """Run `work`, and cancel it when standard input closes."""
    tasks = {asyncio.ensure_future(work), asyncio.ensure_future(_end_of_stdin())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _end_of_stdin() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1024):
        pass
