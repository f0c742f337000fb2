from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.transport.samples import (
    CLOSE_SESSION,
    COMMIT,
    DRAFTS,
    DRAIN,
    EVERY_MESSAGE,
    FINGERPRINT,
    HELLO,
    OPEN_SESSION,
    PING,
    PONG,
    WELCOME,
    drafts,
)

from wanspec.core.protocol.messages import (
    MAX_COUNT,
    MAX_NAME_LENGTH,
    MAX_NODE_ID,
    MAX_NODES_PER_FRAME,
    MAX_REASON_LENGTH,
    MAX_SEQUENCE_TOKENS,
    MAX_SESSION_ID,
    MAX_SESSIONS,
    CloseSession,
    Commit,
    ControllerMessage,
    Drafts,
    Drain,
    Hello,
    Message,
    OpenSession,
    Ping,
    Pong,
    Welcome,
    WorkerMessage,
)
from wanspec.core.protocol.placement import MAX_LABEL_LENGTH, MAX_LABELS
from wanspec.core.speculation.types import MAX_VOCABULARY, DraftingConfig, NodeId, Position, SamplingParams, SessionId
from wanspec.errors import LocalProtocolError, RemoteProtocolError
from wanspec.transport.codec import (
    MAX_FRAME_BYTES,
    MAX_MESSAGES_PER_FRAME,
    decode_controller_frame,
    decode_goodbye,
    decode_worker_frame,
    encode_frame,
    encode_goodbye,
)

