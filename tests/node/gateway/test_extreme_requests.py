"""Whole requests at the ends of every parameter's range give the target's own text."""

from __future__ import annotations

import asyncio
import functools
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, load_kernels
from edgecosine.engine.cpu.native_llama import NativeLlama
from edgecosine.engine.draft.drafter import TransformerDrafter
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.protocol.api.openai import RequestLimits, parse_request
from edgecosine.protocol.api.request import MIN_REPETITION_PENALTY, MIN_TEMPERATURE, Request
from tests.engine.models import VOCABULARY, build
from tests.node.links.wire_fixtures import run
from tests.support.cluster import Drafter, harness
from tests.support.engines import ScriptedTarget

SMALLEST = 5e-324
bodies = st.fixed_dictionaries(
    {"prompt": st.text("abcxyz", min_size=1, max_size=20), "seed": st.integers(0, 2**64 - 1)},
    optional={
        "temperature": st.sampled_from([SMALLEST, 1e-45, 1e-38, 9e-7, MIN_TEMPERATURE, 1e-3, 2.0]),
        "top_k": st.sampled_from([1, 2, 2**31 - 1]),
        "top_p": st.sampled_from([SMALLEST, 1e-46, 1e-38, 0.5, 1 - 2**-53]),
        "min_p": st.sampled_from([SMALLEST, 1e-46, 1e-38, 0.1, 1.0]),
        "presence_penalty": st.sampled_from([-2.0, -SMALLEST, SMALLEST, 2.0]),
        "frequency_penalty": st.sampled_from([-2.0, 1e-45, 2.0]),
        "repetition_penalty": st.sampled_from([MIN_REPETITION_PENALTY, 1 + 2**-52, 10.0]),
        "logit_bias": st.sampled_from([{"97": 100.0}, {"97": -100.0}, {"0": SMALLEST}]),
        "min_tokens": st.sampled_from([1, 12]),
        "stop_token_ids": st.sampled_from([[97], [0, VOCABULARY - 1]]),
        "logprobs": st.sampled_from([0, 5]),
    },
)


@functools.cache
def model_of(_role: str) -> ForwardModel:
    """The same model with a cache of its own for each role."""
    try:
        return NativeLlama(
            build("llama"), slots=4, slot_size=400, threads=1, kernels=load_kernels()
        )
    except KernelsUnavailable:
        return SlotModel(build("llama"), slots=4, slot_size=400, threads=1, kernels=None)


def request(number: int, body: dict[str, Any], policy: str) -> Request:
    return parse_request(
        "completion", {"max_tokens": 12, "policy": policy, **body},
        client_id="a", request_id=f"{number}-{policy}", limits=RequestLimits(), draw_seed=lambda: 0,
    )  # fmt: skip


@settings(max_examples=8)
@given(st.lists(bodies, min_size=4, max_size=4))
def test_text_at_the_ends_of_all_ranges_equals_the_targets(asked: list[dict[str, Any]]) -> None:
    target = TransformerTarget(
        model_of("target"), slots=4, max_context=96, eos_tokens=[1], num_tokens=VOCABULARY
    )
    drafter = TransformerDrafter(model_of("drafter"), slots=4, max_context=96)

    async def main() -> None:
        async with harness(cast(ScriptedTarget, target), [Drafter(drafter)]) as home:
            texts: dict[str, list[Any]] = {}
            for policy in ("target-alone", "edgecosine"):
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(home.answer(request(number, body, policy)))
                        for number, body in enumerate(asked)
                    ]
                texts[policy] = [task.result().choices for task in tasks]
            assert texts["edgecosine"] == texts["target-alone"]
            assert home.links["drafter-0"].asked

    run(main())
