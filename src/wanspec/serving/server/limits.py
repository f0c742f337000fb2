"""What one server takes on, and from whom."""

from __future__ import annotations

from dataclasses import dataclass

from wanspec.errors import ConfigError

MAX_STOPS = 4
"""Stop strings of a request: as many as OpenAI takes."""
MAX_STOP_CHARACTERS = 256
"""Of one stop string: text is held back, and searched at every token, for as long as it might become one."""
MAX_STOP_TOKENS = 128
"""Stop tokens of a request: many more than any model has control tokens that end something."""
MAX_ENCODINGS = 2
"""Prompts tokenised at a time, each in a thread: a crowd of long ones must not starve the passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Every bound of the server that an operator may want to move. Raises ConfigError where a value cannot be."""

    max_running: int = 16
    """Generations in the engine at a time, at least 1; each choice of a request is one."""
    max_queued: int = 64
    """Generations waiting for their turn, at least 0; whoever comes beyond them is refused."""
    max_queue_wait_s: float = 60.0
    """The longest wait for a turn: most clients and proxies give up after a minute anyway."""
    max_choices: int = 8
    """Choices of one request: its prompts times its `n`."""
    max_prompt_tokens: int = 0
    """Of one prompt; 0: as many as the context holds."""
    max_body_bytes: int = 1 << 20
    """Of a request: a megabyte is a book."""
    max_header_bytes: int = 16 << 10
    """Of a request's head, together."""
    max_connections: int = 1024
    """Open at a time; below the 1,024 files that a process may usually have only if clients behave, so raise `ulimit -n` as well."""
    max_handshakes: int = 256
    """TLS handshakes under way: whoever comes beyond them is cut off. Each holds some 300 kB for `head_timeout_s` at most."""
    head_timeout_s: float = 10.0
    """From the first to the last byte of a request's head, and from the opening of a connection; as much for a TLS handshake."""
    keep_alive_s: float = 75.0
    """How long a connection is kept between two requests: longer than proxies keep theirs, most of them for 60 s. Where there are
    `max_connections`, the one that has been idle for longest makes room for a new one."""
    body_timeout_s: float = 30.0
    """For all of a request's body."""
    slow_reader_s: float = 20.0
    """How long a connection may stay too full to be written to; then it is cut."""
    quiet_s: float = 5.0
    """How long a stream says nothing: then its head, or a comment, tells proxies that it goes on; they give up after 30 s and more."""
    max_unread_characters: int = 1 << 18
    """Text of one choice of a stream that its client has not taken yet; beyond it the generation is cancelled."""
    coalesce_s: float = 0.0
    """Between two events of a stream, 0 to 10, which are then as long as each other; 0: as they come, and sizes and times of events tell an
    eavesdropper something of the text."""
    key_streams: int = 0
    """Requests of one API key at a time; 0: no limit."""
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
        """Choices that a request may have if it is to be served at all."""
        return min(self.max_choices, self.max_running + self.max_queued)
