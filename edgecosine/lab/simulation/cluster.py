"""One simulated cluster under load: clients in a closed loop, sessions, targets, drafters."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.engines import check_length
from edgecosine.lab.simulation.nodes import SimulatedDrafterNode, SimulatedTargetNode
from edgecosine.lab.simulation.texts import Texts
from edgecosine.lab.simulation.virtual_time import Core, Strand, VirtualLoop
from edgecosine.protocol.api.request import Request, Sampling
from edgecosine.protocol.api.result import Answer, Delta, DrafterShare


@dataclass(frozen=True, slots=True)
class Scenario:
    """The nodes of a cluster. `drafters` are recorded models, each on a node of its own."""

    drafters: tuple[str, ...] = ()
    is_core_shared: bool = False
    """Whether all drafters, the broker and the clients share one processor."""
    slots: int = 16
    """Sequence slots of a node's cache, and the largest number of sessions in a pass or step."""
    targets: int = 1
    """Number of targets, each with its own planner, its share of the requests, and links to all
    drafters."""
    host: str = ""
    """The machine of all drafters; empty: each drafter has a machine of its own."""
    has_device: bool = False
    """Whether a target's passes run beside its event loop, on an accelerator."""
    beside: tuple[str, ...] = ()
    """Recorded models of further drafters, which share the one target's accelerator and are
    reached without a network."""


@dataclass(frozen=True, slots=True)
class SimulatedLoad:
    """Clients in a closed loop: each has one running request until all requests are sent."""

    policy: str
    sessions: int
    requests: int
    """Total number of requests."""
    max_tokens: int = 128
    """Length of each answer; recorded answers that end earlier are shorter."""
    first_text: int = 0
    """Number of the first prompt; the domains take turns."""
    window: tuple[int, int] | None = None
    """Numbers of committed tokens at which counting starts and at which the load ends; None: all
    are counted. With a window the first requests have different lengths, as if they had begun at
    different times."""


