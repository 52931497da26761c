"""The compared servers: a peer's process, or a policy on an EdgeCoSine cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from edgecosine.client.client import Client
from edgecosine.errors import LabError
from edgecosine.lab.bench.peers.messages import Kind, PeerOrder, PeerReady, Reply, Setup
from edgecosine.lab.figures import Notify
from edgecosine.lab.harness import fresh_plan, running_cluster
from edgecosine.lab.line_process import LineProcess, line_process
from edgecosine.lab.load_generator import closed_loop
from edgecosine.lab.measured_requests import Load, LoadRequest, MeasuredAnswer
from edgecosine.local.cluster_plan import LocalNode
from edgecosine.protocol.api.request import Sampling


@dataclass(frozen=True, slots=True)
class PeerPrompt:
    """A user's turn: its text, and its tokens in the model's chat template."""

    domain: str
    text: str
    tokens: tuple[int, ...]


class Server(Protocol):
    """Answers prompts greedily."""

    async def answer(self, prompts: Sequence[PeerPrompt], at_once: int, max_tokens: int) -> Load:
        """Returns all answers, in the order of the prompts.

        Raises LabError when the server fails.
        """


class Ours:
    """A policy on an EdgeCoSine cluster; this process is its MQTT client."""

    def __init__(self, client: Client, policy: str) -> None:
        self._client, self._policy = client, policy

    async def answer(self, prompts: Sequence[PeerPrompt], at_once: int, max_tokens: int) -> Load:
        """See `Server`."""
        jobs = [
            LoadRequest(p.domain, p.text, self._policy, Sampling(), max_tokens, is_chat=True)
            for p in prompts
        ]
        load = await closed_loop(self._client, jobs, at_once)
        if load.refused:
            raise LabError(f"the cluster refused a request: {load.refused[0]}")
        return load


class PeerServer:
    """Some kinds of answers of a peer's process, which measures times itself."""

    def __init__(
        self, process: LineProcess, kinds: Mapping[int, Kind],
        decode: Callable[[Sequence[int]], str],
    ) -> None:  # fmt: skip
        """`kinds` are the kinds of answers by the number of concurrent prompts."""
        self._process, self._kinds, self._decode = process, kinds, decode

    async def answer(self, prompts: Sequence[PeerPrompt], at_once: int, max_tokens: int) -> Load:
        """See `Server`."""
        kind = self._kinds[at_once]
        order = PeerOrder(kind, tuple(prompt.tokens for prompt in prompts), max_tokens)
        reply = await self._process.ask(order, Reply)
        if reply.error or len(reply.answers) != len(prompts):
            raise LabError(f"{self._process.name}: {reply.error or 'answers are missing'}")
        measured = [
            MeasuredAnswer(
                prompt.domain, self._process.name, self._decode(answer.tokens),
                num_tokens=len(answer.tokens), elapsed_s=answer.elapsed_s,
                first_text_s=answer.first_token_s, prefill_s=answer.first_token_s,
            )
            for prompt, answer in zip(prompts, reply.answers, strict=True)
        ]  # fmt: skip
        return Load(tuple(measured), (), reply.elapsed_s)


@asynccontextmanager
async def peer_process(
    name: str, command: Sequence[str], setup: Setup, cores: str
) -> AsyncIterator[tuple[LineProcess, PeerReady]]:
    """Start a peer's process; entered when it has chosen its settings. It ends with the block.

    Raises LabError when it does not start.
    """
    async with line_process(name, command, cores) as process:
        yield process, await process.ask(setup, PeerReady)


@dataclass(frozen=True, slots=True)
class CoreLayout:
    """Target and cores of EdgeCoSine's clusters; core lists have the form of `edgecosine node
    --cores`."""

    target: str
    target_cores: str
    drafter_cores: str
    dtype: str = "auto"


@asynccontextmanager
async def our_cluster(
    layout: CoreLayout, drafters: Sequence[str], notify: Notify
) -> AsyncIterator[Client]:
    """A cluster on this machine with these drafters; yields a client.

    Raises EngineError when a node does not start.
    """
    plan = fresh_plan(
        "peers", layout.target, drafters, target_cores=layout.target_cores,
        drafter_cores=layout.drafter_cores,
    )  # fmt: skip
    plan = replace(
        plan,
        target=_with(plan.target, layout),
        drafters=tuple(_with(d, layout) for d in plan.drafters),
    )
    async with running_cluster(plan, notify) as cluster:
        yield cluster.client


def _with(member: LocalNode, layout: CoreLayout) -> LocalNode:
    return replace(member, options=(*member.options, "--dtype", layout.dtype))


def record(server: str, cell: str, turn: int, load: Load) -> dict[str, Any]:
    """A run as JSON values; rates in tokens per second."""
    gaps_s = [a.inter_token_s for a in load.answers if a.inter_token_s]
    return {
        "server": server,
        "cell": cell,
        "turn": turn,
        "domains": [measured.domain for measured in load.answers],
        "num_tokens": load.num_tokens,
        "elapsed_s": load.elapsed_s,
        "tokens_per_s": load.tokens_per_s,
        "decode_tokens_per_s": len(gaps_s) / sum(gaps_s) if gaps_s else None,
        "first_text_s": [measured.first_text_s for measured in load.answers],
        "acceptance_length": load.acceptance_length,
        "texts": [measured.text for measured in load.answers],
    }
