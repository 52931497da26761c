"""Keeps a running node's credentials valid: follows the trust list and renews the certificate.

A renewal does not affect existing links; new ones use the new certificate. While the authority
cannot be reached, its last trust list remains in force.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from edgecosine.backoff import Backoff
from edgecosine.errors import EnrolmentError
from edgecosine.node.credentials.ca_client import renew, watch
from edgecosine.node.credentials.ca_server import utc_now
from edgecosine.node.links.link_policy import LinkPolicy
from edgecosine.security.credentials import Credentials

_MAX_SLEEP_S: Final = 600.0
_WARN: Final = timedelta(days=3)

logger = logging.getLogger(__name__)


class CredentialRenewal:
    """Updates a node's link policy from its cluster's authority. `run` until cancelled."""

    def __init__(
        self,
        credentials: Credentials,
        guard: LinkPolicy,
        *,
        now: Callable[[], datetime] = utc_now,
        backoff: Backoff | None = None,
    ) -> None:
        self.credentials = credentials
        self._guard, self._now = guard, now
        self._backoff = backoff or Backoff(0.5, 60.0)
        self._has_changed = asyncio.Event()

    def __repr__(self) -> str:
        until = self.credentials.not_after
        return f"<CredentialRenewal {self.credentials.identity.node_id} until {until:%Y-%m-%d}>"

    async def run(self) -> None:
        """Renew and follow the trust list until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="renewal.watch")
            group.create_task(self._renew(), name="renewal.renew")

    async def _watch(self) -> None:
        attempts, logged = 0, ""
        while True:
            try:
                trusted = await watch(self.credentials)
                changed = self.credentials.with_trust(trusted)
                fault = ""
            except EnrolmentError as error:
                fault = str(error)
            if not fault and trusted.revision < self.credentials.revision:
                fault = (
                    "the authority sent an older trust list: was a backup of its files restored?"
                )
            if fault:
                attempts += 1
                if fault != logged:
                    logger.warning("cannot refresh the trust list: reason=%s", fault)
                logged = fault
                await asyncio.sleep(self._backoff.delay_s(attempts))
                continue
            attempts, logged = 0, ""
            if changed.revision != self.credentials.revision:
                logger.info("trust list updated: revision=%d", changed.revision)
                self._use(changed)

    async def _renew(self) -> None:
        attempts, logged = 0, ""
        while True:
            wait = (self.credentials.renew_at - self._now()).total_seconds()
            if wait > 0:
                await self._sleep(min(wait, _MAX_SLEEP_S))
                continue
            try:
                self._use(await renew(self.credentials))
            except EnrolmentError as error:
                attempts += 1
                if str(error) != logged:
                    logged = str(error)
                    self._log_not_renewed(error)
                await self._sleep(self._backoff.delay_s(attempts))
                continue
            attempts, logged = 0, ""
            logger.info("certificate renewed: until=%s", self.credentials.not_after)

    def _log_not_renewed(self, error: EnrolmentError) -> None:
        left = self.credentials.not_after - self._now()
        level = logging.ERROR if left < _WARN else logging.WARNING
        logger.log(level, "certificate not renewed: expires_in=%s reason=%s", left, error)

    async def _sleep(self, seconds: float) -> None:
        """Sleep until the credentials change, at most this long: the wall clock may jump."""
        self._has_changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_changed.wait()

    def _use(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self._guard.replace(credentials.trust())
        self._has_changed.set()
