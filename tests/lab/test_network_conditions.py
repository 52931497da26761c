"""Effects of network conditions on frames, without sockets or clocks."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.errors import ConfigError
from edgecosine.lab.network.conditions import IDEAL, Cable, Lane, NetworkConditions
from edgecosine.lab.network.netns.switch import Switch

BROADCAST = b"\xff" * 6

networks = st.builds(
    lambda delay, jitter, loss, rate: NetworkConditions(delay, delay * jitter, loss, rate),
    st.floats(0, 100),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.none() | st.floats(0.1, 1000),
)
traffic = st.lists(st.tuples(st.floats(0, 0.1), st.integers(1, 1514)), max_size=60)


def _address(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


def _frame(to: bytes, sender: int, text: bytes = b"") -> bytes:
    return to + _address(sender) + text


@pytest.mark.parametrize(
    "fields",
    [
        {"delay_ms": -1},
        {"delay_ms": math.inf},
        {"delay_ms": 1, "jitter_ms": 2},
        {"loss": 1.1},
        {"loss": math.nan},
        {"rate_mbps": 0},
        {"duplication": -0.1},
        {"duplication": 1.5},
    ],
)
def test_impossible_conditions_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        NetworkConditions(**fields)


@given(networks, traffic)
def test_frames_keep_their_order_and_none_is_early(
    conditions: NetworkConditions, sent: list[tuple[float, int]]
) -> None:
    lane, now, arrivals = Lane(conditions, "seed"), 0.0, []
    for pause, size in sent:
        now += pause
        due = lane.send(now, size)
        if due is not None:
            least_s = (conditions.delay_ms - conditions.jitter_ms) / 1e3
            if conditions.rate_mbps is not None:
                least_s += size * 8e-6 / conditions.rate_mbps
            assert due >= now + least_s - 1e-9
            arrivals.append(due)
    assert all(earlier <= later for earlier, later in pairwise(arrivals))
    assert lane.num_frames == len(arrivals)
    assert lane.num_frames + lane.num_lost + lane.num_overrun == len(sent)


@given(st.floats(0, 100), st.floats(0.1, 1))
def test_delay_without_jitter_is_exact(delay_ms: float, pause_s: float) -> None:
    lane = Lane(NetworkConditions(delay_ms=delay_ms), "seed")
    for number in range(10):
        assert lane.send(number * pause_s, 1000) == pytest.approx(
            number * pause_s + delay_ms / 1e3, abs=1e-12
        )


def test_jitter_is_within_its_bounds_and_around_the_delay() -> None:
    lane = Lane(NetworkConditions(delay_ms=10, jitter_ms=4), "seed")
    delays = [1e3 * ((lane.send(float(now), 100) or 0) - now) for now in range(2000)]
    assert min(delays) >= 6 - 1e-6
    assert max(delays) <= 14 + 1e-6
    assert sum(delays) / len(delays) == pytest.approx(10, abs=0.3)


def test_loss_has_the_given_share_and_is_deterministic() -> None:
    def fates(seed: str) -> list[bool]:
        lane = Lane(NetworkConditions(loss=0.01), seed)
        return [lane.send(float(now), 100) is None for now in range(20_000)]

    assert 120 < sum(fates("one")) < 280
    assert fates("one") == fates("one")
    assert fates("one") != fates("two")


@given(st.floats(1, 1000), st.integers(100, 1514), st.integers(10, 200))
def test_rate_limits_bytes(rate_mbps: float, size: int, count: int) -> None:
    lane = Lane(NetworkConditions(rate_mbps=rate_mbps), "seed", longest_queue_s=math.inf)
    last = [lane.send(0.0, size) for _ in range(count)][-1]
    assert last == pytest.approx(count * size * 8 / (rate_mbps * 1e6))


def test_frame_beyond_the_queue_of_a_slow_lane_is_dropped() -> None:
    lane = Lane(NetworkConditions(rate_mbps=1), "seed", longest_queue_s=0.205)
    through = [due for _ in range(100) if (due := lane.send(0.0, 1250)) is not None]
    assert len(through) == 21
    assert max(through) == pytest.approx(0.21)
    assert lane.num_overrun == 79


def test_new_conditions_keep_the_order_of_frames() -> None:
    lane = Lane(NetworkConditions(delay_ms=50), "seed")
    assert lane.send(0.0, 100) == pytest.approx(0.05)
    lane.conditions = IDEAL
    assert lane.send(0.01, 100) == pytest.approx(0.05)
    assert lane.send(0.06, 100) == pytest.approx(0.06)


def test_lanes_of_a_cable_lose_frames_independently() -> None:
    cable = Cable("a", NetworkConditions(loss=0.5), seed=7)
    lanes = (cable.up, cable.down)
    up, down = ([lane.send(0.0, 1) is None for _ in range(100)] for lane in lanes)
    assert up != down


def _switch(**conditions_of_ports: NetworkConditions) -> Switch:
    switch = Switch(seed=1)
    for port, conditions in conditions_of_ports.items():
        switch.plug(port, conditions)
    return switch


def test_broadcast_reaches_all_others_and_its_sender_is_learned() -> None:
    switch = _switch(a=IDEAL, b=IDEAL, c=IDEAL)
    switch.enter("a", _frame(BROADCAST, 1), 0.0)
    assert [port for port, _, _ in switch.leave(0.0)] == ["b", "c"]
    switch.enter("b", _frame(_address(1), 2), 1.0)
    assert [port for port, _, _ in switch.leave(1.0)] == ["a"]
    switch.enter("c", _frame(_address(9), 3), 2.0)
    assert [port for port, _, _ in switch.leave(2.0)] == ["a", "b"]


def test_frame_crosses_both_cables() -> None:
    switch = _switch(a=NetworkConditions(delay_ms=10), b=NetworkConditions(delay_ms=5, rate_mbps=8))
    switch.enter("a", _frame(BROADCAST, 1, bytes(988)), 0.0)
    assert list(switch.leave(0.0159)) == []
    assert switch.next_due is not None
    (left,) = switch.leave(1.0)
    assert left[2] == pytest.approx(0.010 + 0.005 + 0.001)
    assert switch.next_due is None


def test_slow_cable_does_not_delay_frames_of_a_fast_one() -> None:
    switch = _switch(
        slow=NetworkConditions(delay_ms=50), quick=IDEAL, to=NetworkConditions(delay_ms=1)
    )
    switch.enter("to", _frame(BROADCAST, 3), 0.0)
    list(switch.leave(1.0))
    switch.enter("slow", _frame(_address(3), 1), 1.0)
    switch.enter("quick", _frame(_address(3), 2), 1.001)
    dues = [due for _, _, due in switch.leave(2.0)]
    assert dues == pytest.approx([1.002, 1.051])


def test_cut_cable_carries_nothing_either_way() -> None:
    switch = _switch(a=IDEAL, b=IDEAL, c=IDEAL)
    switch.cables["b"].change(IDEAL, is_cut=True)
    switch.enter("b", _frame(BROADCAST, 2), 0.0)
    switch.enter("a", _frame(BROADCAST, 1), 0.0)
    assert [port for port, _, _ in switch.leave(0.0)] == ["c"]
    switch.cables["b"].change(IDEAL, is_cut=False)
    switch.enter("a", _frame(BROADCAST, 1), 1.0)
    assert [port for port, _, _ in switch.leave(1.0)] == ["b", "c"]


@given(st.integers(0, 2**32))
def test_frames_leave_in_chronological_order(seed: int) -> None:
    chance = random.Random(seed)
    switch = _switch(
        a=NetworkConditions(delay_ms=3), b=NetworkConditions(delay_ms=9, jitter_ms=9), c=IDEAL
    )
    now, left = 0.0, []
    for _ in range(50):
        now += chance.uniform(0, 0.004)
        sender = chance.randrange(3)
        switch.enter("abc"[sender], _frame(BROADCAST, sender), now)
        left += [due for _, _, due in switch.leave(now)]
    left += [due for _, _, due in switch.leave(math.inf)]
    assert left == sorted(left)
    assert len(left) == 100


def _through(conditions: NetworkConditions, count: int) -> list[bytes]:
    switch = Switch(seed=5)
    for number, port in enumerate("ab"):
        switch.plug(port, conditions if port == "b" else IDEAL)
        switch.enter(port, _frame(BROADCAST, number), 0.0)
    list(switch.leave(1.0))
    for number in range(count):
        switch.enter("a", _frame(_address(1), 0, str(number).encode()), 2.0)
    return [frame[12:] for port, frame, _ in switch.leave(3.0) if port == "b"]


def test_given_share_of_frames_is_doubled_in_order() -> None:
    sent = [str(number).encode() for number in range(1000)]
    assert _through(IDEAL, 1000) == sent
    assert _through(NetworkConditions(duplication=1), 1000) == [
        each for each in sent for _ in range(2)
    ]
    arrived = _through(NetworkConditions(duplication=0.1), 1000)
    assert list(dict.fromkeys(arrived)) == sent
    assert 1050 < len(arrived) < 1150
