"""Runs the benchmark beside peers: everything is loaded once, then all take turns prompt by prompt.

Peers have both cores; of our cluster the target has the first and the drafters the second.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from edgecosine import models, zoo
from edgecosine.engine.model_files import NGRAM, find_model
from edgecosine.errors import LabError
from edgecosine.lab.bench.cells import ALONE, ASSISTED, OURS, in_turn
from edgecosine.lab.bench.peers import figures as names
from edgecosine.lab.bench.peers.environment import llamacpp_python
from edgecosine.lab.bench.peers.orders import Kind, Ready, Setup
from edgecosine.lab.bench.peers.plain_checkpoint import (
    PlainCheckpoint,
    read_checkpoint,
    write_plain_checkpoint,
)
from edgecosine.lab.bench.peers.server import (
    Layout,
    Ours,
    Peer,
    Prompt,
    Say,
    Server,
    our_cluster,
    peer_process,
    record,
)
from edgecosine.lab.distill.prompts import HELD_OUT
from edgecosine.lab.figures import Figure
from edgecosine.lab.liar import write_liar

TARGET: Final = "smollm2-135m-instruct"
GENERALIST: Final = "smollm2-generalist"
DRAFTERS: Final = (
    GENERALIST, "smollm2-code", "smollm2-rewriting", "smollm2-facts", "smollm2-stories",
)  # fmt: skip
NUM_TRIALS: Final = 2
"""Prompts of each domain that settings are found with; they are the last ones, and not measured."""
CONTEXT: Final = 1024
EIGHT: Final = 8
ONE_BY_ONE: Final = 4
"""Trial prompts that a peer answers one by one; as in `llamacpp.py`."""
_IDLE_S: Final = 2.0
_LLAMACPP: Final = Path(__file__).with_name("llamacpp.py")
_STOCK: Final = ("env", "TQDM_DISABLE=1", sys.executable, "-m", "edgecosine.lab.bench.peers.stock")


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """What to compare, and how much to ask."""

    target: str = TARGET
    gguf: str = ""
    """The target's GGUF file for the peers, where `target` is not one."""
    drafters: tuple[str, ...] = DRAFTERS
    generalist: str = GENERALIST
    """Drafts for the peers, too, and is made hostile; empty: none does."""
    prompts_per_domain: int = 8
    eight_turns: int = 4
    """Turns of 16 prompts, eight at a time."""
    max_tokens: int = 128
    trial_tokens: int = 32
    """Of each answer to a trial prompt."""
    dtype: str = "auto"
    """Of our nodes; peers find theirs."""
    target_cores: str = ""
    drafter_cores: str = ""


@dataclass(slots=True)
class PeersRecord:
    """What was found so far."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Servers that were not measured, or not to the end, and why."""
    notes: dict[str, Any] = field(default_factory=dict)

    def figures(self) -> dict[str, Figure]:
        """What follows from the runs."""
        return names.peer_figures(self.runs, self.refused)

    def refuse(self, server: str, reason: str, say: Say) -> None:
        """Leave a server out."""
        self.refused[server] = reason
        say(f"left out: {server}: {reason}")


