"""Requests and answers as frozen values, independent of any transport."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgecosine.protocol.api.channels import CONTENT, Channel
from edgecosine.protocol.api.origins import Origins
from edgecosine.protocol.api.response_format import ResponseFormat
from edgecosine.protocol.api.tools import ToolCall, ToolUse

MAX_SEED = 2**64 - 1

MIN_TEMPERATURE = 1e-6
"""Below it sampling is greedy: float32 cannot hold logits over so small a number."""
MIN_REPETITION_PENALTY = 0.01
"""The least that is accepted: float32 cannot hold logits over a number near 0."""

DEFAULT_POLICY = "edgecosine"

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the target chooses tokens; the parameters of the OpenAI API and of its common extensions.

    A temperature below `MIN_TEMPERATURE` is greedy. top_k 0, top_p 1 and min_p 0 cut nothing, and
    nothing cuts the most probable token. Every field has its full effect under speculation, because
    the target samples each token itself.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    """Tokens before which the answer cannot end: end and stop tokens are never drawn, and stop
    strings count only in the text after them."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer as the model's own end token does."""

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken at each position."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def is_plain(self) -> bool:
        """Whether logits are used as the model gives them, without penalties and bias."""
        return (
            self.presence_penalty == 0.0
            and self.frequency_penalty == 0.0
            and self.repetition_penalty == 1.0
            and not self.logit_bias
        )


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation.

    reasoning, calls  of the assistant
    call_id, name     of a tool's answer: the call that it answers, and the tool
    """

    role: str
    content: str
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural log-probabilities at one position, by the model's own distribution: the log-softmax
    of its logits, before penalties, bias, temperature and cuts (as vLLM's)."""

    drawn: float
    """Of the token that was drawn."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens, best first."""


@dataclass(frozen=True, slots=True)
class Committed:
    """Tokens of one choice that are certain, its end token included; `logprobs` has an entry for
    each where the request asks for them."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[Logprobs, ...] = ()


NOTHING = Committed()

RequestKind = Literal["chat", "completion", "ask"]


@dataclass(frozen=True, slots=True)
class Request:
    """A request. `prompt` is text, or the messages of a chat."""

    client_id: str
    request_id: str
    kind: RequestKind
    prompt: str | tuple[ChatMessage, ...]
    max_tokens: int = 128
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stream: bool = False
    model: str | None = None
    deadline_s: float = math.inf
    """Seconds from acceptance after which the request fails."""
    policy: str = DEFAULT_POLICY
    """Name of the speculation policy; the text is the same under every policy."""
    top_logprobs: int | None = None
    """Alternatives beside each token's log-probability; None for no log-probabilities."""
    n: int = 1
    """Choices wanted: independent samples, each from a seed of its own."""
    choice: int = 0
    """Index of the choice that a session generates; 0 in the client's request."""
    priority: int = 0
    """Lower values are served first, as in vLLM."""
    trace: bool = False
    """Whether the answer contains the timings of its rounds."""
    origins: bool = False
    """Whether stream parts have the origins of their text."""
    said: Committed = NOTHING
    """Tokens that a session of an earlier process committed, which this one continues."""
    form: ResponseFormat | None = None
    """The form that the answer must have; None: any text."""
    tools: ToolUse | None = None
    """Tools that the model may call; None: none."""
    is_default_length: bool = False
    """Whether the client gave no length, so that `max_tokens` is cut at the context's end."""
    prompt_tokens: tuple[int, ...] = ()
    """The prompt of a completion as tokens; then `prompt` is empty."""
    echo: bool = False
    """Whether the answer begins with the prompt, and its log-probabilities with the prompt's."""
    counts_parts: bool = False
    """Whether each part of the stream has the tokens so far."""

    @property
    def key(self) -> str:
        """Unique name in the cluster: client, id and, after the first, the choice."""
        key = f"{self.client_id}/{self.request_id}"
        return f"{key}/{self.choice}" if self.choice else key


@dataclass(frozen=True, slots=True)
class DrafterShare:
    """One drafter's contribution to one request, in draft tokens."""

    proposed: int = 0
    """Tokens of its drafts that were in a verified tree."""
    accepted: int = 0
    """Those of them that were committed."""
    late: int = 0
    """Rounds in which its draft arrived after the deadline."""
    led: int = 0
    """Rounds whose plan named it first."""
    first: int = 0
    """1 if it led the first round that had drafters; of several choices, how many of them."""


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
    """One generated token beside the most probable ones at its position.

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
    """Who guessed the text; empty unless the request asks for it."""
    usage: Usage | None = None
    """At a client: the tokens so far, where the request asks for them."""


Progress = Started | Committed | Delta | Answer
"""What a request yields: `Started` once, any number of deltas, `Committed` for tokens that show no
text yet, and one `Answer` last."""

NodeState = Mapping[str, Any]
"""A node's report on its state topic; plain JSON values."""
