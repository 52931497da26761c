"""A process that subscribes to a cluster and then stops reading.

`python -m edgecosine.lab.soak.stalled_subscriber BROKER FILTER`; after SIGCONT it reads for one
second and stops again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import NoReturn

from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.mqtt.reconnecting_client import ReconnectingClient

_AWAKE_S = 1.0
_LONGEST_KEEPALIVE_S = 65535


async def subscribe_and_stall(url: str, topic_filter: str) -> NoReturn:
    """Subscribe, then stop this process a second later, and again after each SIGCONT."""
    client = ReconnectingClient(
        BrokerAddress.parse(url, keepalive_s=_LONGEST_KEEPALIVE_S),
        name=f"stalled-{os.getpid()}",
        receive=lambda message: message.acknowledge(),
        filters=(topic_filter,),
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(client.run(), name="stalled.client")
        while True:
            await client.connected()
            await asyncio.sleep(_AWAKE_S)
            os.kill(os.getpid(), signal.SIGSTOP)
    raise AssertionError("the loop has no end")


if __name__ == "__main__":
    asyncio.run(subscribe_and_stall(*sys.argv[1:3]))
