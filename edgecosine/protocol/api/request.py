"""Requests and answers as frozen values, independent of any transport."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

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
    """Alternatives reported with each token's log-probability; None: no log-probabilities."""
    n: int = 1
    """Number of choices: independent samples, each with its own seed."""
    choice: int = 0
    """Index of the choice that a session generates; 0 in the client's request."""
    priority: int = 0
    """Lower values are served first, as in vLLM."""
    trace: bool = False
    """Whether the answer contains the timings of its rounds."""
    origins: bool = False
    """Whether stream parts have the origins of their text."""
    resumed: Committed = NOTHING
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
