"""A node of links alone, as a process: `python -m tests.node.links.peer_process ROLE NAME`.

Prints one JSON object a line: what happens to its links. A target asks each drafter that joins.
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop

from edgecosine.discovery.mdns import Mdns
from edgecosine.discovery.peer import Address
from edgecosine.node.links.link import Link
from edgecosine.node.links.link_policy import LinkPolicy
from edgecosine.node.links.peers import Peers
from tests.node.links.wire_fixtures import draft_for, drafter_settings, request, target_settings


def report(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def main(role: str, name: str) -> None:
    """Live until killed."""
    joined: asyncio.Queue[Link] = asyncio.Queue()
    make = target_settings if role == "target" else drafter_settings
    peers = Peers(
        settings=make(node_id=name, guard=LinkPolicy(is_insecure=True)),
        listen=[Address("", 0)],
        discover=Mdns(look_s=0.2).run,
        on_joined=joined.put_nowait,
        on_lost=lambda link: report(lost=link.peer.node_id, reason=str(link.closed.result())),
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(peers.run(), name=f"{name}.peers")
        report(listening=[str(address) for address in await peers.listening()])
        while True:
            link = await joined.get()
            answer = None
            if role == "target":
                answer = await link.ask(request(1)) == draft_for(request(1))
            report(joined=link.peer.node_id, answered=answer)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2]))
