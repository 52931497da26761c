"""Implements the gateway's `Service` on a target: checks requests, runs and counts sessions."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgecosine.balance.planner import Planner
from edgecosine.balance.policy import POLICIES, RECONSTRUCTIONS, find_policy
from edgecosine.engine.answer_grammar import AnswerForm
from edgecosine.engine.dialect import PLAIN, Dialect, choose_dialect, describe_tools
from edgecosine.engine.tokenizer import TextCodec
from edgecosine.errors import RequestError
from edgecosine.metrics.measurements import Measurements
from edgecosine.node.target.drafter_link import DrafterLinks
from edgecosine.node.target.grammar_cache import GrammarCache
from edgecosine.node.target.session import Session
from edgecosine.node.target.verifier import Verifier
from edgecosine.protocol.api.request import ChatMessage, Request
from edgecosine.protocol.api.result import Answer, Progress
from edgecosine.protocol.api.tools import ToolUse

logger = logging.getLogger(__name__)


class TextService:
    """Answers requests with one target model; implements `Service`."""

    def __init__(
        self,
        *,
        model: str,
        codec: TextCodec,
        max_context: int,
        max_sessions: int,
        exactness: str,
        verifier: Verifier,
        planner: Planner,
        drafters: DrafterLinks,
        tool_format: str = "auto",
        measurements: Measurements | None = None,
        identity: Callable[[], str] = lambda: "",
        committee: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """`identity` returns the digest of all that determines the texts but the request.
        `committee` returns the info about its members; None: one model answers."""
        self._model, self._codec, self._max_context = model, codec, max_context
        self._max_sessions, self._exactness = max_sessions, exactness
        self._verifier, self._planner, self._drafters = verifier, planner, drafters
        self._measurements = measurements or Measurements()
        self._grammars = GrammarCache(codec)
        self._dialect = choose_dialect(codec.chat_template, tool_format)
        self._identity, self._committee = identity, committee
        self._policies = [*POLICIES, *(RECONSTRUCTIONS if committee else ())]
        self._sessions: dict[str, Session] = {}
        self.num_answers = 0
        self.num_tokens = 0
        self.num_rounds = 0
        self.num_accepted = 0
        self.num_speculative = 0
        """Rounds whose plan had drafters."""
        self.num_ahead = 0
        """Of these, rounds whose drafts had been made ahead."""
        self.num_late = 0
        """Drafts that missed their deadline."""

    def __repr__(self) -> str:
        return (
            f"<TextService {self._model} [{len(self._sessions)} sessions, {self.num_answers} done]>"
        )

    @property
    def info(self) -> Mapping[str, Any]:
        """The model, limits and policies, as published by the gateway."""
        return {
            "models": [self._model],
            "max_context": self._max_context,
            "max_tokens": self._max_context,
            "exactness": self._exactness,
            "policies": self._policies,
            "identity": self._identity(),
            **(self._committee() if self._committee else {}),
        }

    @property
    def tokenizer(self) -> TextCodec:
        """The model's tokenizer."""
        return self._codec

    @property
    def max_sessions(self) -> int:
        """Most sessions that run at one time."""
        return self._max_sessions

    @property
    def has_engine_failed(self) -> bool:
        """Whether the engine has failed."""
        return self._verifier.has_failed

    def check(self, request: Request) -> None:
        """Raises RequestError if the model can never serve the request."""
        self._fitted(request, len(self._prompt(request)[0]))

    async def answer(self, request: Request) -> AsyncGenerator[Progress, None]:
        """Run a session and yield its progress.

        Raises RequestError if the request does not fit the model, or its response format cannot be
        enforced.
        """
        started = time.perf_counter()
        prompt, in_reasoning = self._prompt(request)
        request = self._fitted(request, len(prompt))
        session = Session(
            request=request,
            prompt=prompt,
            model=self._model,
            codec=self._codec,
            verifier=self._verifier,
            planner=self._planner,
            drafters=self._drafters,
            measurements=self._measurements,
            constraint=await self._grammars.constraint(self._answer_form(request, in_reasoning)),
            dialect=self._dialect_of(request),
            in_reasoning=in_reasoning,
        )
        self._measurements.num_prompt_tokens += len(prompt)
        self._sessions[request.key] = session
        try:
            async with contextlib.aclosing(session.run()) as steps:
                async for step in steps:
                    if isinstance(step, Answer):
                        self._count(request, step, time.perf_counter() - started)
                        step = replace(step, identity=self._identity())  # noqa: PLW2901
                    yield step
        finally:
            del self._sessions[request.key]

    def _prompt(self, request: Request) -> tuple[list[int], bool]:
        """The prompt's tokens, and whether they end within the model's reasoning."""
        if find_policy(request.policy) is None:
            names = ", ".join(self._policies)
            raise RequestError(f"policy must be one of {names}", parameter="policy")
        self._check_committee(request)
        biased = [token for token, _ in request.sampling.logit_bias]
        self._check_tokens("logit_bias", biased, self._codec.num_tokens)
        self._check_tokens(
            "stop_token_ids", request.sampling.stop_token_ids, self._codec.num_tokens
        )
        self._check_text(request)
        in_reasoning = False
        if request.prompt_tokens:
            prompt = list(request.prompt_tokens)
        elif isinstance(request.prompt, str):
            prompt = self._codec.encode(request.prompt)
        else:
            text = self._render_chat(request.prompt, request.tools)
            in_reasoning = self._dialect.opens_reasoning(text)
            prompt = self._codec.encode_rendered(text)
        parameter = "messages" if request.kind == "chat" else "prompt"
        self._check_tokens(parameter, prompt, self._codec.num_rows)
        if not prompt:
            raise RequestError("the prompt is empty", code="empty_prompt", parameter="prompt")
        return prompt, in_reasoning

    def _render_chat(self, messages: Sequence[ChatMessage], use: ToolUse | None) -> str:
        if use is None:
            return self._codec.render_chat(messages)
        if self._dialect.tools is None:
            raise RequestError(
                "the chat template of this model implies no format of tool calls; the target's "
                "option --tool-format names one",
                code="unsupported_value",
                parameter="tools",
            )
        if "tools" in self._codec.chat_template:
            specs = [{"type": "function", "function": json.loads(t.spec)} for t in use.tools]
            return self._codec.render_chat(messages, specs)
        described = ChatMessage("system", describe_tools(use, self._dialect.tools))
        return self._codec.render_chat([described, *messages])

    def _answer_form(self, request: Request, in_reasoning: bool) -> AnswerForm:
        dialect = self._dialect_of(request)
        return AnswerForm(request.form, request.tools, dialect, in_reasoning)

    def _dialect_of(self, request: Request) -> Dialect:
        return PLAIN if isinstance(request.prompt, str) else self._dialect

    def _check_committee(self, request: Request) -> None:
        """Refuse what only a committee can do, or what no committee can."""
        if self._committee is None:
            if request.policy in RECONSTRUCTIONS:
                raise RequestError(
                    f"policy {request.policy} needs a committee: start the target with --committee",
                    parameter="policy",
                )
            return
        if request.sampling.repetition_penalty != 1.0:
            raise RequestError(
                "a committee cannot apply repetition_penalty, which needs the logits of one model: "
                "use presence_penalty or frequency_penalty",
                parameter="repetition_penalty",
            )
        if request.echo and request.top_logprobs is not None:
            raise RequestError(
                "a committee does not score prompts: leave out echo or logprobs", parameter="echo"
            )

    def _check_text(self, request: Request) -> None:
        """Refuse texts that are far too long before they are encoded in the event loop."""
        if isinstance(request.prompt, str):
            texts = [request.prompt]
        else:
            texts = [turn.content for turn in request.prompt]
        if any(self._codec.is_longer(text, self._max_context) for text in texts):
            raise RequestError(
                f"the prompt has more tokens than the model's context, {self._max_context}",
                code="context_length_exceeded",
                parameter="prompt",
            )

    def _fitted(self, request: Request, num_prompt: int) -> Request:
        """The request, with a default `max_tokens` cut to the context that the prompt leaves."""
        room = self._max_context - num_prompt
        if request.max_tokens <= room:
            return request
        if request.is_default_length and room >= max(1, request.sampling.min_tokens):
            return replace(request, max_tokens=room)
        raise RequestError(
            f"the prompt has {num_prompt} tokens and max_tokens is {request.max_tokens}, but "
            f"the model's context has {self._max_context}",
            code="context_length_exceeded",
            parameter="max_tokens" if room > 0 else "prompt",
        )

    def _check_tokens(self, parameter: str, tokens: Iterable[int], num_tokens: int) -> None:
        highest = max(tokens, default=0)
        if highest >= num_tokens:
            raise RequestError(
                f"{parameter} names token {highest}, but the model has tokens 0 to "
                f"{num_tokens - 1}",
                parameter=parameter,
            )

    def _count(self, request: Request, answer: Answer, elapsed_s: float) -> None:
        metrics = answer.metrics
        self.num_answers += 1
        self.num_tokens += answer.num_tokens
        self.num_rounds += metrics.num_rounds
        self.num_accepted += metrics.num_accepted_tokens
        self.num_speculative += metrics.num_speculative_rounds
        self.num_ahead += metrics.num_ahead_rounds
        self.num_late += sum(share.late for share in metrics.drafters.values())
        logger.info(
            "answered: request=%s prompt_tokens=%d tokens=%d rounds=%d accepted=%d elapsed_s=%.3f "
            "finish=%s plan=%s drafters=%s",
            request.key, answer.num_prompt_tokens, answer.num_tokens, metrics.num_rounds,
            metrics.num_accepted_tokens, elapsed_s, answer.finish_reason, metrics.plan,
            ",".join(sorted(metrics.drafters)) or "none",
        )  # fmt: skip
