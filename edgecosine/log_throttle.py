"""Limits warnings to one a minute for each subject, so that a peer cannot flood the log."""

from __future__ import annotations

from typing import Final

_QUIET_S: Final = 60.0
_MAX_KINDS: Final = 256
"""Also the largest number of warnings in a minute."""


class LogThrottle:
    """Times of the last warnings by subject, such as a host or an error code."""

    def __init__(self) -> None:
        self._made_at: dict[str, float] = {}

    def is_due(self, about: str, now: float) -> bool:
        """Whether to log at `now` (seconds of any monotonic clock); True records a warning."""
        if now < self._made_at.get(about, -_QUIET_S) + _QUIET_S:
            return False
        if len(self._made_at) >= _MAX_KINDS:
            self._made_at = {kind: at for kind, at in self._made_at.items() if now < at + _QUIET_S}
        if len(self._made_at) >= _MAX_KINDS:
            return False
        self._made_at[about] = now
        return True
