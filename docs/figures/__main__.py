"""Make the figures of the docs again, and write them into their pages.

make figures                                    # all that are a function of the code: minutes
python docs/figures NAME...                     # these, dear ones too
python docs/figures --list                      # what there is, with its commands
"""

from __future__ import annotations

import argparse
import time

from catalogue import FIGURES
from figure import Cost, Figure, is_committed, made, put


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures; default: all that do not need a machine of their own")
    parser.add_argument("--list", action="store_true", help="say what there is")
    arguments = parser.parse_args()
    if arguments.list:
        for figure in FIGURES.values():
            print(f"{figure.name} ({figure.page}, {figure.cost}{'' if figure.body else ', put together by hand'})")
            print("".join(f"    {command}\n" for command in figure.commands), end="")
        return
    if unknown := [name for name in arguments.names if name not in FIGURES]:
        parser.error(f"no figure is called {', '.join(unknown)}; --list names them")
    if not is_committed():
        parser.error("src or bench differs from the last commit: commit it first, since a figure names the commit that it is of")
    for figure in [FIGURES[name] for name in arguments.names] or [each for each in FIGURES.values() if each.cost is not Cost.DEAR]:
        _make(figure)


def _make(figure: Figure) -> None:
    if figure.body is None:
        print(f"{figure.name}: run its commands (--list) and put it into {figure.page} by hand, with commit and date")
        return
    began = time.monotonic()
    is_new = put(figure, *made(figure))
    print(f"{figure.name}: {'changed' if is_new else 'the same'}, {time.monotonic() - began:.0f} s", flush=True)


main()
