"""Keeps a running node's credentials good: hears whom to trust, and renews before it is too late.

Links that stand are not touched by a renewal; the next ones are made with the new certificate. An
authority that cannot be reached is weather: what it said last holds until it speaks again.
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

_LOOK_S: Final = 600.0
_WARN: Final = timedelta(days=3)

logger = logging.getLogger(__name__)


class CredentialRenewal:
    """Between a node's guard and its cluster's authority. `run` until cancelled."""

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
        self._is_news = asyncio.Event()

    def __repr__(self) -> str:
        until = self.credentials.not_after
        return f"<CredentialRenewal {self.credentials.identity.node_id} until {until:%Y-%m-%d}>"

    async def run(self) -> None:
        """Keep the credentials good until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hear(), name="upkeep.hear")
            group.create_task(self._renew(), name="upkeep.renew")

    async def _hear(self) -> None:
        attempts, told = 0, ""
        while True:
            try:
                news = await watch(self.credentials)
                changed = self.credentials.with_trust(news)
                fault = ""
            except EnrolmentError as error:
                fault = str(error)
            if not fault and news.revision < self.credentials.revision:
                fault = "the authority has forgotten what it said: an old copy of its files?"
            if fault:
                attempts += 1
                if fault != told:
                    logger.warning("no news of whom to trust: reason=%s", fault)
                told = fault
                await asyncio.sleep(self._backoff.delay_s(attempts))
                continue
            attempts, told = 0, ""
            if changed.revision != self.credentials.revision:
                logger.info("whom to trust has changed: revision=%d", changed.revision)
                self._use(changed)

    async def _renew(self) -> None:
        attempts, told = 0, ""
        while True:
            wait = (self.credentials.renew_at - self._now()).total_seconds()
            if wait > 0:
                await self._sleep(min(wait, _LOOK_S))
                continue
            try:
                self._use(await renew(self.credentials))
            except EnrolmentError as error:
                attempts += 1
                if str(error) != told:
                    told = str(error)
                    self._say_not_renewed(error)
                await self._sleep(self._backoff.delay_s(attempts))
                continue
            attempts, told = 0, ""
            logger.info("certificate renewed: until=%s", self.credentials.not_after)

    def _say_not_renewed(self, error: EnrolmentError) -> None:
        left = self.credentials.not_after - self._now()
        level = logging.ERROR if left < _WARN else logging.WARNING
        logger.log(level, "certificate not renewed: expires_in=%s reason=%s", left, error)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, or less when there is news; clocks may jump, so never for long."""
        self._is_news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_news.wait()

    def _use(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self._guard.replace(credentials.trust())
        self._is_news.set()
