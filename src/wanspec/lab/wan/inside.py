"""Run a command inside a network namespace: `python -m wanspec.lab.wan.inside NAMESPACE -- COMMAND ARGS...`.

The command takes this process over, with its id, its standard streams and its environment.
"""

from __future__ import annotations

import os
import sys

from wanspec.errors import TransportError
from wanspec.lab.wan.namespaces import enter_namespace

USAGE = "usage: python -m wanspec.lab.wan.inside NAMESPACE -- COMMAND ARGS..."


def main(arguments: list[str]) -> None:
    """The command line. Ends the process where the command cannot take it over."""
    match arguments:
        case [namespace, "--", command, *_]:
            try:
                enter_namespace(namespace)
                os.execvp(command, arguments[2:])  # noqa: S606  # no shell between
            except TransportError as error:
                sys.exit(str(error))
            except OSError as error:
                sys.exit(f"cannot run {command}: {error.strerror}")
        case _:
            sys.exit(USAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
