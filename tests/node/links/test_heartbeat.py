"""Round-trip times and silence, from numbers alone."""

from __future__ import annotations

import math

import pytest

from edgecosine.errors import RemoteProtocolError
from edgecosine.node.links.heartbeat import MAX_UNANSWERED_PINGS, Heartbeat


def answered(heartbeat: Heartbeat, rtt_s: float) -> None:
    number = heartbeat.next_ping(now=100.0)
    heartbeat.record_pong(number, now=100.0 + rtt_s)


def test_round_trip_time_is_smoothed() -> None:
    heartbeat = Heartbeat()
    assert math.isinf(heartbeat.rtt_s)
    answered(heartbeat, 0.008)
    assert heartbeat.rtt_s == pytest.approx(0.008)
    answered(heartbeat, 0.016)
    assert heartbeat.rtt_s == pytest.approx(0.009)
    assert heartbeat.jitter_s == pytest.approx(0.002)


def test_round_trip_longer_than_the_interval_is_measured() -> None:
    heartbeat = Heartbeat()
    numbers = [heartbeat.next_ping(now=float(beat)) for beat in range(3)]
    for number in numbers:
        heartbeat.record_pong(number, now=number + 2.5)
    assert heartbeat.rtt_s == pytest.approx(2.5)


def test_silence_is_counted_in_heartbeats() -> None:
    heartbeat = Heartbeat()
    assert [heartbeat.beat(), heartbeat.beat()] == [1, 2]
    heartbeat.received()
    assert [heartbeat.beat(), heartbeat.beat()] == [0, 1]


def test_unanswered_pings_are_counted_beside_received_bytes() -> None:
    heartbeat = Heartbeat()
    for _ in range(5):
        heartbeat.received()
        assert heartbeat.beat() == 0
    assert heartbeat.num_unanswered == 5
    answered(heartbeat, 0.1)
    assert heartbeat.num_unanswered == 0


def test_pong_without_a_ping_raises_remote_error() -> None:
    heartbeat = Heartbeat()
    answered(heartbeat, 0.1)
    heartbeat.record_pong(0, now=200.0)
    with pytest.raises(RemoteProtocolError, match="pong 1 to a ping that was never sent"):
        heartbeat.record_pong(1, now=200.0)


def test_unanswered_pings_are_forgotten() -> None:
    heartbeat = Heartbeat()
    for beat in range(MAX_UNANSWERED_PINGS + 1):
        heartbeat.next_ping(now=float(beat))
    heartbeat.record_pong(0, now=50.0)
    assert math.isinf(heartbeat.rtt_s)
