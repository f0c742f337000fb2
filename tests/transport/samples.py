"""Messages, expectations and certificates that the tests of this room share."""

from pathlib import Path

from msgspec.structs import replace

from wanspec.core.protocol.messages import PROTOCOL_VERSION, CloseSession, Commit, Drafts, Drain, Hello, OpenSession, Ping, Pong, Welcome
from wanspec.core.speculation.types import DraftingConfig, NodeId, Position, SamplingParams, SessionId
from wanspec.transport.certificates import TrialCertificates, create_trial_certificates
from wanspec.transport.handshake import Expected

FINGERPRINT = "0123456789abcdef" * 4
OTHER_FINGERPRINT = "fedcba9876543210" * 4

HELLO = Hello(
    version=PROTOCOL_VERSION,
    worker_name="campus-1",
    model_name="draft-1m",
    tokenizer_fingerprint=FINGERPRINT,
    vocabulary_size=2048,
    context_length=4096,
    max_sessions=64,
    labels=("gpu=t4", "region=eu"),
)
EXPECTED = Expected(controller_name="busy-site", tokenizer_fingerprint=FINGERPRINT, vocabulary_size=2048)
WELCOME = Welcome(version=PROTOCOL_VERSION, controller_name="busy-site")
DRAFTS = Drafts(
    session_id=SessionId(7),
    opening=1,
    base_position=Position(300),
    held_s=0.02,
    step_s=0.0075,
    first_node_id=NodeId(900),
    parent_ids=(898,),
    tokens=(1500,),
    log_probs=(-0.5,),
)
COMMIT = Commit(session_id=SessionId(7), position=Position(300), tokens=(1500, 1600, 1700), newest_node_id=900)
OPEN_SESSION = OpenSession(session_id=SessionId(7), tokens=(1, 2, 3), sampling=SamplingParams(), drafting=DraftingConfig())
CLOSE_SESSION = CloseSession(session_id=SessionId(7))
DRAIN = Drain(reason="maintenance")
PING = Ping(number=7)
PONG = Pong(number=7)
EVERY_MESSAGE = (HELLO, WELCOME, DRAFTS, COMMIT, OPEN_SESSION, CLOSE_SESSION, DRAIN, PING, PONG)


def hello(**changes: object) -> Hello:
    return replace(HELLO, **changes)


def drafts(count: int = 1, **changes: object) -> Drafts:
    """`count` nodes, each hanging off the one before the first."""
    return replace(DRAFTS, parent_ids=(898,) * count, tokens=(1500,) * count, log_probs=(-0.5,) * count, **changes)


def certificates(folder: Path, *hosts: str) -> TrialCertificates:
    return create_trial_certificates(folder, hosts)
