"""Complaints about strangers, each kind at most once a minute, so that nobody can fill the log."""

from __future__ import annotations

from typing import Final

_QUIET_S: Final = 60.0
_MAX_KINDS: Final = 256
"""Also the most complaints in a minute, of whatever kinds."""


class LogThrottle:
    """When what was last complained about, such as a host or an error code."""

    def __init__(self) -> None:
        self._made_at: dict[str, float] = {}

    def is_due(self, about: str, now: float) -> bool:
        """Whether to complain at `now` (seconds of any steady clock); then it is taken as done."""
        if now < self._made_at.get(about, -_QUIET_S) + _QUIET_S:
            return False
        if len(self._made_at) >= _MAX_KINDS:
            self._made_at = {kind: at for kind, at in self._made_at.items() if now < at + _QUIET_S}
        if len(self._made_at) >= _MAX_KINDS:
            return False
        self._made_at[about] = now
        return True