async def run_peers_bench(settings: PeerSettings, found: PeersRecord, say: Say) -> None:
    """Load, find settings, warm up and measure; all that is found goes into `found`.

    Raises EdgecosineError of what our own cluster cannot do. A peer that fails is left out.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    gguf = _file_of(settings)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    measured, trials = held_out(tokenizer, settings.prompts_per_domain)
    found.notes["target_file"] = {"name": gguf.name, "sha256": _digest(gguf)}
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgecosine-")))
        plain = await asyncio.to_thread(_plain_generalist, settings, gguf, directory)
        setup = Setup(
            target=str(gguf), drafter=None, end_tokens=(tokenizer.eos_token_id,),
            trial_prompts=tuple(prompt.tokens for prompt in trials),
            trial_tokens=settings.trial_tokens,
            threads=len(os.sched_getaffinity(0)), context=CONTEXT, at_once=EIGHT,
        )  # fmt: skip
        peers = _Peers(stack, setup, plain, tokenizer.decode, found, say)
        servers = await peers.llamacpp() | await peers.stock()
        servers |= await _our_servers(settings, plain, directory, stack, found, say)
        say("warming up")
        for name, server in servers.items():
            if isinstance(server, Ours):
                await server.answer(trials, 1, settings.trial_tokens)
                if name in _AT_EIGHT:
                    await server.answer(trials, EIGHT, settings.trial_tokens)
        found.notes["idle_cpu_share"] = await _idle_shares(peers.pids)
        if names.LLAMACPP in servers:
            found.notes["llamacpp_trial_beside_all_others_s"] = await _fastest_s(
                servers[names.LLAMACPP], trials, settings.trial_tokens
            )
        await _measure(settings, servers, measured, found, say)


_AT_EIGHT: Final = (ALONE, OURS, names.LLAMACPP)


async def _measure(
    settings: PeerSettings, servers: dict[str, Server], measured: Sequence[Prompt],
    found: PeersRecord, say: Say,
) -> None:  # fmt: skip
    endless = itertools.cycle(measured)
    eights = [list(itertools.islice(endless, 2 * EIGHT)) for _ in range(settings.eight_turns)]
    cells: tuple[tuple[str, int, list[list[Prompt]], tuple[str, ...]], ...] = (
        (names.SINGLE, 1, [[prompt] for prompt in measured], tuple(servers)),
        (names.EIGHT, EIGHT, eights, tuple(name for name in servers if name in _AT_EIGHT)),
    )
    for cell, at_once, turns, takers in cells:
        for turn, prompts in enumerate(turns):
            for name in in_turn(takers, turn):
                if name in found.refused:
                    continue
                try:
                    load = await servers[name].answer(prompts, at_once, settings.max_tokens)
                except LabError as error:
                    found.refuse(name, str(error), say)
                    continue
                found.runs.append(record(name, cell, turn, load))
                say(f"{cell} [{turn + 1}/{len(turns)}] {name}: {load.tokens_per_s:.1f} tokens/s")


class _Peers:
    """Starts the peers' processes; whoever does not start is left out."""

    def __init__(
        self, stack: AsyncExitStack, setup: Setup, plain: PlainCheckpoint | None,
        decode: Callable[..., str], found: PeersRecord, say: Say,
    ) -> None:  # fmt: skip
        self._stack, self._setup, self._plain = stack, setup, plain
        self._decode, self._found, self._say = decode, found, say
        self.pids: dict[str, int] = {}

    async def llamacpp(self) -> dict[str, Server]:
        """llama.cpp, plain and with the generalist, and in a batch of eight."""
        servers: dict[str, dict[int, Kind]] = {
            names.LLAMACPP: {1: "plain", EIGHT: "batched"},
            names.LLAMACPP_DRAFTED: {1: "drafted"},
        }
        try:
            python = await asyncio.to_thread(llamacpp_python, self._say)
        except LabError as error:
            for name in servers:
                self._found.refuse(name, str(error), self._say)
            return {}
        drafter = None if self._plain is None else str(self._plain.gguf)
        return await self._start("llama.cpp", (str(python), str(_LLAMACPP)), drafter, servers)

    async def stock(self) -> dict[str, Server]:
        """transformers, plain and assisted by the generalist."""
        servers: dict[str, dict[int, Kind]] = {
            names.TRANSFORMERS: {1: "plain"}, ASSISTED: {1: "drafted"},
        }  # fmt: skip
        drafter = None if self._plain is None else str(self._plain.directory)
        return await self._start("transformers", _STOCK, drafter, servers)

    async def _start(
        self, name: str, command: Sequence[str], drafter: str | None,
        servers: dict[str, dict[int, Kind]],
    ) -> dict[str, Server]:  # fmt: skip
        self._say(f"asking {name} with which settings it is quickest here")
        setup = msgspec.structs.replace(self._setup, drafter=drafter)
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        try:
            started = peer_process(name, command, setup, cores)
            process, ready = await self._stack.enter_async_context(started)
        except (LabError, OSError) as error:
            for server in servers:
                self._found.refuse(server, str(error), self._say)
            return {}
        self.pids[name] = process.pid
        self._found.notes[name] = msgspec.to_builtins(ready)
        return {
            server: Peer(process, kinds, self._text)
            for server, kinds in servers.items()
            if self._can(server, kinds, ready)
        }

    def _can(self, server: str, kinds: dict[int, Kind], ready: Ready) -> bool:
        reasons = [
            f"{kind}: {why}" for kind, why in ready.refused.items() if kind in kinds.values()
        ]
        if reasons:
            self._found.refuse(server, "; ".join(reasons), self._say)
        return not reasons

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._decode(tokens, skip_special_tokens=True))


