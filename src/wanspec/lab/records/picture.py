"""Pictures as files. matplotlib takes a second to import, so it is imported when something is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from wanspec.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES: Final = (".png", ".svg", ".pdf")
DPI: Final = 130


def check_picture(path: Path | None) -> None:
    """Raise ConfigError, before any work is done, where the file's name says no kind of picture that can be drawn."""
    if path is not None and path.suffix not in SUFFIXES:
        raise ConfigError(f"--plot {path}: name a file that ends with {', '.join(SUFFIXES)}")


def new_picture(width: float, height: float) -> Figure:
    """Of this size in inches."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # see above

    return Figure(figsize=(width, height), layout="constrained")


def save_picture(picture: Figure, path: Path) -> None:
    """Raises ConfigError where it cannot be written."""
    try:
        picture.savefig(path, dpi=DPI)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name a file that you can write") from error
