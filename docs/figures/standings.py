"""What the controller may hold of a worker, and what changes that: drawn from the table that the code goes by.

python docs/figures/standings.py
"""

from __future__ import annotations

from wanspec.core.protocol.pool import STANDINGS, Standing


def main() -> None:
    """Print it as Markdown."""
    print("| a worker is | and | then it is |\n|---|---|---|")
    for standing in Standing:
        for (before, finding), after in STANDINGS.items():
            if before is standing:
                print(f"| {before} | {finding} | {after} |")


if __name__ == "__main__":
    main()
