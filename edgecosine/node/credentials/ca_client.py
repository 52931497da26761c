"""Client of the cluster's authority (CA): join, renew a certificate, watch the trust list.

To join, a first, unverified connection fetches the authority's certificate, which must have the
fingerprint in the token. The secret is sent over a second connection, which is verified with that
certificate.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgecosine.discovery.static import parse_address
from edgecosine.errors import EnrolmentError, EnrolmentRefused
from edgecosine.node.credentials.ca_server import WATCH_S
from edgecosine.node.links.link_policy import explain
from edgecosine.security.certificates import ENROLMENT_NAME
from edgecosine.security.credentials import Credentials, Enrolling
from edgecosine.security.enrolment import (
    MAX_ANSWER_BYTES,
    Certificate,
    Denial,
    EnrolmentAnswer,
    EnrolmentRequest,
    Introduce,
    Join,
    Renew,
    TrustList,
    WatchTrust,
    read_answer,
    write_line,
)
from edgecosine.security.join_token import JoinToken
from edgecosine.security.trust import enrolment_context, pick_authority, unverified_context

_PATIENCE_S: Final = 10.0
_ANSWER_S: Final = 20.0


async def join(
    token: JoinToken, node_id: str, directory: Path, addresses: Sequence[str]
) -> Credentials:
    """Get a certificate for a new key; returns the credentials, stored in `directory`.

    Raises EnrolmentRefused when the authority refuses, EnrolmentError when it cannot be reached or
    is not the token's.
    """
    authority = await _find_authority(token, addresses)
    enrolling = Enrolling()
    context = enrolment_context(authority)
    request = Join(token.secret, node_id, enrolling.request)
    answer = await _ask_any(addresses, request, context, ENROLMENT_NAME)
    if not isinstance(answer, Certificate):
        raise EnrolmentError("the authority did not reply with a certificate")
    return await asyncio.to_thread(enrolling.store, directory, answer, addresses)


async def renew(credentials: Credentials) -> Credentials:
    """Credentials with a new key and certificate for the same node.

    Raises EnrolmentError.
    """
    enrolling = Enrolling()
    context = enrolment_context(credentials.authorities_pem, credentials.node_file)
    answer = await _ask_any(
        credentials.endpoints, Renew(enrolling.request), context, ENROLMENT_NAME
    )
    if not isinstance(answer, Certificate):
        raise EnrolmentError("the authority did not reply with a certificate")
    return credentials.renewed(enrolling, answer)


async def watch(credentials: Credentials) -> TrustList:
    """The trust list, returned when it differs from the known one or after `WATCH_S`.

    Raises EnrolmentError.
    """
    context = enrolment_context(credentials.authorities_pem, credentials.node_file)
    request = WatchTrust(credentials.revision)
    answer = await _ask_any(
        credentials.endpoints, request, context, ENROLMENT_NAME, WATCH_S + _ANSWER_S
    )
    if not isinstance(answer, TrustList):
        raise EnrolmentError("the authority did not reply with a trust list")
    return answer


async def _find_authority(token: JoinToken, addresses: Sequence[str]) -> str:
    """The certificate with the token's fingerprint, as PEM."""
    answer = await _ask_any(addresses, Introduce(), unverified_context(), None)
    if not isinstance(answer, TrustList):
        raise EnrolmentError("the authority did not reply with its certificate")
    return pick_authority(answer.authorities, token.fingerprint)


async def _ask_any(
    addresses: Sequence[str],
    request: EnrolmentRequest,
    context: ssl.SSLContext,
    server_name: str | None,
    answer_s: float = _ANSWER_S,
) -> EnrolmentAnswer:
    """The reply from the first address that gives one."""
    failures = []
    for address in addresses:
        try:
            return await _ask(address, request, context, server_name, answer_s)
        except EnrolmentRefused:
            raise
        except EnrolmentError as error:
            failures.append(f"{address}: {error}")
    raise EnrolmentError(
        f"no answer from the cluster's authority ({'; '.join(failures) or 'no address is known'}); "
        "it runs while `edgecosine node` or `edgecosine cluster serve` runs on its machine"
    )


async def _ask(
    address: str,
    request: EnrolmentRequest,
    context: ssl.SSLContext,
    server_name: str | None,
    answer_s: float,
) -> EnrolmentAnswer:
    host, port = parse_address(address, key="ca_address")
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=context, server_hostname=server_name or "", limit=MAX_ANSWER_BYTES
            )
    except ssl.SSLError as error:
        raise EnrolmentError(explain(error)) from error
    except OSError as error:
        raise EnrolmentError(str(error) or "no answer") from error
    try:
        async with asyncio.timeout(answer_s):
            writer.write(write_line(request))
            line = await reader.readline()
    except (OSError, ValueError) as error:
        raise EnrolmentError(str(error) or "no answer") from error
    finally:
        writer.close()
    if not line:
        raise EnrolmentError("it closed the connection without a reply; its log has the reason")
    answer = read_answer(line)
    if isinstance(answer, Denial):
        raise EnrolmentRefused(answer.reason)
    return answer
