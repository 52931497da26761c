"""What stands at a broker's address that does not answer as it should: TLS, or plain MQTT?"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final

from edgecosine.mqtt.broker_address import BrokerAddress

_PATIENCE_S: Final = 1.0
_HELLO: Final = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"
"""CONNECT of MQTT 3.1.1, from nobody in particular."""
_ANSWERS: Final = b"\x20"


async def other_way(address: BrokerAddress) -> str:
    """What to try instead, where somebody is there who speaks the other way; else nothing."""
    answers = _answers_plainly if address.is_encrypted else _answers_encrypted
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            if await answers(address):
                if address.is_encrypted:
                    return "it speaks plain text there: mqtt:// instead of mqtts://?"
                return "it speaks TLS there: mqtts:// instead of mqtt://?"
    return ""


async def _answers_plainly(address: BrokerAddress) -> bool:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(_HELLO)
        return await reader.read(1) == _ANSWERS
    finally:
        writer.close()


async def _answers_encrypted(address: BrokerAddress) -> bool:
    anybody = ssl.create_default_context()
    # Nothing is said to whoever answers.
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection(address.host, address.port, ssl=anybody)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    writer.close()
    return True
