"""Times of one request's rounds, recorded if the request asks for a trace."""

from __future__ import annotations

from edgecosine.node.runtime.clock import now
from edgecosine.protocol.api.result import DraftTimes, RoundTimes
from edgecosine.protocol.wire.messages import Draft

MAX_ROUNDS = 512
"""Most rounds of a trace, so that a final message stays within its bounds."""


class RoundTrace:
    """Records events as they happen; times are in seconds since the start of the session."""

    def __init__(self, *, is_on: bool = False) -> None:
        self.is_on = is_on
        self.began_s = now()
        self._deadline_s = 0.0
        self._started_s = self._submitted_s = self._verified_s = self._pass_s = 0.0
        self._drafts: list[DraftTimes] = []
        self.rounds: list[RoundTimes] = []

    def begin(self) -> None:
        """A round begins; the prefill is the first."""
        self._started_s, self._deadline_s = self._now_s(), 0.0

    def plan(self, deadline_s: float) -> None:
        """The round waits for its drafts until this deadline."""
        self._deadline_s = deadline_s

    def submit(self) -> None:
        """The tree is submitted to the target."""
        self._submitted_s = self._now_s()

    def verified(self, pass_s: float) -> None:
        """The verification result has arrived; its pass took `pass_s`."""
        self._verified_s, self._pass_s = self._now_s(), pass_s

    def drafted(self, drafter: str, asked: float, draft: Draft | None) -> None:
        """A drafter answered, or its request ended without an answer (None); `asked` by `now`."""
        if self.is_on:
            self._drafts.append(
                DraftTimes(
                    drafter=drafter,
                    asked_s=_rounded(asked - self.began_s),
                    ended_s=self._now_s(),
                    compute_s=_rounded(draft.compute_us / 1e6) if draft else 0.0,
                    num_tokens=len(draft.confidences) if draft else 0,
                )
            )

    def end(self, num_nodes: int, num_accepted: int, plan: str) -> None:
        """The round and its drafts have ended; `plan` is the reason of its plan."""
        drafts, self._drafts = self._drafts, []
        if self.is_on and len(self.rounds) < MAX_ROUNDS:
            self.rounds.append(
                RoundTimes(
                    started_s=self._started_s,
                    submitted_s=self._submitted_s,
                    verified_s=self._verified_s,
                    pass_s=_rounded(self._pass_s),
                    num_nodes=num_nodes,
                    num_accepted=num_accepted,
                    drafts=tuple(drafts),
                    deadline_s=_rounded(self._deadline_s),
                    plan=plan,
                )
            )

    def _now_s(self) -> float:
        return _rounded(now() - self.began_s) if self.is_on else 0.0


def _rounded(seconds: float) -> float:
    """Round to microseconds."""
    return round(seconds, 6)