session_ids = st.integers(1, MAX_SESSION_ID).map(SessionId)
openings = st.integers(1, MAX_COUNT)
positions = st.integers(0, MAX_SEQUENCE_TOKENS - 1).map(Position)
tokens = st.integers(0, MAX_VOCABULARY - 1)
token_tuples = st.lists(tokens, max_size=20).map(tuple)
names = st.text(st.characters(min_codepoint=0x20, exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp")), min_size=1, max_size=MAX_NAME_LENGTH)
reasons = st.text(st.characters(min_codepoint=0x20, exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp")), max_size=MAX_REASON_LENGTH)
finite = st.floats(allow_nan=False, allow_infinity=False)
hellos = st.builds(
    Hello,
    version=st.integers(0, 65535),
    worker_name=names,
    model_name=names,
    tokenizer_fingerprint=st.text("0123456789abcdef", min_size=64, max_size=64),
    vocabulary_size=st.integers(1, MAX_VOCABULARY),
    context_length=st.integers(1, 2**31 - 1),
    max_sessions=st.integers(1, MAX_SESSIONS),
    labels=st.lists(st.sampled_from(["region=eu", "gpu=t4", "a=b"]), max_size=MAX_LABELS).map(tuple),
)


@st.composite
def draft_messages(draw: st.DrawFn) -> Drafts:
    count = draw(st.integers(0, 12))
    first = draw(st.one_of(st.integers(1, 300), st.integers(1, MAX_NODE_ID - count)))
    return Drafts(
        session_id=draw(session_ids),
        opening=draw(openings),
        base_position=draw(positions),
        held_s=draw(st.integers(0, 3_600_000_000)) / 1e6,
        step_s=draw(st.integers(0, 60_000_000)) / 1e6,
        first_node_id=NodeId(first),
        parent_ids=tuple(draw(st.integers(0, first + index - 1)) for index in range(count)),
        tokens=tuple(draw(tokens) for _ in range(count)),
        log_probs=tuple(draw(st.integers(0, 255)) / -16.0 for _ in range(count)),
    )


samplings = st.builds(
    SamplingParams,
    temperature=st.floats(0, allow_nan=False, allow_infinity=False),
    top_k=st.integers(0, MAX_VOCABULARY),
    top_p=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)
draftings = st.builds(
    DraftingConfig,
    branch=st.integers(1, 8),
    leaves=st.integers(1, 128),
    entropy_threshold_nats=finite,
    max_depth=st.integers(1, 64),
    path_prob_min=st.floats(0, 1, exclude_max=True),
    is_calibrated=st.booleans(),
)
worker_messages = st.one_of(hellos, draft_messages(), st.builds(Pong, number=st.integers(1, MAX_COUNT)))
controller_messages = st.one_of(
    st.builds(Welcome, version=st.integers(0, 65535), controller_name=names),
    st.builds(
        OpenSession,
        session_id=session_ids,
        opening=openings,
        tokens=st.lists(tokens, min_size=1, max_size=20).map(tuple),
        sampling=samplings,
        drafting=draftings,
        reuse_number=st.integers(0, MAX_COUNT),
    ),
    st.builds(
        Commit, session_id=session_ids, position=positions, tokens=token_tuples, newest_node_id=st.integers(0, MAX_NODE_ID).map(NodeId)
    ),
    st.builds(CloseSession, session_id=session_ids),
    st.builds(Drain, reason=reasons),
    st.builds(Ping, number=st.integers(1, MAX_COUNT)),
)


@given(st.lists(worker_messages, max_size=20))
def test_worker_messages_survive_the_wire(messages: list[WorkerMessage]) -> None:
    assert decode_worker_frame(encode_frame(messages)) == messages


@given(st.lists(controller_messages, max_size=20))
def test_controller_messages_survive_the_wire(messages: list[ControllerMessage]) -> None:
    assert decode_controller_frame(encode_frame(messages)) == messages


@given(st.floats(-15.9375, 0), st.floats(0, 3600), st.floats(0, 60))
def test_what_is_quantised_comes_back_within_half_a_step(log_prob: float, held_s: float, step_s: float) -> None:
    (sent,) = decode_worker_frame(encode_frame([replace(DRAFTS, log_probs=(log_prob,), held_s=held_s, step_s=step_s)]))
    assert isinstance(sent, Drafts)
    assert abs(sent.log_probs[0] - log_prob) <= 1 / 32
    assert abs(sent.held_s - held_s) <= 1e-6
    assert abs(sent.step_s - step_s) <= 1e-6


def decode_both_ways(data: bytes) -> None:
    for decode in (decode_worker_frame, decode_controller_frame, decode_goodbye):
        try:
            decode(data)
        except RemoteProtocolError as error:
            assert error.reason  # noqa: PT017 - only this kind may come, and it always says something


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_remote_protocol_error(data: bytes) -> None:
    decode_both_ways(data)
    decode_both_ways(b"\x91" + data)


@given(st.lists(st.one_of(worker_messages, controller_messages), min_size=1, max_size=3), st.data())
def test_mutated_frames_raise_nothing_but_remote_protocol_error(messages: list[Message], data: st.DataObject) -> None:
    frame = bytearray(encode_frame(messages))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    decode_both_ways(bytes(frame[: data.draw(st.integers(0, len(frame)))]))
    decode_both_ways(bytes(frame))


@pytest.mark.parametrize(
    "data",
    [b"\xdd\xff\xff\xff\xff", b"\x91\xdd\xff\xff\xff\xff", b"\x91\x98\x02\x01\x01\x01\x01\xdd\xff\xff\xff\xff", b"\x91" * 100_000,
     b"\x91\x9f\x01\x01\xa1w\xa1m\xd9\x40" + FINGERPRINT.encode() + b"\x01\x01\x01" + b"\x91" * 100_000],
)  # fmt: skip
def test_claimed_lengths_and_deep_nesting_cost_nothing(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_worker_frame(data)


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (drafts(0), 21),
        (drafts(1), 26),
        (drafts(8), 61),
        (drafts(32), 185),
        (drafts(256), 1438),
        (COMMIT, 20),
        (CLOSE_SESSION, 4),
        (PING, 4),
    ],
)
def test_typical_frames_are_this_small(message: Message, size: int) -> None:
    assert len(encode_frame([message])) == size


def test_the_longest_prompt_fits_a_frame() -> None:
    longest = replace(OPEN_SESSION, tokens=(MAX_VOCABULARY - 1,) * MAX_SEQUENCE_TOKENS)
    assert len(encode_frame([longest])) < MAX_FRAME_BYTES


@pytest.mark.parametrize(
    ("message", "changes", "field"),
    [
        (HELLO, {"version": -1}, "Hello.version"),
        (HELLO, {"worker_name": ""}, "Hello.worker_name"),
        (HELLO, {"worker_name": "w" * (MAX_NAME_LENGTH + 1)}, "Hello.worker_name"),
        (HELLO, {"worker_name": "a\x1b[2Jb"}, "Hello.worker_name"),
        (HELLO, {"model_name": "m" * (MAX_NAME_LENGTH + 1)}, "Hello.model_name"),
        (HELLO, {"tokenizer_fingerprint": "abc"}, "Hello.tokenizer_fingerprint"),
        (HELLO, {"vocabulary_size": 0}, "Hello.vocabulary_size"),
        (HELLO, {"vocabulary_size": MAX_VOCABULARY + 1}, "Hello.vocabulary_size"),
        (HELLO, {"context_length": 0}, "Hello.context_length"),
        (HELLO, {"max_sessions": 0}, "Hello.max_sessions"),
        (HELLO, {"max_sessions": MAX_SESSIONS + 1}, "Hello.max_sessions"),
        (HELLO, {"labels": ("eu",)}, "Hello.labels"),
        (HELLO, {"labels": ("a=" + "b" * MAX_LABEL_LENGTH,)}, "Hello.labels"),
        (HELLO, {"labels": ("a=b",) * (MAX_LABELS + 1)}, "Hello.labels"),
        (WELCOME, {"controller_name": ""}, "Welcome.controller_name"),
        (DRAFTS, {"session_id": 0}, "Drafts.session_id"),
        (DRAFTS, {"session_id": 2**70}, "Drafts"),
        (DRAFTS, {"opening": 0}, "Drafts.opening"),
        (OPEN_SESSION, {"opening": 0}, "OpenSession.opening"),
        (DRAFTS, {"base_position": -1}, "Drafts.base_position"),
        (DRAFTS, {"base_position": MAX_SEQUENCE_TOKENS}, "Drafts.base_position"),
        (DRAFTS, {"held_s": -1.0}, "Drafts.held_s"),
        (DRAFTS, {"held_s": 3601.0}, "Drafts.held_s"),
        (DRAFTS, {"held_s": float("nan")}, "Drafts"),
        (DRAFTS, {"held_s": float("inf")}, "Drafts"),
        (DRAFTS, {"step_s": -1.0}, "Drafts.step_s"),
        (DRAFTS, {"step_s": 61.0}, "Drafts.step_s"),
        (DRAFTS, {"step_s": float("nan")}, "Drafts"),
        (DRAFTS, {"first_node_id": 0}, "parent_ids"),
        (DRAFTS, {"first_node_id": MAX_NODE_ID + 1}, "first_node_id"),
        (DRAFTS, {"parent_ids": (900,)}, "parent_ids"),
        (DRAFTS, {"parent_ids": (-1,)}, "parent_ids"),
        (DRAFTS, {"parent_ids": ()}, "parent_ids"),
        (DRAFTS, {"tokens": (MAX_VOCABULARY,)}, "Drafts.tokens[0]"),
        (DRAFTS, {"tokens": (-1,)}, "Drafts.tokens[0]"),
        (DRAFTS, {"log_probs": (0.1,)}, "log_probs"),
        (DRAFTS, {"log_probs": (-16.0,)}, "log_probs"),
        (DRAFTS, {"log_probs": (float("nan"),)}, "log_probs"),
        (drafts(MAX_NODES_PER_FRAME + 1), {}, "Drafts.parent_ids"),
        (OPEN_SESSION, {"reuse_number": -1}, "OpenSession.reuse_number"),
        (OPEN_SESSION, {"reuse_number": MAX_COUNT + 1}, "OpenSession.reuse_number"),
        (OPEN_SESSION, {"tokens": ()}, "OpenSession.tokens"),
        (OPEN_SESSION, {"tokens": (0,) * (MAX_SEQUENCE_TOKENS + 1)}, "OpenSession.tokens"),
        (OPEN_SESSION, {"sampling": SamplingParams(temperature=-0.1)}, "OpenSession.sampling.temperature"),
        (OPEN_SESSION, {"sampling": SamplingParams(temperature=float("inf"))}, "OpenSession.sampling.temperature"),
        (OPEN_SESSION, {"sampling": SamplingParams(top_k=-1)}, "OpenSession.sampling.top_k"),
        (OPEN_SESSION, {"sampling": SamplingParams(top_p=-0.1)}, "OpenSession.sampling.top_p"),
        (OPEN_SESSION, {"sampling": SamplingParams(top_p=1.1)}, "OpenSession.sampling.top_p"),
        (OPEN_SESSION, {"sampling": SamplingParams(seed=-1)}, "OpenSession.sampling.seed"),
        (OPEN_SESSION, {"sampling": SamplingParams(noise="gumbel")}, "OpenSession.sampling.noise"),  # type: ignore[arg-type]
        (OPEN_SESSION, {"sampling": SamplingParams(seed=2**64)}, "OpenSession"),
        (OPEN_SESSION, {"drafting": DraftingConfig(branch=9)}, "OpenSession.drafting.branch"),
        (OPEN_SESSION, {"drafting": DraftingConfig(leaves=129)}, "OpenSession.drafting.leaves"),
        (OPEN_SESSION, {"drafting": DraftingConfig(max_depth=65)}, "OpenSession.drafting.max_depth"),
        (OPEN_SESSION, {"drafting": DraftingConfig(entropy_threshold_nats=float("nan"))}, "OpenSession.drafting.entropy_threshold_nats"),
        (OPEN_SESSION, {"drafting": DraftingConfig(path_prob_min=-0.1)}, "OpenSession.drafting.path_prob_min"),
        (OPEN_SESSION, {"drafting": DraftingConfig(path_prob_min=1.0)}, "OpenSession.drafting.path_prob_min"),
        (OPEN_SESSION, {"drafting": DraftingConfig(path_prob_min=float("nan"))}, "OpenSession.drafting.path_prob_min"),
        (COMMIT, {"position": -1}, "Commit.position"),
        (COMMIT, {"newest_node_id": -1}, "Commit.newest_node_id"),
        (COMMIT, {"newest_node_id": MAX_NODE_ID + 1}, "Commit.newest_node_id"),
        (COMMIT, {"tokens": (MAX_VOCABULARY,)}, "Commit.tokens[0]"),
        (COMMIT, {"tokens": ("a",)}, "Commit.tokens[0]"),
        (CLOSE_SESSION, {"session_id": 0}, "CloseSession.session_id"),
        (PING, {"number": 0}, "Ping.number"),
        (PONG, {"number": MAX_COUNT + 1}, "Pong.number"),
        (DRAIN, {"reason": "r" * (MAX_REASON_LENGTH + 1)}, "Drain.reason"),
    ],
)
def test_a_message_beyond_a_bound_is_not_sent(message: Message, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(LocalProtocolError, match=field.replace("[", r"\[")):
        encode_frame([replace(message, **changes)])


GOOD_DRAFTS = [2, 7, 1, 300, 20_000, 7_500, 900, [2], [1500], b"\x08"]


@pytest.mark.parametrize(
    ("index", "value", "reason"),
    [
        (1, 0, "Drafts.session_id: Expected `int` >= 1"),
        (2, 0, "Drafts.opening: Expected `int` >= 1"),
        (2, MAX_COUNT + 1, "Drafts.opening: Expected `int` <= 2147483647"),
        (3, MAX_SEQUENCE_TOKENS, "Drafts.base_position: Expected `int` <= 131071"),
        (4, 3_600_000_001, "Drafts.held_s: Expected `int` <= 3600000000"),
        (4, 0.5, "Drafts.held_s: Expected `int`, got `float`"),
        (5, 60_000_001, "Drafts.step_s: Expected `int` <= 60000000"),
        (6, 0, "Drafts.first_node_id: Expected `int` >= 1"),
        (6, MAX_NODE_ID + 1, "Drafts.first_node_id: Expected `int` <= 2147483647"),
        (7, [900], "Drafts.parent_ids: node 900 has a parent 900 ids back, at most 899"),
        (7, [1, 1], "Drafts.parent_ids, tokens, log_probs: 2, 1 and 1 of them, must be equally many"),
        (7, [1] * 1025, "Drafts.parent_ids: Expected `array` of length <= 1024"),
        (8, [MAX_VOCABULARY], "Drafts.tokens[0]: Expected `int` <= 1048575"),
        (9, b"", "Drafts.parent_ids, tokens, log_probs: 1, 1 and 0 of them, must be equally many"),
    ],
)
def test_a_frame_beyond_a_bound_is_refused_by_field_and_limit(index: int, value: object, reason: str) -> None:
    fields = [*GOOD_DRAFTS]
    fields[index] = value
    with pytest.raises(RemoteProtocolError) as caught:
        decode_worker_frame(msgspec.msgpack.encode([fields]))
    assert caught.value.reason == reason


def test_the_last_node_id_is_bounded_too() -> None:
    frame = msgspec.msgpack.encode([[2, 7, 1, 300, 0, 0, MAX_NODE_ID, [1, 1], [1, 1], b"\0\0"]])
    with pytest.raises(RemoteProtocolError, match="MAX_NODE_ID"):
        decode_worker_frame(frame)


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: type(message).__name__)
def test_each_side_may_send_its_own_messages_only(message: Message) -> None:
    mine, other = decode_worker_frame, decode_controller_frame
    if not isinstance(message, Hello | Drafts | Pong):
        mine, other = other, mine  # type: ignore[assignment]
    assert mine(encode_frame([message])) == [message]
    with pytest.raises(RemoteProtocolError, match=f"{type(message).__name__}: not for this side to send"):
        other(encode_frame([message]))


def test_frames_are_bounded_in_messages_and_bytes_both_ways() -> None:
    full = encode_frame([DRAFTS] * MAX_MESSAGES_PER_FRAME)
    assert len(decode_worker_frame(full)) == MAX_MESSAGES_PER_FRAME
    with pytest.raises(LocalProtocolError, match="MAX_MESSAGES_PER_FRAME"):
        encode_frame([DRAFTS] * (MAX_MESSAGES_PER_FRAME + 1))
    with pytest.raises(RemoteProtocolError, match="length <= 1024"):
        decode_worker_frame(b"\xdc\x04\x01" + full[3:])
    with pytest.raises(LocalProtocolError, match="MAX_FRAME_BYTES"):
        encode_frame([replace(OPEN_SESSION, tokens=(MAX_VOCABULARY - 1,) * MAX_SEQUENCE_TOKENS)] * 2)
    with pytest.raises(RemoteProtocolError, match="MAX_FRAME_BYTES"):
        decode_worker_frame(b"\x91" * (MAX_FRAME_BYTES + 1))


def test_a_newer_hello_may_carry_more_and_is_still_understood() -> None:
    fields = [1, 2, "w", "m", FINGERPRINT, 2048, 4096, 64, ["region=eu"], {"new": [1, 2]}]
    (newer,) = decode_worker_frame(msgspec.msgpack.encode([fields]))
    assert isinstance(newer, Hello)
    assert newer.version == 2


def test_an_older_hello_without_labels_is_still_understood() -> None:
    (older,) = decode_worker_frame(msgspec.msgpack.encode([[1, 2, "w", "m", FINGERPRINT, 2048, 4096, 64]]))
    assert isinstance(older, Hello)
    assert (older.version, older.labels) == (2, ())


def test_last_fields_with_a_default_may_be_left_out_and_no_others() -> None:
    assert decode_controller_frame(msgspec.msgpack.encode([[5, 7, 300, [1500]]])) == [
        Commit(session_id=SessionId(7), position=Position(300), tokens=(1500,), newest_node_id=0)
    ]
    for fields in ([5, 7, 300], [5], [6], [4, 7, 1], [2, 7, 1, 300, 0, 0, 900, [], []], [5, 7, 300, [], 0, 0]):
        for decode in (decode_controller_frame, decode_worker_frame):
            with pytest.raises(RemoteProtocolError):
                decode(msgspec.msgpack.encode([fields]))


def test_a_goodbye_is_told_from_messages_and_made_printable() -> None:
    goodbye = decode_goodbye(encode_goodbye("bad\nnews" + "!" * MAX_REASON_LENGTH, permanent=True))
    assert goodbye is not None
    assert goodbye.reason.startswith("bad news!")
    assert len(goodbye.reason) == MAX_REASON_LENGTH
    assert goodbye.permanent
    assert decode_goodbye(encode_frame([DRAFTS])) is None
    with pytest.raises(RemoteProtocolError):
        decode_goodbye(b"\x91\x93\x08")


def test_what_is_wrong_is_said_in_characters_that_print_and_in_few_of_them() -> None:
    message = next(part for part in msgspec.msgpack.decode(encode_frame([OPEN_SESSION])) if not isinstance(part, bytes))
    message[4][-1] = "a\n\x1b[31m" + "x" * 30_000
    with pytest.raises(RemoteProtocolError) as refused:
        decode_controller_frame(msgspec.msgpack.encode([message]))
    assert "OpenSession.sampling.noise" in refused.value.reason
    assert refused.value.reason.isprintable()
    assert len(refused.value.reason) <= MAX_REASON_LENGTH
