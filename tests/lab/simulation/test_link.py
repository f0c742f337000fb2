"""When messages arrive."""

from __future__ import annotations

import pytest

from wanspec.core.protocol.messages import CloseSession, Commit, Drafts, Message, OpenSession
from wanspec.core.speculation.types import DraftingConfig, NodeId, Position, SamplingParams, SessionId
from wanspec.lab.simulation.link import FRAMING_BYTES, Jitter, Link, LinkProfile, Transport, message_bytes
from wanspec.transport.codec import encode_message


def arrivals(link: Link, *, count: int = 2000, interval_s: float = 0.01, size: int = 20) -> list[float | None]:
    return [link.arrival(size, now=index * interval_s) for index in range(count)]


def delays(link: Link, **how: float) -> list[float]:
    found = arrivals(link, **how)  # type: ignore[arg-type]
    return [arrival - index * 0.01 for index, arrival in enumerate(found) if arrival is not None]


def test_a_clean_link_delays_by_half_the_round_trip() -> None:
    assert all(delay == pytest.approx(0.035) for delay in delays(Link(LinkProfile(rtt_s=0.07), seed=0)))


@pytest.mark.parametrize("shape", list(Jitter))
def test_jitter_has_the_mean_that_was_asked_for(shape: Jitter) -> None:
    profile = LinkProfile(rtt_s=0.0, jitter_s=0.003, jitter=shape, transport=Transport.DATAGRAM)
    found = delays(Link(profile, seed=1), count=20_000)
    assert sum(found) / len(found) == pytest.approx(0.003, rel=0.05)
    assert min(found) >= 0.0


def test_tcp_keeps_the_order_and_loses_nothing() -> None:
    link = Link(LinkProfile(rtt_s=0.05, jitter_s=0.02, loss=0.1), seed=2)
    found = arrivals(link)
    assert None not in found
    assert found == sorted(found)  # type: ignore[type-var]
    assert link.retransmitted > 100
    assert link.lost == 0


def test_a_lost_segment_comes_late_and_holds_up_what_is_behind_it() -> None:
    link = Link(LinkProfile(rtt_s=0.1, loss=0.05), seed=3)
    found = delays(link, count=200)
    assert max(found) >= 0.05 + 1.25 * 0.1
    late = next(index for index, delay in enumerate(found) if delay > 0.1)
    assert found[late + 1] > 0.1


def test_datagrams_are_lost_for_good_and_may_overtake() -> None:
    profile = LinkProfile(rtt_s=0.05, jitter_s=0.05, loss=0.1, transport=Transport.DATAGRAM)
    link = Link(profile, seed=4)
    found = arrivals(link)
    there = [arrival for arrival in found if arrival is not None]
    assert found.count(None) == link.lost == pytest.approx(200, rel=0.2)
    assert there != sorted(there)


@pytest.mark.parametrize("burst", [1.0, 5.0])
def test_losses_come_in_bursts_of_the_mean_length_asked_for(burst: float) -> None:
    profile = LinkProfile(rtt_s=0.0, loss=0.05, loss_burst=burst, transport=Transport.DATAGRAM)
    lost = [arrival is None for arrival in arrivals(Link(profile, seed=5), count=60_000)]
    bursts = sum(now and not before for before, now in zip([False, *lost], lost, strict=False))
    assert sum(lost) / len(lost) == pytest.approx(0.05, rel=0.15)
    assert sum(lost) / bursts == pytest.approx(max(burst, 1.05), rel=0.15)


@pytest.mark.parametrize(("transport", "frames_bytes"), [(Transport.TCP, [512, 512, 1024]), (Transport.STREAMS, [512, 1024, 1536])])
def test_bandwidth_spaces_frames_out_which_messages_of_a_moment_share_on_one_stream(transport: Transport, frames_bytes: list[int]) -> None:
    link = Link(LinkProfile(rtt_s=0.0, bandwidth_bytes_per_s=1000.0, transport=transport), seed=6)
    framing = [(1 if transport is Transport.TCP else number) * FRAMING_BYTES for number in (1, 2, 3)]
    found = [link.arrival(200, now=0.0, session=session) for session in (1, 2, 3)]
    assert found == pytest.approx([(frame + around) / 1000.0 for frame, around in zip(frames_bytes, framing, strict=True)])
    later = link.arrival(200, now=1.0)
    assert later == pytest.approx(max(1.0, found[-1] or 0.0) + (512 + FRAMING_BYTES) / 1000.0)


def test_what_is_sent_into_a_partition_arrives_after_it() -> None:
    link = Link(LinkProfile(rtt_s=0.02), seed=7)
    link.cut(1.0, 3.0)
    arrival = link.arrival(20, now=1.5)
    assert arrival is not None
    assert arrival > 3.0
    assert Link(LinkProfile(rtt_s=0.02), seed=7).arrival(20, now=1.5) == pytest.approx(1.51)


def test_a_slow_spell_multiplies_the_delay() -> None:
    link = Link(LinkProfile(rtt_s=0.02), seed=8)
    link.slow(1.0, 2.0, 10.0)
    assert link.arrival(20, now=0.5) == pytest.approx(0.51)
    assert link.arrival(20, now=1.5) == pytest.approx(1.6)
    assert link.arrival(20, now=2.5) == pytest.approx(2.51)


def test_a_link_is_a_function_of_its_seed() -> None:
    profile = LinkProfile(rtt_s=0.05, jitter_s=0.02, loss=0.1)
    assert arrivals(Link(profile, seed=9)) == arrivals(Link(profile, seed=9))
    assert arrivals(Link(profile, seed=9)) != arrivals(Link(profile, seed=10))


def drafts(nodes: int) -> Drafts:
    return Drafts(
        session_id=SessionId(7), base_position=Position(300), held_s=0.02, step_s=0.0075, first_node_id=NodeId(900),
        parent_ids=(0,) * nodes, tokens=(1500,) * nodes, log_probs=(-1.0,) * nodes,
    )  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        *(drafts(nodes) for nodes in (0, 1, 8, 32, 128)),
        Commit(session_id=SessionId(7), position=Position(300), tokens=(1500, 20, 900)),
        OpenSession(session_id=SessionId(7), tokens=(1500,) * 64, sampling=SamplingParams(), drafting=DraftingConfig()),
        CloseSession(session_id=SessionId(7)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_sizes_are_about_those_of_the_codec(message: Message) -> None:
    assert message_bytes(message) == pytest.approx(len(encode_message(message)), rel=0.25, abs=4)
