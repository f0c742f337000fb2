"""The `wanspec` command, and `python -m wanspec`."""

import sys


def main() -> None:
    """Run it. Ctrl-C ends it without a traceback from the first moment on, while modules are still being imported."""
    try:
        from wanspec.cli.application import app  # noqa: PLC0415  # it takes a moment, in which a person may think better of it

        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