async def _our_servers(
    settings: PeerSettings, plain: PlainCheckpoint | None, directory: Path, stack: AsyncExitStack,
    found: PeersRecord, say: Say,
) -> dict[str, Server]:  # fmt: skip
    layout = Layout(
        settings.target, settings.target_cores, settings.drafter_cores, settings.dtype
    )  # fmt: skip
    client = await stack.enter_async_context(our_cluster(layout, settings.drafters, say))
    servers: dict[str, Server] = {ALONE: Ours(client, ALONE), OURS: Ours(client, OURS)}
    if plain is None:
        for name in (names.HOSTILE, names.HOSTILE_ALONE):
            found.refuse(name, "there is no model to make hostile", say)
        return servers
    liar = await asyncio.to_thread(write_liar, directory, plain.directory)
    client = await stack.enter_async_context(our_cluster(layout, (str(liar),), say))
    return servers | {names.HOSTILE: Ours(client, OURS), names.HOSTILE_ALONE: Ours(client, ALONE)}


def held_out(tokenizer: Any, per_domain: int) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to measure with, domains in turn, and others to find settings with.

    Raises LabError when there are not so many.
    """
    texts: dict[str, list[str]] = json.loads(HELD_OUT.read_text())
    if per_domain > (most := min(map(len, texts.values())) - NUM_TRIALS):
        raise LabError(f"there are {most} prompts of each domain to measure with")

    def prompts(numbers: Sequence[int]) -> Iterator[Prompt]:
        for number, (domain, each) in itertools.product(numbers, texts.items()):
            turn = [{"role": "user", "content": each[number]}]
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            tokens = tokenizer.encode(text, add_special_tokens=False)
            yield Prompt(domain, each[number], tuple(tokens))

    return list(prompts(range(per_domain))), list(prompts(range(-NUM_TRIALS, 0)))


def _file_of(settings: PeerSettings) -> Path:
    found = Path(settings.gguf) if settings.gguf else _model(settings.target)
    if found is None or not found.is_file():
        raise LabError(
            f"{settings.gguf or settings.target} is no GGUF file, which llama.cpp needs: name one"
        )
    return found.resolve()


def _model(name: str) -> Path | None:
    """A directory or GGUF file; one of the catalogue is fetched.

    Raises ModelUnavailable.
    """
    return models.obtain(name) or find_model(name, zoo.DIRECTORY)


def _plain_generalist(
    settings: PeerSettings, target: Path, directory: Path
) -> PlainCheckpoint | None:
    if settings.generalist in ("", NGRAM):
        return None
    path = _model(settings.generalist)
    if path is None:
        raise LabError(f"there is no model {settings.generalist}; --generalist '' does without")
    return write_plain_checkpoint(read_checkpoint(path), target, directory)


async def _fastest_s(server: Server, trials: Sequence[Prompt], tokens: int) -> float:
    """Seconds for llama.cpp's trial now that everything else is loaded, the better of two turns; it
    made its own before. The difference is what idle clusters cost it."""
    loads = [await server.answer(trials[:ONE_BY_ONE], 1, tokens) for _ in range(2)]
    return round(min(load.elapsed_s for load in loads), 4)


async def _idle_shares(pids: dict[str, int]) -> dict[str, float]:
    """Share of a core that each peer takes while nobody asks it: threads that spin show here."""
    before = {name: _cpu_s(pid) for name, pid in pids.items()}
    await asyncio.sleep(_IDLE_S)
    return {
        name: round((_cpu_s(pid) - before[name]) / _IDLE_S, 4) for name, pid in pids.items()
    }  # fmt: skip


def _cpu_s(pid: int) -> float:
    """Processor seconds of a process so far; 0 where /proc does not tell, or it has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
