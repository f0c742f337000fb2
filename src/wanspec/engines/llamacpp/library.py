"""llama.cpp through llama-cpp-python's bindings of its C interface: imported, silenced, with its errors collected."""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache
from typing import Any, Final

from wanspec.errors import ConfigError
from wanspec.extras import how_to_install

INSTALL: Final = how_to_install("llamacpp")
MAX_COMPLAINTS = 3
"""Error lines of llama.cpp that are kept: the last ones say why."""
_ERROR_LEVEL: Final = 4
"""GGML_LOG_LEVEL_ERROR."""

_complaints: deque[str] = deque(maxlen=MAX_COMPLAINTS)


@cache
def llama_cpp() -> Any:  # noqa: ANN401  # the bindings have no types
    """The bindings. Raises ConfigError where they are missing or cannot be loaded."""
    try:
        import llama_cpp as bindings
    except ImportError as error:
        raise missing(error) from error
    except (OSError, RuntimeError) as error:  # its library was built for another machine, or lacks one that it needs
        raise ConfigError(f"llama-cpp-python is installed but does not load ({error}); build it here: {INSTALL}") from error
    bindings.llama_log_set(_log_callback, ctypes.c_void_p())
    bindings.llama_backend_init()
    return bindings


def missing(what: object) -> ConfigError:
    """The error for missing bindings, with the reason `what`."""
    return ConfigError(f"llamacpp models are run by llama-cpp-python, which is not installed ({what}): {INSTALL}")


def complaints() -> str:
    """llama.cpp's errors since the last call."""
    said = "; ".join(_complaints)
    _complaints.clear()
    return said or "llama.cpp does not say why"


def _log(level: int, text: bytes, _data: object) -> None:
    """Called by llama.cpp with a line to log; all but errors are dropped."""
    if level == _ERROR_LEVEL:
        _complaints.append(text.decode(errors="replace").strip())


_log_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_log)
"""Must live as long as llama.cpp may log."""
