"""One simulated run: askers in a closed loop, sessions, one target, drafters and their links."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from edgecosine.engine.text import TextCodec
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.decisions import TimedBalancer
from edgecosine.lab.simulation.engines import (
    RecallingDrafter,
    RecitingTarget,
    SimulatedDrafting,
    SimulatedVerifying,
    check_room,
)
from edgecosine.lab.simulation.events import Core, Strand, VirtualLoop
from edgecosine.lab.simulation.texts import NUM_PROMPT, Texts
from edgecosine.lab.simulation.wire import VirtualLink
from edgecosine.node.session import Session
from edgecosine.protocol.request import Answer, Delta, Request


@dataclass(frozen=True, slots=True)
class Scenario:
    """The nodes of a cluster. `drafters` are recorded models, one node each."""

    drafters: tuple[str, ...] = ()
    is_core_shared: bool = False
    """Whether all drafters, the broker and the askers share one processor."""
    slots: int = 16
    """Sessions that a node's cache has room for, and that a pass or a step takes at most."""


@dataclass(frozen=True, slots=True)
class SimulatedLoad:
    """So many askers, each with one request at work until there are none left."""

    policy: str
    sessions: int
    requests: int
    """In all."""
    max_tokens: int = 128
    first_text: int = 0
    """The first prompt's number, domains in turn."""


@dataclass(slots=True)
class Outcome:
    """What came of it; times in virtual seconds but for `decision_s`."""

    elapsed_s: float = 0.0
    num_tokens: int = 0
    num_rounds: int = 0
    num_accepted: int = 0
    num_passes: int = 0
    num_rows: int = 0
    latencies_s: list[float] = field(default_factory=list)
    answers: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Tokens by request."""
    pass_s: float = 0.0
    """In passes, all together."""
    loop_s: float = 0.0
    """The target's event loop at work."""
    num_messages: int = 0
    drafters_s: float = 0.0
    """All drafters' engines and loops at work."""
    decisions: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Calls of the balancer, and the seconds that they really took here."""

    @property
    def tokens_per_s(self) -> float:
        """Throughput."""
        return self.num_tokens / self.elapsed_s

    @property
    def decision_s(self) -> float:
        """Real seconds of all decisions."""
        return sum(seconds for _, seconds in self.decisions.values())


class _Letters:
    """A tokenizer whose tokens are letters, a codec being no part of what is simulated."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 0x4E00 for letter in text]

    def decode(self, tokens: Sequence[int], **_: object) -> str:
        return "".join(chr(0x4E00 + token) for token in tokens)


