"""Every answer has the form that was asked for, and is the one without drafters."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from typing import Any

import jsonschema
import pytest

from edgecosine import zoo
from edgecosine.engine.base import DraftEngine, TargetEngine
from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.tokenizer import TextCodec
from edgecosine.errors import RequestError
from edgecosine.protocol.api.request import Committed, Request, Sampling
from edgecosine.protocol.api.response_format import ResponseFormat
from edgecosine.protocol.api.result import Answer
from tests.node.links.wire_fixtures import run
from tests.support.cluster import Drafter, TargetHarness, harness
from tests.support.schemas import random_schema

SPECULATIVE = ("edgecosine", "edgecosine-without-siblings", "specinfer")


@dataclass
class Zoo:
    target: TargetEngine
    codec: TextCodec
    drafters: list[DraftEngine]


@pytest.fixture(scope="module")
def zoo_models() -> Zoo:
    target, loaded = load_target(LoadOptions(zoo.TARGET, threads=1, slots=4))
    assert loaded.codec is not None
    names = zoo.drafter_names()[:2]
    drafters = [load_drafter(LoadOptions(name, threads=1, slots=4))[0] for name in names]
    return Zoo(target, loaded.codec, drafters)


def schema(value: object) -> ResponseFormat:
    return ResponseFormat("json_schema", json.dumps(value))


def request(form: ResponseFormat, number: int = 0, **changes: Any) -> Request:
    prompts = zoo.prompts()["home"]
    fields: dict[str, Any] = {
        "client_id": "a", "request_id": str(number), "kind": "completion",
        "prompt": prompts[number % len(prompts)], "max_tokens": 500, "form": form,
        "sampling": Sampling(temperature=float(number % 2), seed=number),
    }  # fmt: skip
    return Request(**fields | changes)


def setup(zoo_models: Zoo, *, tool_format: str = "auto") -> Any:
    drafters = [Drafter(engine) for engine in zoo_models.drafters]
    return harness(zoo_models.target, drafters, codec=zoo_models.codec, tool_format=tool_format)


@pytest.mark.parametrize(
    "seeds", [range(30), pytest.param(range(1000, 1500), marks=[pytest.mark.soak])], ids=len
)
@pytest.mark.timeout(1800)
def test_answers_match_random_schemas_and_drafters_change_nothing(
    zoo_models: Zoo, seeds: range
) -> None:
    async def scenario(some: range) -> int:
        num_accepted = 0
        async with setup(zoo_models) as node:
            for seed in some:
                wanted = random_schema(random.Random(seed))
                asked = request(schema(wanted), seed, policy=SPECULATIVE[seed % 3])
                together = await node.answer(asked)
                alone = await node.answer(replace(asked, policy="target-alone"))
                assert together.tokens == alone.tokens, wanted
                assert together.finish_reason == "stop", (wanted, together.text)
                jsonschema.validate(json.loads(together.text), wanted)
                shares = together.metrics.drafters.values()
                num_accepted += sum(share.accepted for share in shares)
                assert not alone.metrics.num_draft_tokens
        return num_accepted

    starts = range(seeds.start, seeds.stop, 10)
    assert sum(run(scenario(range(start, start + 10))) for start in starts) > 0


def test_forced_tokens_are_accepted_without_drafters(zoo_models: Zoo) -> None:
    wanted = {
        "type": "object",
        "properties": {"a rather long name": {"type": "boolean"}, "another": {"const": "words"}},
        "required": ["a rather long name", "another"],
        "additionalProperties": False,
    }

    async def scenario() -> tuple[Answer, Answer]:
        async with harness(zoo_models.target, codec=zoo_models.codec) as node:
            asked = request(schema(wanted))
            return (
                await node.answer(asked),
                await node.answer(replace(asked, policy="target-alone")),
            )

    forced, plain = run(scenario())
    assert forced.text == plain.text
    assert forced.metrics.num_accepted_tokens == forced.metrics.num_draft_tokens > 10
    assert forced.metrics.num_rounds < plain.metrics.num_rounds / 2


def test_resumed_answer_continues_its_form(zoo_models: Zoo) -> None:
    wanted = {"type": "array", "items": {"enum": ["one", "two"]}, "minItems": 4, "maxItems": 6}

    async def scenario() -> None:
        async with setup(zoo_models) as node:
            asked = request(schema(wanted), 1)
            whole = await node.answer(asked)
            for cut in (1, len(whole.tokens) // 2, len(whole.tokens)):
                said = Committed(whole.tokens[:cut])
                assert (await node.answer(replace(asked, resumed=said))).text == whole.text

    run(scenario())


def test_bad_schema_fails_its_request_alone(zoo_models: Zoo) -> None:
    async def refused(node: TargetHarness, form: ResponseFormat) -> RequestError:
        with pytest.raises(RequestError) as caught:
            await node.answer(request(form))
        return caught.value

    async def scenario() -> None:
        async with setup(zoo_models) as node:
            error = await refused(node, schema({"type": "text"}))
            assert (error.code, error.parameter) == ("invalid_schema", "response_format")
            assert "text" in error.message
            good = await node.answer(request(ResponseFormat("choice", '["red", "blue"]')))
            assert good.text in {"red", "blue"}

    run(scenario())
