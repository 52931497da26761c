"""The roster as lists of events and the effects that they must have, on a manual clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.backoff import Backoff
from edgecosine.discovery.contact import MAX_DIALS_AFTER_GOODBYE, MAX_ENDPOINTS
from edgecosine.discovery.events import (
    Dial,
    DialFailed,
    Event,
    Explained,
    LinkDown,
    LinkUp,
    PeerGone,
    PeerSeen,
    RosterAction,
    Ticked,
)
from edgecosine.discovery.peer import Address
from edgecosine.discovery.roster import MAX_PEERS, STABLE_S, STALE_LIFE_S, Roster
from tests.discovery.adverts import advert
from tests.protocol.wire.values import hello

FIRST_S, LONGEST_S = 1.0, 8.0
STATIC = Address("10.0.0.9", 7000)
DIAL = Dial("drafter-1", (Address("10.0.0.5", 7000),), "drafter-1")
KNOWN = replace(DIAL, is_known=True)
UP = LinkUp("drafter-1", 5, "drafter-1")


class ManualRoster:
    """A roster and its manual clock."""

    def __init__(self, **settings: Any) -> None:
        self.now = 100.0
        self.roster = Roster(
            ours=settings.pop("ours", hello()),
            backoff=Backoff(FIRST_S, LONGEST_S),
            chance=lambda: 0.0,
            **settings,
        )

    def __call__(self, event: Event, after_s: float = 0.0) -> list[RosterAction]:
        self.now += after_s
        return self.roster.handle(event, self.now)

    def state_of(self, peer: str = "drafter-1") -> tuple[str, str]:
        found = [(e.state, e.reason) for e in self.roster.explain() if e.peer == peer]
        assert len(found) == 1
        return found[0]


def test_announced_drafter_is_dialled_once() -> None:
    play = ManualRoster()
    assert play(PeerSeen(advert())) == [DIAL]
    assert play(PeerSeen(advert())) == []
    assert play(UP) == []
    assert play.state_of() == ("linked", "")
    assert play.roster.wake_at is None


def test_pauses_between_dials_double_up_to_the_longest() -> None:
    play = ManualRoster()
    play(PeerSeen(advert()))
    pauses = []
    for attempt in range(6):
        play(DialFailed("drafter-1", f"refused {attempt}"))
        assert play.roster.wake_at is not None
        pauses.append(play.roster.wake_at - play.now)
        assert play(Ticked(), after_s=pauses[-1] - 0.01) == []
        assert play(Ticked(), after_s=0.01) == [DIAL]
    assert pauses == [1, 2, 4, 8, 8, 8]


def test_reason_is_reported_once() -> None:
    play = ManualRoster()
    play(PeerSeen(advert()))
    explained = Explained("drafter-1", "it is off", "waiting")
    assert play(DialFailed("drafter-1", "it is off")) == [explained]
    assert play(Ticked(), after_s=FIRST_S) == [DIAL]
    assert play(DialFailed("drafter-1", "it is off")) == []
    assert play.state_of() == ("waiting", "it is off")


@pytest.mark.parametrize(
    ("changes", "state", "reason"),
    [
        ({"cluster": "other"}, "refused", "cluster other there, lab here"),
        ({"protocol": 2}, "refused", "protocol 2 there, 1 here: install one release"),
        ({"role": "target"}, "left out", "is a target too"),
    ],
)
def test_mismatch_is_reported_and_never_dialled(
    changes: dict[str, Any], state: Any, reason: str
) -> None:
    play = ManualRoster()
    assert play(PeerSeen(advert(**changes))) == [Explained("drafter-1", reason, state)]
    assert play(PeerSeen(advert(**changes))) == []
    assert play(Ticked(), after_s=1000) == []
    assert play.state_of() == (state, reason)
    assert play(PeerSeen(advert())) == [DIAL]


@pytest.mark.parametrize(
    ("changes", "is_foreign"),
    [
        ({"cluster": "other"}, True),
        ({"cluster": "other", "protocol": 2, "role": "target"}, True),
        ({"protocol": 2}, False),
        ({}, False),
    ],
)
def test_node_of_another_cluster_is_marked_as_foreign(
    changes: dict[str, Any], is_foreign: bool
) -> None:
    play = ManualRoster()
    play(PeerSeen(advert(**changes)))
    assert [each.is_foreign for each in play.roster.explain()] == [is_foreign]


def test_refused_peer_is_dialled_after_a_change() -> None:
    play = ManualRoster()
    play(PeerSeen(advert(vocabulary="0" * 16)))
    explained = Explained("drafter-1", "vocabularies differ", "refused")
    assert play(DialFailed("drafter-1", "vocabularies differ", is_final=True)) == [explained]
    assert play(Ticked(), after_s=1000) == []
    assert play(PeerSeen(advert(vocabulary="1" * 16))) == [DIAL]


def test_dials_of_a_peer_that_changes_often_are_limited() -> None:
    play = ManualRoster()
    dials = [play(PeerSeen(advert(model=f"m{n}")), after_s=0.01).count(DIAL) for n in range(100)]
    assert sum(dials) == 1
    assert play(Ticked(), after_s=FIRST_S) == [DIAL]


def test_drafter_dials_static_peers_only() -> None:
    play = ManualRoster(ours=hello(node_id="d", role="drafter"), static=[STATIC])
    assert play(Ticked()) == [Dial("10.0.0.9:7000", (STATIC,), None, is_known=True)]
    effects = play(PeerSeen(advert(node_id="t", role="target")))
    assert effects == [Explained("t", "a drafter waits to be dialled", "left out")]


def test_static_peers_are_dialled_without_end() -> None:
    play = ManualRoster(static=[STATIC])
    dial = Dial("10.0.0.9:7000", (STATIC,), None, is_known=True)
    assert play(Ticked()) == [dial]
    for is_final in (False, True) * 20:
        play(DialFailed("10.0.0.9:7000", "no", is_final))
        assert play(Ticked(), after_s=LONGEST_S) == [dial]


def test_static_peer_linked_by_mdns_is_not_dialled_again() -> None:
    play = ManualRoster(static=[STATIC])
    play(Ticked())
    play(PeerSeen(advert()))
    play(UP)
    play(LinkUp("drafter-1", 5, "10.0.0.9:7000"))
    assert play(Ticked(), after_s=1000) == []
    assert play.state_of("10.0.0.9:7000") == ("linked", "")
    effects = play(LinkDown("drafter-1", "cable"))
    assert {e.contact for e in effects if isinstance(e, Explained)} == {
        "drafter-1",
        "10.0.0.9:7000",
    }


def test_lost_peer_is_dialled_again_after_a_short_pause() -> None:
    play = ManualRoster()
    play(PeerSeen(advert()))
    play(UP)
    assert play(LinkDown("drafter-1", "end of file"), after_s=STABLE_S) == [
        Explained("drafter-1", "end of file", "waiting")
    ]
    assert play(Ticked(), after_s=FIRST_S) == [KNOWN]


def test_short_links_increase_the_pause() -> None:
    play = ManualRoster()
    play(PeerSeen(advert()))
    pauses = []
    for _ in range(3):
        play(UP)
        play(LinkDown("drafter-1", "crash"), after_s=0.1)
        assert play.roster.wake_at is not None
        pauses.append(play.roster.wake_at - play.now)
        play(Ticked(), after_s=pauses[-1])
    assert pauses == [1, 2, 4]


def test_goodbye_ends_dials_but_no_link() -> None:
    play = ManualRoster()
    play(PeerSeen(advert()))
    assert play(PeerGone("drafter-1")) == []
    assert play(Ticked(), after_s=1000) == []
    assert play(PeerGone("drafter-1")) == []
    play(PeerSeen(advert()))
    play(UP)
    assert play(PeerGone("drafter-1")) == []
    assert play.state_of() == ("linked", "")
    assert play(LinkDown("drafter-1", "stopped", is_disconnect=True)) == []
    assert play.roster.explain() == []


def test_restarted_node_is_dialled_at_once() -> None:
    play = ManualRoster()
    play(PeerSeen(advert()))
    play(UP)
    newer = PeerSeen(advert(incarnation=6))
    assert play(newer, after_s=60) == [KNOWN]
    assert play(LinkDown("drafter-1", "another link to this node takes over")) == []
    assert play(LinkUp("drafter-1", 6, "drafter-1")) == []
    assert play.state_of() == ("linked", "")


def test_linked_node_is_not_dialled_when_another_node_at_its_address_leaves() -> None:
    play = ManualRoster()
    play(PeerSeen(advert()))
    play(UP)
    play(LinkUp("drafter-2", 1, "drafter-1"))
    assert play(LinkDown("drafter-2", "cable")) == []
    assert play.state_of() == ("linked", "")
    assert play(Ticked(), after_s=LONGEST_S) == []


FALSE = {"incarnation": 99, "addresses": ("10.6.6.6",)}


@pytest.mark.parametrize("changes", [{}, {"cluster": "other"}, {"role": "target"}, {"protocol": 9}])
def test_false_announcement_ends_no_link_and_replaces_no_address(
    changes: dict[str, Any],
) -> None:
    play = ManualRoster()
    play(PeerSeen(advert()))
    play(UP)
    effects = play(PeerSeen(advert(**FALSE, **changes)), after_s=60)
    assert all(isinstance(effect, Dial) for effect in effects)
    if effects:
        assert play(DialFailed("drafter-1", "nobody there")) == []
    assert play.state_of() == ("linked", "")
    play(LinkDown("drafter-1", "cable"))
    [dial] = play(Ticked(), after_s=LONGEST_S)
    assert isinstance(dial, Dial)
    assert (dial.endpoints[0], dial.is_known) == (Address("10.0.0.5", 7000), True)


def test_node_whose_name_was_claimed_before_is_dialled_at_both_addresses() -> None:
    play = ManualRoster()
    play(PeerSeen(advert(**FALSE)))
    play(PeerSeen(advert()))
    play(DialFailed("drafter-1", "nobody there"))
    [dial] = play(Ticked(), after_s=FIRST_S)
    assert isinstance(dial, Dial)
    assert dial.endpoints == (Address("10.6.6.6", 7000), Address("10.0.0.5", 7000))


def test_claimed_addresses_are_bounded() -> None:
    play = ManualRoster()
    for number in range(100):
        play(PeerSeen(advert(addresses=(f"10.6.6.{number}",), incarnation=number)))
    [dial] = play(Ticked(), after_s=FIRST_S)
    assert isinstance(dial, Dial)
    assert len(dial.endpoints) == MAX_ENDPOINTS


def test_lost_node_is_dialled_after_a_false_goodbye() -> None:
    play = ManualRoster()
    play(PeerSeen(advert()))
    play(UP)
    play(PeerGone("drafter-1"))
    play(LinkDown("drafter-1", "cable"))
    for _ in range(MAX_DIALS_AFTER_GOODBYE - 1):
        assert KNOWN in play(Ticked(), after_s=LONGEST_S)
        play(DialFailed("drafter-1", "off"))
    assert play.roster.explain() == []
    assert play(Ticked(), after_s=1000) == []


def test_announcement_of_an_earlier_process_is_ignored() -> None:
    play = ManualRoster()
    play(PeerSeen(advert(incarnation=6)))
    assert play(PeerSeen(advert(incarnation=5, port=1)), after_s=STALE_LIFE_S - 1) == []
    play(LinkUp("drafter-1", 6, "drafter-1"))
    assert play(PeerSeen(advert(incarnation=5, port=1)), after_s=1000) == []


def test_node_whose_clock_went_back_is_dialled() -> None:
    play = ManualRoster()
    play(PeerSeen(advert(incarnation=6)))
    play(DialFailed("drafter-1", "off"))
    effects = play(PeerSeen(advert(incarnation=1, port=1)), after_s=STALE_LIFE_S)
    [dial] = [effect for effect in effects if isinstance(effect, Dial)]
    assert dial.endpoints[0] == Address("10.0.0.5", 1)


def test_peer_that_dialled_us_is_not_dialled() -> None:
    play = ManualRoster()
    play(LinkUp("drafter-1", 5))
    assert play(PeerSeen(advert())) == []
    assert play.state_of() == ("linked", "")


def test_own_announcement_is_ignored_and_a_copy_reported() -> None:
    play = ManualRoster()
    ours = {"node_id": "target-1", "role": "target"}
    assert play(PeerSeen(advert(**ours, incarnation=1000))) == []
    explained = "another node announces our name: give each node its own"
    copy = PeerSeen(advert(**ours, incarnation=1001))
    assert play(copy) == [Explained("target-1", explained, "refused")]
    assert play(copy) == []


def test_number_of_announced_peers_is_bounded() -> None:
    play = ManualRoster()
    for number in range(MAX_PEERS):
        play(PeerSeen(advert(node_id=f"d{number}")))
    effects = play(PeerSeen(advert(node_id="one-more")))
    assert effects == [Explained("other peers", "more than 1024 peers are announced", "left out")]
    assert len(play.roster.explain()) == MAX_PEERS


def test_peer_whose_dials_failed_makes_room() -> None:
    play = ManualRoster()
    play(PeerSeen(advert()))
    play(UP)
    for number in range(MAX_PEERS - 1):
        play(PeerSeen(advert(node_id=f"d{number}", addresses=("10.6.6.6",))))
    play(DialFailed("d7", "nobody there"))
    assert DIAL.contact in {e.peer for e in play.roster.explain()}
    late = Dial("late", DIAL.endpoints, "late")
    assert play(PeerSeen(advert(node_id="late"))) == [late]
    names = {explanation.peer for explanation in play.roster.explain()}
    assert len(names) == MAX_PEERS
    assert "d7" not in names
    assert "drafter-1" in names


def test_late_failure_of_a_forgotten_peer_changes_nothing() -> None:
    play = ManualRoster()
    play(PeerSeen(advert()))
    play(PeerGone("drafter-1"))
    assert play(DialFailed("drafter-1", "off")) == []
    assert "0 contacts" in repr(play.roster)


adverts = st.builds(
    advert,
    node_id=st.sampled_from(["a", "b", "target-1"]),
    incarnation=st.integers(4, 6),
    cluster=st.sampled_from(["lab", "lab", "other"]),
    role=st.sampled_from(["drafter", "drafter", "target"]),
    port=st.sampled_from([7000, 7001]),
)
node_ids = st.sampled_from(["a", "b"])
contacts = st.sampled_from(["a", "b", str(STATIC), "nobody"])
events = st.one_of(
    st.builds(PeerSeen, adverts),
    st.builds(PeerGone, node_ids),
    st.builds(LinkUp, node_ids, st.integers(4, 6), st.none() | contacts),
    st.builds(LinkDown, node_ids, st.just("cable")),
    st.builds(DialFailed, contacts, st.just("off"), st.booleans()),
    st.just(Ticked()),
)


@given(st.lists(st.tuples(events, st.sampled_from([0.0, 0.5, 10.0])), max_size=40))
def test_any_events_cause_permitted_dials_only(
    history: list[tuple[Event, float]],
) -> None:
    play = ManualRoster(static=[STATIC])
    linked: dict[str, int] = {}
    claimed: dict[str, int] = {}
    for event, after_s in history:
        match event:
            case LinkUp(node_id, incarnation, _):
                linked[node_id] = incarnation
            case LinkDown(node_id):
                linked.pop(node_id, None)
            case PeerSeen(advert):
                known = claimed.get(advert.node_id, 0)
                claimed[advert.node_id] = max(known, advert.incarnation)
            case _:
                pass
        dials = [e for e in play(event, after_s) if isinstance(e, Dial)]
        assert len({dial.contact for dial in dials}) == len(dials)
        for dial in dials:
            assert dial.contact in ("a", "b", str(STATIC))
            if dial.contact in linked:
                assert claimed[dial.contact] > linked[dial.contact]
        due = play.roster.wake_at
        assert due is None or due > play.now
        assert len(play.roster.explain()) <= 3
    for explanation in play.roster.explain():
        is_explained = explanation.reason != "" or explanation.state == "linked"
        assert is_explained, explanation
