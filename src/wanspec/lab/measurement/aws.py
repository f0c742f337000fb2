"""What botocore does for us, AWS's own library: credentials of every kind, kept fresh; hosts of every partition; signatures; frames.

Requests are sent and timed by our own exchange. botocore is an extra: nothing here is imported before a campaign has a Bedrock target.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from wanspec.errors import ConfigError
from wanspec.lab.measurement.attempt import CredentialsError
from wanspec.lab.openai_stream import MalformedStreamError

if TYPE_CHECKING:
    from botocore.session import Session

SERVICE, HOST_SERVICE = "bedrock", "bedrock-runtime"
"""In a signature, and in a host's name."""
CONNECT_S, READ_S, ATTEMPTS = 5.0, 10.0, 2
"""Of the services that give credentials: who waits for one of them measures nothing meanwhile."""
KEPT: Final = 4
"""Credentials that are known to be secret: those in use, and those before, which a late answer may repeat."""
MAX_WAITING_BYTES: Final = 1 << 20
"""Of a frame that is not complete: a delta has some hundred bytes."""
LENGTH_BYTES: Final = 4
"""A frame begins with its length."""
PRELUDE_BYTES: Final = 12
"""The length of a frame, that of its headers, and a checksum of both."""
UNREADABLE_FRAMES: Final = (ValueError, KeyError, IndexError, TypeError, struct.error)
"""What botocore raises, beside its own errors, on headers that make no sense."""


def endpoint_of(region: str, *, where: str) -> str:
    """Bedrock's in this region, of any partition. Raises ConfigError where no partition has such a region."""
    from botocore import UNSIGNED  # noqa: PLC0415  # as the module says
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    session = _session_for_hosts()
    try:
        session.get_partition_for_region(region)
        client = session.create_client(HOST_SERVICE, region_name=region, config=Config(signature_version=UNSIGNED))
    except BotoCoreError as error:
        raise ConfigError(f"{where}: region = {region!r} has no Bedrock endpoint; name an AWS region, or the endpoint by url") from error
    client.close()
    return str(client.meta.endpoint_url)


@cache
def _session_for_hosts() -> Session:
    """Reads what it knows of hosts once: that takes a third of a second."""
    from botocore.session import Session  # noqa: PLC0415  # as the module says

    return Session()


class Signer:
    """Whoever this machine is to AWS: its keys, profile, or role, by the order in which every AWS tool looks for them."""

    def __init__(self, *, profile: str, region: str, where: str) -> None:
        """Looks for credentials at once. Raises ConfigError where there are none."""
        from botocore.config import Config  # noqa: PLC0415  # as the module says
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415
        from botocore.session import Session  # noqa: PLC0415

        self._trouble = ""
        self._kept: deque[Any] = deque(maxlen=KEPT)
        session = Session(profile=profile or None)
        session.set_default_client_config(Config(connect_timeout=CONNECT_S, read_timeout=READ_S, retries={"max_attempts": ATTEMPTS}))
        try:
            _set_region(session, region)
            self._credentials = session.get_credentials()
        except BotoCoreError as error:
            raise ConfigError(f"{where}: {_words(error)}") from error
        if self._credentials is None:
            raise ConfigError(
                f"{where}: this machine has no AWS credentials; give it a role, name a profile by aws_profile, "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name the variable with a Bedrock API key by key_env"
            )
        self.refresh()
        if self._trouble:
            raise ConfigError(f"{where}: {self._trouble}")

    def refresh(self) -> None:
        """Get new credentials where the old ones are about to expire. Takes as long as the service that gives them; raises nothing."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  # as the module says

        try:
            found = self._credentials.get_frozen_credentials()
        except (BotoCoreError, ClientError, RuntimeError, OSError, ValueError, KeyError) as error:
            self._trouble = f"no AWS credentials: {_words(error)}"
            return
        self._trouble = ""
        if not self._kept or found != self._kept[-1]:
            self._kept.append(found)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Of the credentials in use and those before."""
        return tuple(part for kept in self._kept for part in (kept.secret_key, kept.token, kept.access_key) if part)

    def signed(self, url: str, headers: dict[str, str], body: bytes, *, region: str) -> dict[str, str]:
        """The headers of a POST, with the signature. Raises CredentialsError where there is nothing to sign with."""
        from botocore.auth import SigV4Auth  # noqa: PLC0415  # as the module says
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415

        if self._trouble:
            raise CredentialsError(self._trouble)
        request = AWSRequest(method="POST", url=url, data=body, headers=headers)
        SigV4Auth(self._kept[-1], SERVICE, region).add_auth(request)
        return {name.lower(): value for name, value in request.headers.items()}


def _set_region(session: Session, region: str) -> None:
    """For the service that gives credentials, where the machine's own settings name none: that of the same partition."""
    if not session.get_config_variable("region"):
        session.set_config_variable("region", region)


def _words(error: Exception) -> str:
    """What went wrong. The output of a user's own program, which may be anything, is left out."""
    is_program = getattr(error, "kwargs", {}).get("provider") == "custom-process"
    return "the program of credential_process failed; run it by hand" if is_program else str(error) or type(error).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One of an event stream. Of the headers, those that are text."""

    headers: dict[str, str]
    payload: bytes


class FrameReader:
    """Messages of AWS's event-stream framing, from bytes as they come."""

    def __init__(self) -> None:
        from botocore.eventstream import EventStreamBuffer  # noqa: PLC0415  # as the module says

        self._buffer, self._begun, self._held = EventStreamBuffer(), b"", bytearray()
        self._missing = 0
        """Bytes that a frame still lacks after those that botocore has of it (`_begun`); 0: its length is not known and checked yet."""

    def push(self, data: bytes) -> list[Message]:
        """What is complete now. Raises MalformedStreamError."""
        self._held += data
        found = self._parse() if len(self._held) >= self._missing else []  # botocore copies all that waits with each piece
        if len(self._begun) + len(self._held) > MAX_WAITING_BYTES:
            raise MalformedStreamError(f"a frame of more than {MAX_WAITING_BYTES} bytes")
        return [Message(headers=_texts(message.headers), payload=message.payload) for message in found]

    def _parse(self) -> list[Any]:
        """What botocore finds in all that came, by its own type. Raises MalformedStreamError."""
        from botocore.eventstream import ParserError  # noqa: PLC0415  # as the module says

        news, self._held = bytes(self._held), bytearray()
        self._buffer.add_data(news)
        try:
            found = list(self._buffer)
        except (ParserError, *UNREADABLE_FRAMES) as error:
            raise MalformedStreamError(f"no frame of an AWS event stream: {str(error) or type(error).__name__}") from error
        self._begun = (self._begun + news)[sum(message.prelude.total_length for message in found) :]
        is_checked = len(self._begun) >= PRELUDE_BYTES
        self._missing = int.from_bytes(self._begun[:LENGTH_BYTES], "big") - len(self._begun) if is_checked else 0
        return found


def _texts(headers: dict[str, object]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if isinstance(value, str)}
