"""The nodes of a simulated cluster: targets and drafters, with the actors of real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from edgecosine.engine.tokenizer import TextCodec
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.decisions import TimedPlanner
from edgecosine.lab.simulation.embeddings import similarity_of
from edgecosine.lab.simulation.engines import (
    RecordedDrafter,
    RecordedTarget,
    SimulatedDraftWorker,
    SimulatedVerifier,
)
from edgecosine.lab.simulation.texts import Texts
from edgecosine.lab.simulation.virtual_time import Core, Strand, VirtualLoop
from edgecosine.lab.simulation.wire import VirtualLink
from edgecosine.metrics.measurements import Measurements
from edgecosine.node.target.session import Session
from edgecosine.protocol.api.request import Request


class SimulatedDrafterNode:
    """A drafter: its event loop, and its engine on a processor that may be shared."""

    def __init__(
        self,
        loop: VirtualLoop,
        node_id: str,
        model: str,
        *,
        core: Core,
        slots: int,
        costs: Costs,
        texts: Texts,
        is_beside: bool = False,
    ) -> None:
        """`is_beside`: on the target's machine."""
        self.node_id, self.costs, self.is_beside = node_id, costs, is_beside
        self.strand = Strand(loop, node_id, core)
        self.worker = SimulatedDraftWorker(
            engine=RecordedDrafter(texts, texts.drafters.index(model), slots=slots),
            max_batch=slots,
            costs=costs,
            core=core,
            strand=self.strand,
        )

    def start(self, group: asyncio.TaskGroup) -> asyncio.Task[None]:
        """Start the draft worker; returns its task."""
        return group.create_task(self.worker.run(), context=self.strand.context)


class SimulatedTargetNode:
    """A target: its event loop, its engine on the same processor or on a device of its own, its
    planner and its links."""

    def __init__(
        self,
        loop: VirtualLoop,
        name: str,
        drafters: Sequence[SimulatedDrafterNode],
        *,
        slots: int,
        costs: Costs,
        texts: Texts,
        traffic_core: Core | None,
        device: Core | None,
        host: str = "",
    ) -> None:
        core = Core(loop)
        self.strand = Strand(loop, name, core)
        self.planner = TimedPlanner(
            similarity_of(texts.name),
            lambda drafters: self.strand.charge(costs.comparison(drafters)),
        )
        self.verifier = SimulatedVerifier(
            engine=RecordedTarget(texts),
            statistics=self.planner.statistics,
            max_batch=slots,
            costs=costs,
            core=device or core,
            strand=self.strand,
            drafters_core=traffic_core,
        )
        self._model = texts.name
        self._codec = TextCodec(_Letters(texts.num_vocabulary), ())
        self._links: dict[str, VirtualLink] = {}
        for drafter in drafters:
            self.planner.statistics.add_link(drafter.node_id, host, is_beside=drafter.is_beside)
            self._links[drafter.node_id] = VirtualLink(
                loop=loop, costs=drafter.costs, target=self.strand, drafter=drafter.strand,
                worker=drafter.worker, traffic_core=traffic_core,
            )  # fmt: skip

    def start(self, group: asyncio.TaskGroup) -> asyncio.Task[None]:
        """Start the verifier; returns its task."""
        return group.create_task(self.verifier.run(), context=self.strand.context)

    def session(self, request: Request, prompt: list[int]) -> Session:
        """A session for a request; it must run on this node's strand."""
        return Session(
            request=request, prompt=prompt, model=self._model, codec=self._codec,
            verifier=self.verifier, planner=self.planner, drafters=lambda: self._links,
            measurements=Measurements(),
        )  # fmt: skip

    def counters(self) -> Mapping[str, float]:
        """All counts so far by name; times are in virtual seconds."""
        return {
            "pass_s": self.verifier.busy_s,
            "num_passes": self.verifier.num_passes,
            "num_rows": self.verifier.num_rows,
            "num_rounds": self.verifier.num_rounds,
            "num_tokens": self.verifier.num_tokens,
            "num_drafted": self.verifier.num_nodes,
            "num_compared": self.planner.num_compared,
            "loop_s": self.strand.busy_s,
            "num_messages": sum(link.num_messages for link in self._links.values()),
        }


class _Letters:
    """A tokenizer whose tokens are letters, since text is not simulated."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def encode(self, text: str, **_: object) -> list[int]:
        return [ord(letter) - _FIRST_LETTER for letter in text]

    def decode(self, tokens: Sequence[int], **_: object) -> str:
        return "".join(chr(_FIRST_LETTER + token) for token in tokens)


_FIRST_LETTER = 0x10000
"""The first code point after the surrogates."""