@dataclass(slots=True)
class Outcome:
    """The result of a load. Times are virtual seconds, except those of `decisions`."""

    elapsed_s: float
    num_tokens: int
    num_rounds: int
    """Rounds, including prefills."""
    num_passes: int
    num_rows: int
    num_messages: int
    num_compared: int
    """Number of comparisons: for each plan, the drafters that it compared."""
    pass_s: float
    """Duration of the forward passes of all targets together."""
    loop_s: float
    """Seconds in which the targets' event loops were busy."""
    latencies_s: list[float] = field(default_factory=list)
    answers: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Tokens of each answer, by request."""
    num_accepted: int = 0
    """Accepted draft tokens of complete answers, whose `num_answer_rounds` exclude prefills."""
    num_answer_rounds: int = 0
    drafters: dict[int, Mapping[str, DrafterShare]] = field(default_factory=dict)
    """The contribution of each drafter to a request, by request."""
    decisions: dict[str, tuple[int, float]] = field(default_factory=dict)
    """For each method of the planner, its calls and the real seconds that they took on this
    machine."""

    @property
    def tokens_per_s(self) -> float:
        """Throughput of the load."""
        return self.num_tokens / self.elapsed_s

    @property
    def tokens_per_round(self) -> float:
        """Mean committed tokens of a round, including the bonus token."""
        return self.num_tokens / self.num_rounds

    @property
    def acceptance_length(self) -> float:
        """Mean accepted draft tokens per round of complete answers."""
        return self.num_accepted / max(1, self.num_answer_rounds)

    @property
    def decision_s(self) -> float:
        """Real seconds of all decisions."""
        return sum(seconds for _, seconds in self.decisions.values())


@dataclass(slots=True)
class _Answers:
    """The complete answers of a load."""

    latencies_s: list[float] = field(default_factory=list)
    tokens: dict[int, tuple[int, ...]] = field(default_factory=dict)
    drafters: dict[int, Mapping[str, DrafterShare]] = field(default_factory=dict)
    num_accepted: int = 0
    num_rounds: int = 0

    def add(self, number: int, answer: Answer, latency_s: float) -> None:
        self.latencies_s.append(latency_s)
        self.tokens[number] = answer.tokens
        self.drafters[number] = answer.metrics.drafters
        self.num_accepted += answer.metrics.num_accepted_tokens
        self.num_rounds += answer.metrics.num_rounds


class VirtualCluster:
    """The nodes of one run, and their clients."""

    def __init__(self, loop: VirtualLoop, scenario: Scenario, costs: Costs, texts: Texts) -> None:
        self._loop, self._costs, self._texts = loop, costs, texts
        self._turns, self._numbers = texts.turns(), itertools.count()
        shared = Core(loop) if scenario.is_core_shared else None
        devices = [Core(loop) if scenario.has_device else None for _ in range(scenario.targets)]
        self._is_core_shared = scenario.is_core_shared
        self._clients = Strand(loop, "askers", shared)
        """Broker and clients, as one sequential event loop."""
        places: list[tuple[str, Core | None, Costs]] = [
            *((model, None, costs) for model in scenario.drafters),
            *((model, devices[0], costs.with_rtt(0.0)) for model in scenario.beside),
        ]
        self.drafters = [
            SimulatedDrafterNode(
                loop, f"{model}-{number}", model,
                core=beside or shared or Core(loop), slots=scenario.slots,
                costs=own_costs, texts=texts, is_beside=beside is not None,
            )
            for number, (model, beside, own_costs) in enumerate(places)
        ]  # fmt: skip
        self.targets = [
            SimulatedTargetNode(
                loop, f"target-{number}", self.drafters,
                slots=scenario.slots, costs=costs, texts=texts, traffic_core=shared,
                device=device, host=scenario.host,
            )
            for number, device in enumerate(devices)
        ]  # fmt: skip

    async def play(self, loads: Sequence[SimulatedLoad]) -> list[Outcome]:
        """Run the loads one after the other; the planner's statistics persist between them.

        Raises LabError when a load needs longer answers than are recorded.
        """
        for load in loads:
            check_length(self._texts, load.max_tokens)
        async with asyncio.TaskGroup() as group:
            actors = [target.start(group) for target in self.targets]
            actors += [drafter.start(group) for drafter in self.drafters]
            outcomes = [await self._run(load) for load in loads]
            for actor in actors:
                actor.cancel()
        return outcomes

    async def _run(self, load: SimulatedLoad) -> Outcome:
        answers, waiting = _Answers(), iter(range(load.requests))
        self._start_counting()
        async with asyncio.TaskGroup() as group:
            asking = [
                group.create_task(
                    self._ask_in_turn(load, place, waiting, answers),
                    context=self.targets[place % len(self.targets)].strand.context,
                )
                for place in range(load.sessions)
            ]
            if load.window is not None:
                start, stop = load.window
                await self._reach(start)
                answers = _Answers()
                self._start_counting()
                await self._reach(stop - start)
                outcome = self._outcome(answers)
                for task in asking:
                    task.cancel()
        return self._outcome(answers) if load.window is None else outcome

    async def _reach(self, num_tokens: int) -> None:
        """Wait until `num_tokens` tokens were committed since counting started."""
        while self._spent()["num_tokens"] < num_tokens:
            passed = asyncio.Event()
            for target in self.targets:
                target.verifier.on_pass = passed.set
            await passed.wait()

    def _start_counting(self) -> None:
        self._former = self._counters()
        for target in self.targets:
            target.planner.times.clear()

    def _counters(self) -> dict[str, float]:
        each = [target.counters() for target in self.targets]
        counters = {name: sum(counted[name] for counted in each) for name in each[0]}
        return {**counters, "elapsed_s": self._loop.time()}

    def _spent(self) -> dict[str, float]:
        return {name: now - self._former[name] for name, now in self._counters().items()}

    def _outcome(self, answers: _Answers) -> Outcome:
        spent = self._spent()
        return Outcome(
            elapsed_s=spent["elapsed_s"],
            num_tokens=round(spent["num_tokens"]),
            num_rounds=round(spent["num_rounds"]),
            num_passes=round(spent["num_passes"]),
            num_rows=round(spent["num_rows"]),
            num_messages=round(spent["num_messages"]),
            num_compared=round(spent["num_compared"]),
            pass_s=spent["pass_s"],
            loop_s=spent["loop_s"],
            latencies_s=answers.latencies_s,
            answers=answers.tokens,
            drafters=answers.drafters,
            num_accepted=answers.num_accepted,
            num_answer_rounds=answers.num_rounds,
            decisions=_summed(target.planner.times for target in self.targets),
        )

    async def _ask_in_turn(
        self, load: SimulatedLoad, place: int, waiting: Iterator[int], answers: _Answers
    ) -> None:
        """One client, which always uses the same target."""
        target, is_first = self.targets[place % len(self.targets)], load.window is not None
        for number in waiting:
            await self._clients.serve(self._costs.between_s)
            share = (place + 1) / load.sessions if is_first else 1.0
            is_first = False
            text = self._turns[(load.first_text + number) % len(self._turns)]
            longest = min(load.max_tokens, self._texts.ends[text])
            max_tokens = max(1, round(share * longest))
            request = Request(
                client_id="lab", request_id=f"{next(self._numbers)}", kind="completion",
                prompt="", max_tokens=max_tokens, ignore_eos=True, policy=load.policy,
                sampling=Sampling(temperature=self._texts.temperature),
            )  # fmt: skip
            started = self._loop.time()
            answer = await self._ask(target, request, list(self._texts.prompts[text]))
            answers.add(number, answer, self._loop.time() - started)

    async def _ask(
        self, target: SimulatedTargetNode, request: Request, prompt: list[int]
    ) -> Answer:
        answer: Answer | None = None
        async with contextlib.aclosing(target.session(request, prompt).run()) as steps:
            async for step in steps:
                if isinstance(step, Delta):
                    self._deliver()
                elif isinstance(step, Answer):
                    answer = step
        assert answer is not None, "a session yields its answer last"
        return answer

    def _deliver(self) -> None:
        """Charge broker and clients for carrying text, if they share a core with the drafters."""
        if self._is_core_shared:
            delivery_s = self._costs.delivery_s
            self._loop.call_soon(self._clients.charge, delivery_s, context=self._clients.context)


def _summed(times: Iterable[dict[str, list[float]]]) -> dict[str, tuple[int, float]]:
    found: dict[str, tuple[int, float]] = {}
    for name, seconds in itertools.chain.from_iterable(each.items() for each in times):
        count, total_s = found.get(name, (0, 0.0))
        found[name] = count + len(seconds), total_s + sum(seconds)
    return found


def simulate(
    scenario: Scenario, loads: Sequence[SimulatedLoad], costs: Costs, texts: Texts
) -> list[Outcome]:
    """An outcome for each load; all but the real seconds of decisions are deterministic.

    Raises LabError when a load needs longer answers than are recorded.
    """
    loop = VirtualLoop()
    return loop.complete(VirtualCluster(loop, scenario, costs, texts).play(loads))
