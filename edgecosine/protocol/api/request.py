"""What a user asks and what a user gets, as frozen values. No transport knows more than these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_SEED = 2**64 - 1

MIN_TEMPERATURE = 1e-6
"""Below it sampling is greedy: float32 cannot hold logits over so small a number."""
MIN_REPETITION_PENALTY = 0.01
"""The least that is accepted: float32 cannot hold logits over a number near 0."""

DEFAULT_POLICY = "edgecosine"

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the target chooses tokens; the parameters of the OpenAI API and of its common extensions.

    A temperature below `MIN_TEMPERATURE` is greedy. top_k 0, top_p 1 and min_p 0 cut nothing, and
    nothing cuts the most probable token. Every field holds under speculation, because the target
    samples for itself.
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
    """Before so many tokens nothing ends the answer: end and stop tokens are never drawn, and stop
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
    """One turn of a conversation."""

    role: str
    content: str


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
    """One thing that a user asks. `prompt` is text, or the turns of a chat."""

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
    """Seconds from acceptance until the answer is worth nothing."""
    policy: str = DEFAULT_POLICY
    """Who decides how much to speculate; the text is the same under every policy."""
    top_logprobs: int | None = None
    """Alternatives told beside each token's log-probability; None tells no log-probabilities."""
    n: int = 1
    """Choices wanted: independent samples, each from a seed of its own."""
    choice: int = 0
    """Which of the choices a session makes; the asker's request has 0."""
    priority: int = 0
    """Lower goes first, as in vLLM."""
    trace: bool = False
    """Whether the answer tells the course of its rounds."""
    said: Committed = NOTHING
    """What a session of a former process has committed; this one goes on behind it."""
    is_default_length: bool = False
    """Whether the asker named no length, so that `max_tokens` is cut where the context ends."""

    @property
    def key(self) -> str:
        """Names the request in the whole cluster: client and id, and the choice after the first."""
        key = f"{self.client_id}/{self.request_id}"
        return f"{key}/{self.choice}" if self.choice else key


@dataclass(frozen=True, slots=True)
class DrafterShare:
    """What one drafter did for one request, in draft tokens."""

    proposed: int = 0
    """Tokens of its drafts that were in a verified tree."""
    accepted: int = 0
    """Those of them that were committed."""
    late: int = 0
    """Rounds in which its draft came after the deadline."""
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
    """Its draft came, or was given up."""
    compute_s: float = 0.0
    """What the drafter itself spent on it; the rest is network, and waiting at the drafter."""
    num_tokens: int = 0
    """0 when it was late, lost or silent."""


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """The course of one round, the prefill being round 0; seconds since the session started.

    Drafts are waited for from `started_s` to `submitted_s`; then the tree waits for its pass, which
    takes the last `pass_s` before `verified_s`. Drafts that were asked for after `submitted_s` were
    made beside the verification: ahead of its verdict, or on trial.
    """

    started_s: float
    submitted_s: float
    verified_s: float
    pass_s: float
    num_nodes: int
    num_accepted: int
    drafts: tuple[DraftTimes, ...] = ()
    deadline_s: float = 0.0
    """How long the plan lets drafts take; 0 for a plain round."""
    plan: str = ""
    """What was planned, and why; empty for the prefill."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """How an answer was made.

    acceptance_histogram[n] counts the rounds in which n draft tokens were accepted, so that its sum
    is the number of rounds.
    """

    acceptance_histogram: tuple[int, ...] = (0,)
    num_draft_tokens: int = 0
    num_speculative_rounds: int = 0
    """Rounds whose plan had drafters."""
    num_ahead_rounds: int = 0
    """Those of them whose drafts were there when they began, made beside the last verification."""
    drafters: Mapping[str, DrafterShare] = field(default_factory=dict)
    plan: str = ""
    """The last plan and why it was made."""
    queue_s: float = 0.0
    """From acceptance at the door to the start of the session."""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    rounds: tuple[RoundTimes, ...] = ()
    """Empty unless the request asked for them; of the first choice."""
    began_s: float = 0.0
    """The start of the session from which they count, by the target's performance counter."""

    @property
    def num_rounds(self) -> int:
        """Target passes spent on the answer, the prefill not counted."""
        return sum(self.acceptance_histogram)

    @property
    def num_accepted_tokens(self) -> int:
        """Draft tokens that were committed."""
        return sum(n * count for n, count in enumerate(self.acceptance_histogram))


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token as its reader sees it, and its natural log-probability.

    `utf8` may hold a part of a character only; `text` then spells the bytes.
    """

    text: str
    utf8: bytes
    logprob: float


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


@dataclass(frozen=True, slots=True)
class Choice:
    """One text. `logprobs` has an entry for each token, or is None where nobody asked."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer to one request: a session's one choice, or all choices, in order."""

    choices: tuple[Choice, ...]
    num_prompt_tokens: int
    seed: int
    model: str
    metrics: Metrics = Metrics()

    @property
    def text(self) -> str:
        """The first choice's."""
        return self.choices[0].text

    @property
    def tokens(self) -> tuple[int, ...]:
        """The first choice's."""
        return self.choices[0].tokens

    @property
    def finish_reason(self) -> FinishReason:
        """The first choice's."""
        return self.choices[0].finish_reason

    @property
    def num_tokens(self) -> int:
        """Tokens that were generated, in all choices together."""
        return sum(len(choice.tokens) for choice in self.choices)


@dataclass(frozen=True, slots=True)
class Started:
    """The request left the queue."""


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a running answer, number `index` from 0, and the choice that it belongs to."""

    index: int
    text: str
    choice: int = 0
    committed: Committed = NOTHING
    """The tokens since the last ones that were told, the text's included."""


Progress = Started | Committed | Delta | Answer
"""What a request yields: `Started` once, any number of deltas, `Committed` for tokens that show no
text yet, and one `Answer` last."""

NodeState = Mapping[str, Any]
"""What a node tells about itself on its state topic; plain JSON values."""
