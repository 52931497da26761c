"""Completions that begin with their prompt."""

from __future__ import annotations

from typing import Any

import pytest

from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Answer, Delta
from tests.node.links.wire_fixtures import run
from tests.support.cluster import Drafter, harness
from tests.support.engines import ScriptedDrafter, ScriptedTarget, alone, babble, tell

LANGUAGE = babble()
PROMPT = "To be, größer"


def request(**changes: Any) -> Request:
    fields: dict[str, Any] = {
        "client_id": "a", "request_id": "1", "kind": "completion", "prompt": PROMPT,
        "max_tokens": 10, "echo": True,
    }  # fmt: skip
    return Request(**(fields | changes))


@pytest.mark.parametrize("as_tokens", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 10])
@pytest.mark.parametrize("top_logprobs", [None, 2])
def test_answer_begins_with_its_prompt(
    as_tokens: bool, max_tokens: int, top_logprobs: int | None
) -> None:
    tokens = PROMPT.encode()
    asked = request(max_tokens=max_tokens, top_logprobs=top_logprobs)
    if as_tokens:
        asked = request(
            max_tokens=max_tokens, top_logprobs=top_logprobs, prompt="",
            prompt_tokens=tuple(tokens),
        )  # fmt: skip

    async def main() -> Answer:
        setups = [Drafter(ScriptedDrafter(LANGUAGE))]
        async with harness(ScriptedTarget(LANGUAGE), setups) as home:
            answer = await home.answer(asked)
            steps = await home.ask(asked)
            assert "".join(s.text for s in steps if isinstance(s, Delta)) == answer.text
            return answer

    answer = run(main())
    expected = alone(LANGUAGE, request(max_tokens=10))
    assert answer.text == PROMPT + expected.text[:max_tokens]
    assert (answer.num_tokens, answer.finish_reason) == (max_tokens, "length")
    logprobs = answer.choices[0].logprobs
    if top_logprobs is None:
        assert logprobs is None
        return
    assert logprobs is not None
    assert len(logprobs) == len(tokens) + max_tokens
    assert (logprobs[0].token.logprob, logprobs[0].top) == (None, ())
    for number, scored in enumerate(logprobs[1 : len(tokens)], start=1):
        assert scored.token.logprob == tell(tokens[:number], tokens[number], 2).drawn
    # `ö` and `ß` are two tokens each; a text is final with the second one.
    offsets = [each.text_offset for each in logprobs]
    assert offsets == sorted(offsets)
    assert offsets[len(tokens) :] == list(range(len(PROMPT), len(PROMPT) + max_tokens))
