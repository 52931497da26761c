"""The result of a request: choices, log-probabilities, and the measures of its rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgecosine.protocol.api.channels import CONTENT, Channel
from edgecosine.protocol.api.origins import Origins
from edgecosine.protocol.api.request import NOTHING, Committed, FinishReason, Logprobs
from edgecosine.protocol.api.tools import ToolCall


@dataclass(frozen=True, slots=True)
class DrafterShare:
    """One drafter's contribution to one request, in draft tokens."""

    proposed: int = 0
    """Tokens of its drafts that were in a verified tree."""
    accepted: int = 0
    """Proposed tokens that were committed."""
    late: int = 0
    """Rounds in which its draft arrived after the deadline."""
    led: int = 0
    """Rounds whose plan named it first."""
    first: int = 0
    """1 if it led the first round that had drafters; with several choices, the number of those."""


@dataclass(frozen=True, slots=True)
class DraftTimes:
    """One drafter's part in a round; times in seconds since the session started."""

    drafter: str
    asked_s: float
    ended_s: float
    """When its draft arrived, or was given up."""
    compute_s: float = 0.0
    """Compute time at the drafter; the rest is network and queueing."""
    num_tokens: int = 0
    """0 when it was late, lost or silent."""


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """Timings of one round, the prefill being round 0; seconds since the session started.

    Drafts are awaited from `started_s` to `submitted_s`; then the tree waits for its forward pass,
    which takes the last `pass_s` before `verified_s`. Drafts requested after `submitted_s` were
    made during the verification: ahead of its result, or as probes.
    """

    started_s: float
    submitted_s: float
    verified_s: float
    pass_s: float
    num_nodes: int
    num_accepted: int
    drafts: tuple[DraftTimes, ...] = ()
    deadline_s: float = 0.0
    """Time that the plan allows for drafts; 0 without drafters."""
    plan: str = ""
    """The plan and its reason; empty for the prefill."""


@dataclass(frozen=True, slots=True)
class CommitteePart:
    """The members that an answer's tokens from `from_token` on were drawn from."""

    members: tuple[str, ...]
    from_token: int


@dataclass(frozen=True, slots=True)
class CommitteeUse:
    """How the members of a committee worked on an answer.

    is_exact        whether every token was drawn from the exact mean of all members
    why             the mean time of the slowest member's judgements, and its parts
    round_s         sum of the verifications' times, and slowest_s of their slowest members'
    num_rows        rows that other nodes listed, in `num_bytes` of numbers
    num_asked_back  of `num_drawn` draws, those that the first lists did not prove
    num_dense       those that needed whole rows
    lost            mean of sum w_i eps_i, the mass that a reconstruction leaves out
    differing       most of the draws' probability to differ for that, with the same noise
    """

    is_exact: bool = True
    parts: tuple[CommitteePart, ...] = ()
    why: str = ""
    round_s: float = 0.0
    slowest_s: float = 0.0
    num_rows: int = 0
    num_bytes: int = 0
    num_drawn: int = 0
    num_asked_back: int = 0
    num_dense: int = 0
    lost: float = 0.0
    differing: float = 0.0


@dataclass(frozen=True, slots=True)
class Metrics:
    """How an answer was generated.

    acceptance_histogram[n] counts the rounds in which n draft tokens were accepted, so that its sum
    is the number of rounds.
    """

    acceptance_histogram: tuple[int, ...] = (0,)
    num_draft_tokens: int = 0
    num_speculative_rounds: int = 0
    """Rounds whose plan had drafters."""
    num_ahead_rounds: int = 0
    """Those whose drafts were ready at the start, made during the last verification."""
    drafters: Mapping[str, DrafterShare] = field(default_factory=dict)
    plan: str = ""
    """The last plan and its reason."""
    queue_s: float = 0.0
    """From acceptance to the start of the session."""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    rounds: tuple[RoundTimes, ...] = ()
    """Of the first choice; empty unless the request has `trace`."""
    began_s: float = 0.0
    """Start of the session, from which the rounds count, by the target's performance counter."""
    committee: CommitteeUse | None = None
    """Of the first choice, or of the first that is not exact; None where one model answers."""

    @property
    def num_rounds(self) -> int:
        """Target passes for the answer, without the prefill."""
        return sum(self.acceptance_histogram)

    @property
    def num_accepted_tokens(self) -> int:
        """Draft tokens that were committed."""
        return sum(n * count for n, count in enumerate(self.acceptance_histogram))


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token's text and natural log-probability.

    `utf8` may be part of a character; `text` then spells the bytes.
    """

    text: str
    utf8: bytes
    logprob: float | None
    """None for the first token of a prompt."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One generated token and the most probable ones at its position.

    Log-probabilities are the model's own: before penalties, bias, temperature and cuts.
    """

    token: ScoredToken
    top: tuple[ScoredToken, ...]
    """Most probable first."""
    text_offset: int
    """Characters of the text before the token."""


def scored_token(
    spelling: Callable[[int], tuple[str, bytes]], token: int, logprobs: Logprobs, text_offset: int
) -> TokenLogprobs:
    """The log-probabilities of one token, with texts by `spelling`."""
    return TokenLogprobs(
        token=ScoredToken(*spelling(token), logprobs.drawn),
        top=tuple(ScoredToken(*spelling(other), logprob) for other, logprob in logprobs.top),
        text_offset=text_offset,
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """One text. `logprobs` has an entry for each token, or is None where none were requested."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] | None = None
    reasoning: str = ""
    """Text before the answer's content."""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """The complete answer to a request: a session's single choice, or all choices in order."""

    choices: tuple[Choice, ...]
    num_prompt_tokens: int
    seed: int
    model: str
    metrics: Metrics = Metrics()
    identity: str = ""
    """Digest of all that determines the text but the request."""

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens of the first choice."""
        return self.choices[0].tokens

    @property
    def finish_reason(self) -> FinishReason:
        """The finish reason of the first choice."""
        return self.choices[0].finish_reason

    @property
    def num_tokens(self) -> int:
        """Generated tokens of all choices together."""
        return sum(len(choice.tokens) for choice in self.choices)


@dataclass(frozen=True, slots=True)
class Started:
    """The request left the queue."""

    num_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a prompt, and those generated so far for all choices together."""

    num_prompt_tokens: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a running answer, number `index` from 0, and the choice that it belongs to."""

    index: int
    text: str
    choice: int = 0
    channel: Channel = CONTENT
    committed: Committed = NOTHING
    """Tokens since the last delta, those of the text included."""
    origins: Origins = ()
    """Sources of the text; empty unless the request asks for it."""
    usage: Usage | None = None
    """At a client: the tokens so far, where the request asks for them."""


Progress = Started | Committed | Delta | Answer
"""The steps of a request: `Started` once, any number of deltas, `Committed` for tokens that show no
text yet, and one `Answer` last."""

NodeState = Mapping[str, Any]
"""A node's report on its state topic; plain JSON values."""
