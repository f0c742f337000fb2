from __future__ import annotations

import random
from itertools import groupby

import pytest

from wanspec.lab.wan.emulated_link import Lateness, LinkSettings
from wanspec.lab.wan.packets import MAX_HELD_BYTES, MAX_QUEUE_S, LossProcess, PacketCounts, PacketLane


def lane(settings: LinkSettings) -> PacketLane:
    return PacketLane(settings, seed=1, lateness=Lateness())


def drained(packets: PacketLane) -> list[tuple[float, bytes]]:
    """Everything in the lane, with the times when it is due."""
    out = []
    while (due_s := packets.next_due_s) is not None:
        assert packets.take(now=due_s - 1e-9) is None
        packet = packets.take(now=due_s)
        assert packet is not None
        out.append((due_s, packet))
    return out


def test_a_packet_is_due_half_a_round_trip_after_it_came() -> None:
    packets = lane(LinkSettings(rtt_ms=70.0))
    packets.put(b"12", now=1.0)
    packets.put(b"345", now=1.01)
    due_s, sent = zip(*drained(packets), strict=True)
    assert due_s == pytest.approx((1.035, 1.045))
    assert sent == (b"12", b"345")
    assert (packets.counts, packets.link.sent_bytes) == (PacketCounts(sent=2), 5)


def test_nothing_overtakes_under_jitter_or_when_the_link_gets_shorter() -> None:
    packets = lane(LinkSettings(rtt_ms=70.0, jitter_ms=20.0))
    sent = [bytes([number]) for number in range(100)]
    for number, packet in enumerate(sent):
        if number == 50:
            packets.link.settings = LinkSettings(rtt_ms=2.0)
        packets.put(packet, now=number * 1e-4)
    out = drained(packets)
    assert [packet for _, packet in out] == sent
    assert [due_s for due_s, _ in out] == sorted(due_s for due_s, _ in out)


def test_lateness_is_counted_from_the_due_time() -> None:
    lateness = Lateness()
    packets = PacketLane(LinkSettings(rtt_ms=20.0), seed=1, lateness=lateness)
    packets.put(b"1", now=0.0)
    assert packets.take(now=0.013) == b"1"
    assert lateness.quantile_ms(0.5) == pytest.approx(3.0, rel=0.02)


def test_a_full_queue_drops_what_comes() -> None:
    packets = lane(LinkSettings(bandwidth_bytes_per_s=10_000.0))
    for _ in range(50):
        packets.put(bytes(100), now=0.0)  # 10 ms each
    within = round(MAX_QUEUE_S / 0.01)
    assert packets.counts.overflowed == 50 - within - 1
    packets.put(bytes(100), now=0.02)  # two have left
    assert packets.counts.overflowed == 50 - within - 1
    assert len(drained(packets)) == within + 2


def test_what_is_under_way_has_a_limit() -> None:
    packets = lane(LinkSettings(rtt_ms=1000.0))
    packets.put(bytes(MAX_HELD_BYTES), now=0.0)
    packets.put(b"1", now=0.0)
    assert packets.counts.overflowed == 1
    assert len(drained(packets)) == 1
    packets.put(b"1", now=2.0)
    assert len(drained(packets)) == 1


def test_a_partition_cuts_what_comes_and_not_what_is_under_way() -> None:
    packets = lane(LinkSettings(rtt_ms=10.0))
    packets.put(b"1", now=0.0)
    packets.link.settings = LinkSettings(rtt_ms=10.0, down=True)
    packets.put(b"2", now=0.001)
    packets.link.settings = LinkSettings(rtt_ms=10.0)
    packets.put(b"3", now=0.002)
    assert [packet for _, packet in drained(packets)] == [b"1", b"3"]
    assert packets.counts.cut == 1


def test_what_is_lost_still_takes_its_time_on_the_link() -> None:
    packets = lane(LinkSettings(loss=0.5, bandwidth_bytes_per_s=1e6))
    for _ in range(100):
        packets.put(bytes(100), now=0.0)
    assert 0 < packets.counts.lost < 100
    assert packets.link.idle_from_s == pytest.approx(0.01)


@pytest.mark.parametrize(("loss", "burst"), [(0.01, 1.0), (0.3, 1.0), (0.01, 5.0), (0.2, 20.0)])
def test_loss_has_the_share_and_the_mean_burst_that_were_set(loss: float, burst: float) -> None:
    process, settings = LossProcess(random.Random(7)), LinkSettings(loss=loss, loss_burst=burst)
    fates = [process.loses(settings) for _ in range(200_000)]
    bursts = [len(list(group)) for is_lost, group in groupby(fates) if is_lost]
    assert sum(fates) / len(fates) == pytest.approx(loss, rel=0.1)
    by_chance = 1.0 / (1.0 - loss)  # packets in a row where each has its own fate
    assert sum(bursts) / len(bursts) == pytest.approx(by_chance if burst == 1.0 else burst, rel=0.1)


def test_a_burst_ends_with_the_loss() -> None:
    process = LossProcess(random.Random(7))
    while not process.loses(LinkSettings(loss=0.5, loss_burst=1e6)):
        pass
    assert not any(process.loses(LinkSettings()) for _ in range(100))
