"""How a command runs and ends: statuses for errors and signals.

0 done; 1 something failed while running; 2 bad input; 130 interrupted; 143 terminated.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import typer
from rich.console import Console

from wanspec.errors import ConfigError, WanspecError
from wanspec.terminal import between_words

if TYPE_CHECKING:
    from wanspec.serving.calibration_store import CalibrationStore

OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""Draft trees are many small objects and no garbage. By default they are searched for it after every 700; a tenth of our time and more."""

T = TypeVar("T")


class _FoldingConsole(Console):
    """Breaks lines between words on a terminal; a file or a program gets them whole."""

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401  # as rich has it
        """Print as rich does."""
        if self.is_terminal:
            objects = tuple(between_words(each, self.width) if isinstance(each, str) else each for each in objects)
        super().print(*objects, **options)


stdout = _FoldingConsole(highlight=False, markup=False, soft_wrap=True)
stderr = _FoldingConsole(stderr=True, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def exit_statuses() -> Iterator[None]:
    """Turn what a command raises into a message for a person and an exit status."""
    try:
        yield
    except ConfigError as error:
        stderr.print(f"error: {error}", style="red")
        raise typer.Exit(2) from error
    except WanspecError as error:
        stderr.print(f"error: {error}", style="red")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        stderr.print("interrupted", style="dim")
        raise typer.Exit(130) from None
    except OSError as error:  # a full disk, a pipe that nobody reads any more
        _forget_output()
        if not isinstance(error, BrokenPipeError):
            where = f"{error.filename}: " if error.filename else ""
            stderr.print(f"error: {where}{error.strerror or repr(error)}", style="red")
        raise typer.Exit(1) from None


@contextmanager
def saving(store: CalibrationStore) -> Iterator[None]:
    """Keep what was learned, however the work ends. Where that fails too, it is said, but what the work has ended with counts."""
    try:
        yield
    except BaseException:
        try:
            store.save()
        except ConfigError as error:
            stderr.print(f"what was learned is not kept: {error}", style="red")
        raise
    store.save()


def standard_output() -> TextIO:
    """Where text goes; what its encoding lacks is replaced. Raises WanspecError when it is closed."""
    if sys.stdout is None:
        raise WanspecError("standard output is closed; redirect it to a file, or to /dev/null")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return sys.stdout


def _forget_output() -> None:
    """What is still buffered cannot be written, and must not be tried again when the interpreter ends."""
    with suppress(OSError, AttributeError):  # it may be no file, or closed
        sys.stdout.flush()
        return
    with suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(coroutine: Coroutine[object, None, T]) -> T:
    """Run to the end; SIGTERM ends it as tidily as Ctrl-C does."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)

    async def with_sigterm() -> T:
        task = asyncio.ensure_future(coroutine)
        terminated = False

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        try:
            return await task
        except asyncio.CancelledError:
            if terminated:
                raise typer.Exit(143) from None
            raise

    return asyncio.run(with_sigterm())
