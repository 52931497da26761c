"""A subscriber that stops reading: a process that wants everything of a cluster and then stops.

`python -m edgecosine.lab.soak.stalled_subscriber BROKER FILTER`; SIGCONT wakes it: it reads what
waits for it for a second and stops again.
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


async def sleep(url: str, topic_filter: str) -> NoReturn:
    """Subscribe, and stop this process again and again."""
    courier = ReconnectingClient(
        BrokerAddress.parse(url, keepalive_s=_LONGEST_KEEPALIVE_S),
        name=f"sleeper-{os.getpid()}",
        receive=lambda message: message.acknowledge(),
        filters=(topic_filter,),
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(courier.run(), name="sleeper.courier")
        while True:
            await courier.connected()
            await asyncio.sleep(_AWAKE_S)
            os.kill(os.getpid(), signal.SIGSTOP)
    raise AssertionError("the loop has no end")


if __name__ == "__main__":
    asyncio.run(sleep(*sys.argv[1:3]))
