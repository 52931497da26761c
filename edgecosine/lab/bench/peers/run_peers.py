"""Runs the comparison with peers: all servers are loaded once, then alternate prompt by prompt.

Eight requests at a time use prompts that the target writes, which no earlier turn used. The target
alone has its own cluster, so that no cache of prompts serves two policies. Peers use all cores; in
EdgeCoSine the target uses the first core and the drafters the others.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from edgecosine.errors import LabError
from edgecosine.lab.adversarial_drafter import write_adversarial_drafter
from edgecosine.lab.bench.cells import ALONE, OURS
from edgecosine.lab.bench.peers import figures as names
from edgecosine.lab.bench.peers.inputs import (
    CONTEXT,
    EIGHT,
    PeerSettings,
    PeersRecord,
    digest,
    held_out,
    in_template,
    plain_generalist,
    target_file,
)
from edgecosine.lab.bench.peers.messages import Setup
from edgecosine.lab.bench.peers.plain_checkpoint import PlainCheckpoint
from edgecosine.lab.bench.peers.server import (
    CoreLayout,
    Ours,
    PeerPrompt,
    Server,
    our_cluster,
    record,
)
from edgecosine.lab.bench.peers.start import StartedPeers, idle_shares
from edgecosine.lab.distill.fresh_prompts import write_prompts
from edgecosine.lab.engine_calls import quiet_transformers
from edgecosine.lab.figures import Keep, Notify
from edgecosine.lab.paired_runs import balanced_order

_AT_EIGHT: Final = (ALONE, OURS, names.LLAMACPP)
_PER_TURN: Final = 4 * EIGHT
"""Prompts of a turn with eight requests at a time."""
_SLOW: Final = names.TRANSFORMERS
"""A server that answers only in half of the turns, those numbered 0 and 3 of each four: one of its
answers takes as long as all others together, and no bar depends on it."""
_ONE_BY_ONE: Final = 4
"""Number of trial prompts that a peer answers one at a time, as in `llamacpp_worker.py`."""


async def run_peers_bench(
    settings: PeerSettings, found: PeersRecord, notify: Notify, keep: Keep
) -> None:
    """Load the servers, find their settings, warm up and measure.

    Results are added to `found` and saved after each turn. A peer that fails is left out.

    Raises the EdgecosineErrors of EdgeCoSine's own clusters.
    """
    quiet_transformers()
    gguf = target_file(settings)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    measured, trials = held_out(tokenizer, settings.prompts_per_domain)
    written = await write_prompts(settings.target, _PER_TURN * settings.eight_turns, notify)
    eights = [in_template(tokenizer, domain, text) for domain, text in written]
    found.notes["target_file"] = {"name": gguf.name, "sha256": digest(gguf)}
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgecosine-")))
        plain = await asyncio.to_thread(plain_generalist, settings, gguf, directory)
        setup = Setup(
            target=str(gguf), drafter=None, end_tokens=(tokenizer.eos_token_id,),
            trial_prompts=tuple(prompt.tokens for prompt in trials),
            trial_tokens=settings.trial_tokens,
            threads=len(os.sched_getaffinity(0)), context=CONTEXT, at_once=EIGHT,
        )  # fmt: skip
        peers = StartedPeers(stack, setup, plain, tokenizer.decode, found, notify)
        servers = await peers.llamacpp() | await peers.transformers()
        servers |= await _our_servers(settings, plain, directory, stack, found, notify)
        notify("warming up")
        for name, server in servers.items():
            if isinstance(server, Ours):
                await server.answer(trials, 1, settings.trial_tokens)
                if name in _AT_EIGHT:
                    await server.answer(trials, EIGHT, settings.trial_tokens)
        found.notes["idle_cpu_share"] = await idle_shares(peers.pids)
        if names.LLAMACPP in servers:
            await _repeat_trial(
                servers[names.LLAMACPP], trials, settings.trial_tokens, found, notify
            )
        await _measure(settings, servers, measured, eights, found, notify, keep)


async def _measure(
    settings: PeerSettings, servers: dict[str, Server], measured: Sequence[PeerPrompt],
    eights: Sequence[PeerPrompt], found: PeersRecord, notify: Notify, keep: Keep,
) -> None:  # fmt: skip
    starts = range(0, len(eights), _PER_TURN)
    turns_of_eight = [list(eights[start : start + _PER_TURN]) for start in starts]
    cells: tuple[tuple[str, int, list[list[PeerPrompt]], tuple[str, ...]], ...] = (
        (names.SINGLE, 1, [[prompt] for prompt in measured], tuple(servers)),
        (names.EIGHT, EIGHT, turns_of_eight, tuple(name for name in servers if name in _AT_EIGHT)),
    )
    complete = {cell: f"0 of {len(turns)}" for cell, _, turns, _ in cells}
    for cell, at_once, turns, chosen in cells:
        for turn, prompts in enumerate(turns):
            found.notes["complete_turns"] = {**complete, cell: f"{turn} of {len(turns)}"}
            for name in balanced_order(chosen, turn):
                if name in found.refused or (name == _SLOW and turn % 4 in (1, 2)):
                    continue
                try:
                    load = await servers[name].answer(prompts, at_once, settings.max_tokens)
                except LabError as error:
                    found.refuse(name, str(error), notify)
                    continue
                found.runs.append(record(name, cell, turn, load))
                notify(f"{cell} [{turn + 1}/{len(turns)}] {name}: {load.tokens_per_s:.1f} tokens/s")
            complete[cell] = f"{turn + 1} of {len(turns)}"
            found.notes["complete_turns"] = complete
            found.write(keep)


async def _our_servers(
    settings: PeerSettings, plain: PlainCheckpoint | None, directory: Path, stack: AsyncExitStack,
    found: PeersRecord, notify: Notify,
) -> dict[str, Server]:  # fmt: skip
    layout = CoreLayout(
        settings.target, settings.target_cores, settings.drafter_cores, settings.dtype
    )  # fmt: skip
    servers: dict[str, Server] = {}
    for policy, drafters in ((ALONE, ()), (OURS, settings.drafters)):
        client = await stack.enter_async_context(our_cluster(layout, drafters, notify))
        servers[policy] = Ours(client, policy)
    if plain is None:
        for name in (names.HOSTILE, names.HOSTILE_ALONE):
            found.refuse(name, "there is no model to make adversarial", notify)
        return servers
    adversary = await asyncio.to_thread(write_adversarial_drafter, directory, plain.directory)
    client = await stack.enter_async_context(our_cluster(layout, (str(adversary),), notify))
    return servers | {names.HOSTILE: Ours(client, OURS), names.HOSTILE_ALONE: Ours(client, ALONE)}


async def _repeat_trial(
    llamacpp: Server,
    trials: Sequence[PeerPrompt],
    max_tokens: int,
    found: PeersRecord,
    notify: Notify,
) -> None:
    """Record the time of llama.cpp's trial with all servers loaded, the better of two runs.

    The difference from its first trial is the cost of idle clusters.
    """
    try:
        loads = [await llamacpp.answer(trials[:_ONE_BY_ONE], 1, max_tokens) for _ in range(2)]
    except LabError as error:
        found.refuse(names.LLAMACPP, str(error), notify)
        return
    elapsed_s = min(load.elapsed_s for load in loads)
    found.notes["llamacpp_trial_beside_all_others_s"] = round(elapsed_s, 4)