class VirtualCluster:
    """The nodes of one run."""

    def __init__(self, loop: VirtualLoop, scenario: Scenario, costs: Costs, texts: Texts) -> None:
        self._loop, self._scenario, self._costs, self._texts = loop, scenario, costs, texts
        self._codec = TextCodec(_Letters(int(texts.tokens.max()) + 1), ())
        self._turns = texts.turns()
        self._numbers = itertools.count()
        self.target_core = Core(loop)
        self.target = Strand(loop, "target", self.target_core)
        self.balancer = TimedBalancer()
        self.verifying = SimulatedVerifying(
            engine=RecitingTarget(texts),
            balancer=self.balancer,
            max_batch=scenario.slots,
            costs=costs,
            core=self.target_core,
            strand=self.target,
        )
        self._shared = Core(loop) if scenario.is_core_shared else None
        self.cores: list[Core] = [self._shared] if self._shared else []
        self._askers = Strand(loop, "askers", self._shared)
        """Broker and askers, who do one thing after the other."""
        self.links: dict[str, VirtualLink] = {}
        self._draftings: list[tuple[SimulatedDrafting, Strand]] = []
        for number, model in enumerate(scenario.drafters):
            self._add_drafter(f"{model}-{number}", model)

    def _add_drafter(self, node_id: str, model: str) -> None:
        core = self._shared or Core(self._loop)
        if self._shared is None:
            self.cores.append(core)
        strand = Strand(self._loop, node_id, core)
        which = self._texts.drafters.index(model)
        slots = self._scenario.slots
        drafting = SimulatedDrafting(
            engine=RecallingDrafter(self._texts, which, slots=slots),
            max_batch=slots,
            costs=self._costs,
            core=core,
            strand=strand,
        )
        self._draftings.append((drafting, strand))
        self.balancer.welcome(node_id)
        self.links[node_id] = VirtualLink(
            loop=self._loop, costs=self._costs,
            target=self.target, drafter=strand, drafting=drafting, carrier=self._shared,
        )  # fmt: skip

    async def play(self, loads: Sequence[SimulatedLoad]) -> list[Outcome]:
        """Run the loads one after the other; what was learned under one stays for the next.

        Raises LabError when a load asks for longer answers than are recorded.
        """
        for load in loads:
            check_room(self._texts, load.max_tokens)
        async with asyncio.TaskGroup() as group:
            actors = [
                group.create_task(self.verifying.run(), context=self.target.context),
                *(group.create_task(d.run(), context=s.context) for d, s in self._draftings),
            ]
            outcomes = [await self._run(load) for load in loads]
            for actor in actors:
                actor.cancel()
        return outcomes

    async def _run(self, load: SimulatedLoad) -> Outcome:
        outcome = Outcome()
        self.balancer.times.clear()
        before = self._counters()
        waiting = iter(range(load.requests))
        async with asyncio.TaskGroup() as group:
            for _ in range(load.sessions):
                asking = self._ask_in_turn(load, waiting, outcome)
                group.create_task(asking, context=self.target.context)
        spent = {name: count - before[name] for name, count in self._counters().items()}
        outcome.elapsed_s, outcome.pass_s = spent["elapsed_s"], spent["pass_s"]
        outcome.loop_s, outcome.drafters_s = spent["loop_s"], spent["drafters_s"]
        outcome.num_passes = round(spent["passes"])
        outcome.num_rows = round(spent["rows"])
        outcome.num_messages = round(spent["messages"])
        outcome.decisions = {
            name: (len(times), sum(times)) for name, times in self.balancer.times.items()
        }
        return outcome

    def _counters(self) -> Mapping[str, float]:
        return {
            "elapsed_s": self._loop.time(),
            "pass_s": self.verifying.busy_s,
            "passes": self.verifying.num_passes,
            "rows": self.verifying.num_rows,
            "loop_s": self.target.busy_s,
            "drafters_s": sum(core.busy_s for core in self.cores),
            "messages": sum(link.num_messages for link in self.links.values()),
        }

    async def _ask_in_turn(
        self, load: SimulatedLoad, waiting: Iterator[int], outcome: Outcome
    ) -> None:
        for number in waiting:
            await self._askers.serve(self._costs.between_s)
            await self._ask(load, number, outcome)

    async def _ask(self, load: SimulatedLoad, number: int, outcome: Outcome) -> None:
        place = self._turns[(load.first_text + number) % len(self._turns)]
        prompt = self._texts.lists[place][:NUM_PROMPT]
        request = Request(
            client_id="lab", request_id=f"{next(self._numbers)}", kind="completion", prompt="",
            max_tokens=load.max_tokens, ignore_eos=True, policy=load.policy,
        )  # fmt: skip
        session = Session(
            request=request, prompt=prompt, model="zoo", codec=self._codec,
            verifying=self.verifying, balancer=self.balancer, drafters=lambda: self.links,
        )  # fmt: skip
        started = self._loop.time()
        async with contextlib.aclosing(session.run()) as steps:
            async for step in steps:
                if isinstance(step, Delta):
                    self._deliver()
                elif isinstance(step, Answer):
                    outcome.latencies_s.append(self._loop.time() - started)
                    outcome.answers[number] = step.tokens
                    outcome.num_tokens += step.num_tokens
                    outcome.num_rounds += step.metrics.num_rounds
                    outcome.num_accepted += step.metrics.num_accepted_tokens

    def _deliver(self) -> None:
        if self._shared is not None:
            delivery_s = self._costs.delivery_s
            self._loop.call_soon(self._askers.charge, delivery_s, context=self._askers.context)


def simulate(
    scenario: Scenario, loads: Sequence[SimulatedLoad], costs: Costs, texts: Texts
) -> list[Outcome]:
    """An outcome for each load. The same arguments give the same outcomes, but for the real
    seconds of decisions.

    Raises LabError.
    """
    loop = VirtualLoop()
    return loop.complete(VirtualCluster(loop, scenario, costs, texts).play(loads))
