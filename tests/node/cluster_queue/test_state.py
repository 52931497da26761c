"""Several queue states and a broker between them answer each request once, despite crashes."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecosine.balance.rendezvous_hash import chosen
from edgecosine.node.cluster_queue.actions import (
    AbandonRequest,
    AcknowledgeClaim,
    ClearClaim,
    PublishClaim,
    PublishKnown,
    QueueAction,
    StartRequest,
)
from edgecosine.node.cluster_queue.members import GRACE_S
from edgecosine.node.cluster_queue.state import UNCLAIMED_S, QueueState
from edgecosine.protocol.api.claim_messages import Claim, KnownRequest, MembershipStatus
from edgecosine.protocol.api.replies import FinalReply, RequestEnd
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import RequestTicket

NAMES = ("a", "b", "c")


@dataclass
class Node:
    """A target without MQTT: its queue, its running requests and its undelivered messages."""

    name: str
    incarnation: int = 0
    is_alive: bool = True
    active: set[str] = field(default_factory=set)
    held: dict[str, RequestEnd] = field(default_factory=dict)
    """Ends that are not certainly its own to send, and are in its journal."""
    sent: dict[str, RequestEnd] = field(default_factory=dict)
    """Ends that the broker has, and has not acknowledged."""
    answered: set[str] = field(default_factory=set)
    heard: list[str] = field(default_factory=list)
    inbox: deque[tuple[str, object]] = field(default_factory=deque)
    queue: QueueState = field(init=False)

    def __post_init__(self) -> None:
        status = MembershipStatus(
            self.name, f"{self.name}{self.incarnation}", "x", "m", 0.0, "ready"
        )
        self.queue = QueueState(status, has_finished=self.answered.__contains__)


@dataclass
class World:
    """A broker with total order and retained messages, and targets that receive them in time."""

    now: float = 0.0
    nodes: dict[str, Node] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    statuses: dict[str, MembershipStatus] = field(default_factory=dict)
    finals: dict[str, list[RequestEnd]] = field(default_factory=lambda: defaultdict(list))
    repeated: set[str] = field(default_factory=set)
    """Requests whose final a killed target had sent without knowing that the broker had it."""
    excused: set[str] = field(default_factory=set)
    """Answered by a target that died before the last of the others had heard of the request."""
    starts: Counter[str] = field(default_factory=Counter)
    backlog: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in NAMES})

    def join(self, name: str, *, journal: bool = True) -> None:
        """A target comes, or comes back with its journal."""
        before = self.nodes.get(name)
        node = Node(name, before.incarnation + 1 if before else 0)
        self.nodes[name] = node
        if before is not None and journal:
            node.answered |= before.answered
            for key, end in {**before.held, **before.sent}.items():
                node.held[key] = end
                node.queue.own.expect_delivery(key)
            for key in sorted(before.active):
                self.do(node, node.queue.own.claim(self.offer(node, key), self.now))
        node.queue.on_connected(self.now)
        self.publish("standing", node.queue.us)
        self.statuses[name] = node.queue.us
        for status in self.statuses.values():
            if status.node != name:
                node.inbox.append(("standing", status))
        node.inbox.extend(("retained", claim) for claim in self.claims.values())
        node.inbox.append(("echo", None))
        node.inbox.extend(("request", key) for key in self.backlog[name])
        self.backlog[name] = []

    def kill(self, name: str) -> None:
        node = self.nodes[name]
        node.is_alive = False
        self.repeated |= node.sent.keys()
        self.excused |= {key for key in node.answered if self.is_in_transit(key, name)}
        # What it has not acknowledged its session keeps.
        self.backlog[name] = [
            key
            for key in [*node.heard, *(str(what) for kind, what in node.inbox if kind == "request")]
            if key not in node.heard or node.queue.is_open(key)
        ]
        node.inbox.clear()
        lost = msgspec.structs.replace(node.queue.us, state="lost")
        self.statuses[name] = lost
        self.publish("standing", lost)

    def is_in_transit(self, key: str, dead: str) -> bool:
        """Whether a target other than the dead one may take the request for a new one."""
        return any(
            key in self.backlog[name] or ("request", key) in node.inbox or node.queue.is_open(key)
            for name, node in self.nodes.items()
            if name != dead
        )

    def ask(self, key: str) -> None:
        for name in NAMES:
            node = self.nodes.get(name)
            if node is not None and node.is_alive:
                node.inbox.append(("request", key))
            elif node is not None:
                self.backlog[name].append(key)

    def publish(self, kind: str, what: object) -> None:
        for node in self.nodes.values():
            if node.is_alive:
                node.inbox.append((kind, what))

    def offer(self, node: Node, key: str) -> Claim:
        client, request_id = key.split("/")
        ticket = RequestTicket(client, request_id, "completion", "r", digest=key.encode())
        us = node.queue.us
        return Claim(
            us.node, us.session, ticket, Request(client, request_id, "completion", ""), 0.0
        )

    def do(self, node: Node, actions: list[QueueAction]) -> None:
        for effect in actions:
            match effect:
                case PublishClaim(claim):
                    self.claims[claim.key] = claim
                    self.publish("claim", claim)
                case ClearClaim(key):
                    self.claims.pop(key, None)
                    self.publish("clear", key)
                case PublishKnown(ticket):
                    self.publish("known", (ticket.key, KnownRequest(node.name, ticket.digest)))
                case AcknowledgeClaim(claim):
                    claimant = self.nodes[claim.node]
                    if claimant.is_alive:
                        claimant.inbox.append(("consent", (node.name, claim)))
                case StartRequest(claim) if claim.end is not None:
                    node.held[claim.key] = claim.end
                case StartRequest(claim):
                    assert claim.key not in node.active
                    node.active.add(claim.key)
                    self.starts[claim.key] += 1
                case AbandonRequest(key):
                    node.active.discard(key)
                    node.held.pop(key, None)

    def receive(self, name: str) -> None:
        """One target receives its next message."""
        node = self.nodes[name]
        if not node.is_alive or not node.inbox:
            return
        kind, what = node.inbox.popleft()
        queue, now = node.queue, self.now
        match kind, what:
            case "request", str(key):
                node.heard.append(key)
                if key in node.answered:
                    self.do(node, queue.repeat(self.offer(node, key).ticket))
                elif key not in node.active:
                    self.do(node, queue.on_request(self.offer(node, key), now))
            case (("claim" | "retained"), Claim() as claim):
                self.do(node, queue.on_claim(claim, now, is_retained=kind == "retained"))
            case "clear", str(key):
                self.do(node, queue.on_claim_cleared(key, now))
            case "known", (str(key), KnownRequest() as known):
                self.do(node, queue.on_known(key, known.node, known.digest, now))
            case "consent", (str(other), Claim() as claim):
                self.do(node, queue.on_ack(other, claim.key, claim.generation))
            case "standing", MembershipStatus() as status if status.node != name:
                self.do(node, queue.on_status(status, now))
            case "echo", _:
                self.do(node, queue.join(now, is_remembered=True))

    def answer(self, name: str) -> None:
        """A target ends its first request."""
        node = self.nodes[name]
        for key in sorted(node.active)[: node.is_alive]:
            node.active.discard(key)
            # The times in a final differ from those in any other.
            times = f"{node.queue.us.session} {sum(self.starts.values())}".encode()
            node.held[key] = RequestEnd("done", FinalReply(key, "r", times))
            self.do(node, node.queue.own.add_end(key, node.held[key]))

    def send(self, name: str) -> None:
        """A target sends the finals that are certainly its own."""
        node = self.nodes[name]
        for key in [key for key in node.held if node.queue.own.is_acknowledged(key)]:
            if node.is_alive:
                node.sent[key] = node.held.pop(key)
                node.answered.add(key)
                self.finals[key].append(node.sent[key])

    def deliver(self, name: str) -> None:
        """The broker acknowledges the finals of a target."""
        node = self.nodes[name]
        for key in list(node.sent) if node.is_alive else []:
            del node.sent[key]
            self.do(node, node.queue.own.finish(key))

    def settle(self) -> None:
        """All messages are received."""
        while any(node.inbox for node in self.nodes.values()):
            for name in self.nodes:
                self.receive(name)

    def come_to_rest(self) -> None:
        """All that is to happen happens, without a fault any more."""
        for _ in range(6):
            self.settle()
            self.now += GRACE_S / 2
            for node in self.nodes.values():
                if node.is_alive:
                    self.do(node, node.queue.on_tick(self.now))
            self.settle()
            for name in self.nodes:
                while self.nodes[name].active and self.nodes[name].is_alive:
                    self.answer(name)
                self.settle()
                self.send(name)
                self.deliver(name)
                self.settle()


def world(*names: str) -> World:
    here = World()
    for name in names:
        here.join(name)
    here.settle()
    return here


def counts(here: World) -> dict[str, int]:
    return {key: len(ends) for key, ends in here.finals.items()}


def owner(key: str, *names: str) -> str:
    return chosen(key, names)


KEYS = [f"u/{number}" for number in range(24)]


def test_requests_are_shared_and_each_is_answered_once() -> None:
    here = world("a", "b")
    for key in KEYS:
        here.ask(key)
    here.settle()
    assert here.nodes["a"].active
    assert here.nodes["b"].active
    assert sorted([*here.nodes["a"].active, *here.nodes["b"].active]) == sorted(KEYS)
    here.come_to_rest()
    assert counts(here) == dict.fromkeys(KEYS, 1)
    assert here.claims == {}


def test_lone_target_publishes_nothing() -> None:
    here = world("a")
    here.publish = lambda *_: pytest.fail("no peer is there")  # type: ignore[method-assign]
    for key in KEYS:
        here.ask(key)
    here.settle()
    for _ in KEYS:
        here.answer("a")
        here.send("a")
        here.deliver("a")
    assert counts(here) == dict.fromkeys(KEYS, 1)


def test_new_target_learns_active_claims() -> None:
    here = world("a")
    here.ask("u/1")
    here.settle()
    here.join("b")
    here.settle()
    here.kill("a")
    here.come_to_rest()
    assert counts(here) == {"u/1": 1}
    assert here.nodes["b"].answered == {"u/1"}


@pytest.mark.parametrize("returns_early", [False, True])
def test_returning_target_does_not_rerun_taken_requests(returns_early: bool) -> None:
    here = world("a", "b")
    key = next(key for key in KEYS if owner(key, "a", "b") == "a")
    here.ask(key)
    here.settle()
    here.kill("a")
    here.settle()
    here.now += GRACE_S
    here.do(here.nodes["b"], here.nodes["b"].queue.on_tick(here.now))
    if not returns_early:
        here.come_to_rest()
        assert counts(here) == {key: 1}
    here.join("a")
    here.come_to_rest()
    assert counts(here) == {key: 1}
    assert here.nodes["b"].answered == {key}
    assert here.starts[key] == 2


def test_final_of_a_killed_target_comes_again_with_the_same_bytes() -> None:
    here = world("a", "b")
    key = next(key for key in KEYS if owner(key, "a", "b") == "a")
    here.ask(key)
    here.settle()
    here.answer("a")
    here.settle()
    here.send("a")
    here.kill("a")
    here.come_to_rest()
    assert counts(here) == {key: 2}
    assert len(set(here.finals[key])) == 1
    assert here.starts == {key: 1}
    assert here.claims == {}


def test_resumed_target_abandons_taken_requests() -> None:
    here = world("a", "b")
    key = next(key for key in KEYS if owner(key, "a", "b") == "a")
    here.ask(key)
    here.settle()
    a, b = here.nodes["a"], here.nodes["b"]
    here.do(b, b.queue.on_status(msgspec.structs.replace(a.queue.us, state="lost"), here.now))
    here.now += GRACE_S
    here.do(b, b.queue.on_tick(here.now))
    assert b.active == {key}
    here.settle()
    assert a.active == set()


def test_leaving_target_hands_over_at_once() -> None:
    here = world("a", "b")
    for key in KEYS:
        here.ask(key)
    here.settle()
    a, b = here.nodes["a"], here.nodes["b"]
    here.do(b, b.queue.on_status(msgspec.structs.replace(a.queue.us, state="left"), here.now))
    assert b.active == set(KEYS)


def test_draining_target_gets_no_new_requests() -> None:
    here = world("a", "b")
    a = here.nodes["a"]
    here.do(a, a.queue.set_status("draining", here.now))
    for key in KEYS:
        here.ask(key)
    here.publish("standing", a.queue.us)
    here.come_to_rest()
    assert a.answered == set()
    assert counts(here) == dict.fromkeys(KEYS, 1)


def test_request_without_an_id_is_answered_once() -> None:
    here = world("a", "b")
    queues = [here.nodes[name].queue for name in "ab"]
    for number in range(20):
        for node, queue in zip("ab", queues, strict=True):
            claim = here.offer(here.nodes[node], f"anon/{node}{number}")
            ticket = dataclasses.replace(claim.ticket, is_named=False, digest=b"%d" % (number % 3))
            here.do(
                here.nodes[node],
                queue.on_request(msgspec.structs.replace(claim, ticket=ticket), 0.0),
            )
    here.come_to_rest()
    assert sum(counts(here).values()) == 20


def test_unclaimed_request_is_claimed_after_a_time() -> None:
    here = world("a", "b")
    a, b = here.nodes["a"], here.nodes["b"]
    key = next(key for key in KEYS if owner(key, "a", "b") == "a")
    here.do(b, b.queue.on_request(here.offer(b, key), here.now))
    here.do(b, b.queue.on_tick(here.now + UNCLAIMED_S / 2))
    assert not here.claims
    here.do(b, b.queue.on_tick(here.now + UNCLAIMED_S))
    here.settle()
    assert b.active == {key}
    assert a.active == set()


def test_late_repeated_request_is_not_run_again() -> None:
    here = world("a", "b")
    for key in KEYS:
        here.ask(key)
    here.come_to_rest()
    here.kill("b")
    for key in KEYS:
        here.ask(key)
    here.settle()
    here.join("b")
    here.come_to_rest()
    asked_again = [key for key in KEYS if owner(key, "a", "b") == "b"]
    assert all(len(here.finals[key]) == 1 for key in KEYS if key not in asked_again)


STEPS = ["ask", "hear", "hear", "hear", "hear", "answer", "send", "deliver", "kill", "join"]


@settings(max_examples=50)
@given(st.data())
def test_each_request_is_answered_once_under_any_crashes(data: st.DataObject) -> None:
    """Messages arrive late, at each target at its own pace; targets crash and restart with their
    journals. No request is lost while a target runs, no known request is answered twice, and a
    final that comes twice comes with the same bytes."""
    here = world(*NAMES)
    asked: list[str] = []
    for _ in range(data.draw(st.integers(4, 40))):
        alive = [name for name in NAMES if here.nodes[name].is_alive]
        dead = [name for name in NAMES if name not in alive]
        match data.draw(st.sampled_from(STEPS)):
            case "ask":
                asked.append(f"u/{len(asked)}")
                here.ask(asked[-1])
            case "hear":
                for name in data.draw(st.lists(st.sampled_from(NAMES), max_size=8)):
                    here.receive(name)
            case "answer" | "send" | "deliver" as step:
                getattr(here, step)(data.draw(st.sampled_from(NAMES)))
            case "kill" if len(alive) > 1:
                here.kill(data.draw(st.sampled_from(alive)))
            case "join" if dead:
                here.join(data.draw(st.sampled_from(dead)))
    here.come_to_rest()
    once = [key for key in asked if key not in here.excused]
    assert {key: len(set(here.finals[key])) for key in once} == dict.fromkeys(once, 1)
    once = [key for key in once if key not in here.repeated]
    assert {key: len(here.finals[key]) for key in once} == dict.fromkeys(once, 1)
    assert all(here.finals[key] for key in asked)
    assert not any(node.active for node in here.nodes.values() if node.is_alive)
