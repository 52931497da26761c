"""Finds out whether a broker that does not answer speaks TLS where plain MQTT was tried, or the
reverse."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final

from edgecosine.mqtt.broker_address import BrokerAddress

_TIMEOUT_S: Final = 1.0
_CONNECT: Final = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"
"""CONNECT of MQTT 3.1.1, with an empty client id."""
_CONNACK: Final = b"\x20"


async def other_scheme(address: BrokerAddress) -> str:
    """A hint to try the other URL scheme, where the broker answers it; else an empty string."""
    answers = _answers_plainly if address.is_encrypted else _answers_encrypted
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_TIMEOUT_S):
            if await answers(address):
                if address.is_encrypted:
                    return "it speaks plain text there: mqtt:// instead of mqtts://?"
                return "it speaks TLS there: mqtts:// instead of mqtt://?"
    return ""


async def _answers_plainly(address: BrokerAddress) -> bool:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(_CONNECT)
        return await reader.read(1) == _CONNACK
    finally:
        writer.close()


async def _answers_encrypted(address: BrokerAddress) -> bool:
    context = ssl.create_default_context()
    # The probe sends no data, so the certificate need not be verified.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    writer.close()
    return True
