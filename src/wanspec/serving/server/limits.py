"""The server's limits."""

from __future__ import annotations

from dataclasses import dataclass

from wanspec.errors import ConfigError

MAX_STOPS = 4
"""Stop strings of a request: as many as OpenAI takes."""
MAX_STOP_CHARACTERS = 256
"""Longest stop string: text that might become one is held back, and searched at every token."""
MAX_STOP_TOKENS = 128
"""Stop tokens of a request: many more than any model has control tokens that end something."""
MAX_ENCODINGS = 2
"""Prompts tokenised at a time, each in a thread: many long ones must not starve the passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """The limits that an operator may change. Raises ConfigError on an invalid value."""

    max_running: int = 16
    """Generations in the engine at a time, at least 1; each choice of a request is one."""
    max_queued: int = 64
    """Generations waiting for their turn, at least 0; further ones are refused."""
    max_queue_wait_s: float = 60.0
    """The longest wait for a turn: most clients and proxies give up after a minute anyway."""
    max_choices: int = 8
    """Choices of one request: its prompts times its `n`."""
    max_prompt_tokens: int = 0
    """Longest prompt; 0: the context length."""
    max_body_bytes: int = 1 << 20
    """Longest body of a request: a megabyte is a book."""
    max_header_bytes: int = 16 << 10
    """Longest head of a request."""
    max_connections: int = 1024
    """Connections open at a time. A process may usually have 1,024 files, so raise `ulimit -n` as well."""
    max_handshakes: int = 256
    """TLS handshakes under way; further ones are cut off. Each holds some 300 kB, for `head_timeout_s` at most."""
    head_timeout_s: float = 10.0
    """Time for a request's head, from its first byte or the opening of the connection; as much for a TLS handshake."""
    keep_alive_s: float = 75.0
    """How long a connection may be idle between two requests: longer than at most proxies, which have 60 s. At `max_connections`, the one
    that has been idle for longest is closed for a new one."""
    body_timeout_s: float = 30.0
    """Time for all of a request's body."""
    slow_reader_s: float = 20.0
    """How long a client may leave data unread; then the connection is cut."""
    quiet_s: float = 5.0
    """Longest silence of a stream; then its head or a comment goes out, as proxies give up after 30 s or more."""
    max_unread_characters: int = 1 << 18
    """Unread text of one choice of a stream; beyond it the generation is cancelled."""
    coalesce_s: float = 0.0
    """Time between two events of a stream, 0 to 10, padded to few sizes. 0: an event for each round, whose size and time leak information
    about the text."""
    key_streams: int = 0
    """Requests of one API key in progress; 0: no limit."""
    key_requests_per_minute: int = 0
    """Requests of one API key in a minute; 0: no limit."""

    def __post_init__(self) -> None:
        least: dict[str, float] = {"max_queued": 0, "max_prompt_tokens": 0, "coalesce_s": 0, "key_streams": 0, "key_requests_per_minute": 0}
        for name in self.__slots__:
            value, minimum = getattr(self, name), least.get(name, 0.1 if name.endswith("_s") else 1)
            if not minimum <= value < float("inf"):
                raise ConfigError(f"{name} must be {minimum:g} or more, not {value}")
        if self.coalesce_s > 10.0:  # noqa: PLR2004  # the docstring says so
            raise ConfigError(f"coalesce_s must be between 0 and 10, not {self.coalesce_s}")

    @property
    def max_choices_ever(self) -> int:
        """Choices that a request may have on an idle server."""
        return min(self.max_choices, self.max_running + self.max_queued)
