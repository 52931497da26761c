"""Theorem 1: the text of a session is the target's alone, whatever the drafters do."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecosine.balance.cost_model import PassReport
from edgecosine.balance.local_draft import TEXT
from edgecosine.balance.policy import POLICIES
from edgecosine.engine.base import DraftResult, DraftWork, never
from edgecosine.node.target.draft_client import LONGEST_PREFIX, DraftClient
from edgecosine.node.target.request_metrics import RequestMetrics
from edgecosine.protocol.api.request import Committed, Logprobs, Request, Sampling
from edgecosine.protocol.api.result import Answer, Delta, Started
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.prefix import Prefix
from tests.node.links.wire_fixtures import run
from tests.support.cluster import Drafter, FakeLink, LinkFault, TargetHarness, harness, outlasting
from tests.support.engines import (
    AlternatingDrafter,
    Language,
    ScriptedDrafter,
    ScriptedTarget,
    alone,
    babble,
    recital,
)

few = settings(max_examples=60)

IDLE = "<DraftWorker [0 waiting, 0 requests]>"


def request(prompt: str = "To be", **changes: Any) -> Request:
    fields: dict[str, Any] = {
        "client_id": "a",
        "request_id": "1",
        "kind": "ask",
        "prompt": prompt,
    } | changes
    return Request(**fields)


requests = st.builds(
    Request,
    client_id=st.just("a"),
    request_id=st.just("1"),
    kind=st.just("ask"),
    prompt=st.text("xyzé", min_size=1, max_size=30),
    max_tokens=st.integers(1, 50),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.8]),
        seed=st.integers(0, 2**64 - 1),
        min_tokens=st.sampled_from([0, 0, 5, 30]),
        stop_token_ids=st.sampled_from([(), (ord("b"),)]),
    ),
    top_logprobs=st.sampled_from([None, 0, 3]),
    stop=st.lists(st.text("abcdé", min_size=1, max_size=4), max_size=2).map(tuple),
    ignore_eos=st.booleans(),
    policy=st.sampled_from([*POLICIES]),
)
languages = st.builds(
    babble,
    st.sampled_from(["ab", "abcd", "aé", "ab€😀"]),
    salt=st.integers(0, 1000),
    eos_every=st.sampled_from([0, 10, 40]),
)
fault_sequences = st.just((LinkFault.FINE,)) | st.lists(
    st.sampled_from(list(LinkFault)), min_size=1, max_size=6
).map(tuple)


@few
@given(st.data(), languages, requests, st.sampled_from([1.0, 1e-5]))
def test_text_is_the_targets_alone_for_any_drafters_and_link_faults(
    data: st.DataObject, language: Language, asked: Request, pass_s: float
) -> None:
    setups = [
        Drafter(
            ScriptedDrafter(language, hits=hits, confidence=confidence),
            data.draw(fault_sequences),
        )
        for hits, confidence in data.draw(
            st.lists(st.tuples(st.sampled_from([0.0, 0.6, 1.0]), st.floats(0, 1)), max_size=4)
        )
    ]
    expected = alone(language, asked)

    async def main() -> None:
        target = ScriptedTarget(language, chunk=data.draw(st.integers(1, 64)))
        async with harness(target, setups, pass_s=pass_s) as home:
            answer = await home.answer(asked)
            assert answer.text == expected.text
            assert answer.tokens == expected.tokens
            assert answer.finish_reason == expected.finish_reason
            assert logprobs_of(answer) == (
                expected.logprobs if asked.top_logprobs is not None else None
            )
            assert repr(home.service) == "<TextService scripted [0 sessions, 1 done]>"
            for link, worker in zip(home.links.values(), home.drafters, strict=True):
                link.lose() if not link.look() else None
                assert repr(worker) == IDLE

    run(main())


def logprobs_of(answer: Answer) -> tuple[Logprobs, ...] | None:
    """The log-probabilities of an answer by token; tokens are bytes here."""
    logprobs = answer.choices[0].logprobs
    if logprobs is None:
        return None
    return tuple(
        Logprobs(each.token.logprob, tuple((ord(top.text), top.logprob) for top in each.top))
        for each in logprobs
    )


def answer_of(language: Language, asked: Request, *setups: Drafter) -> Answer:
    """A request's answer by a harness of its own."""

    async def main() -> Answer:
        target = ScriptedTarget(language)
        async with harness(target, setups) as home:
            return await home.answer(asked)

    return run(main())


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_perfect_drafter_saves_most_rounds(temperature: float) -> None:
    language = babble()
    asked = request(max_tokens=120, sampling=Sampling(temperature=temperature, seed=7))
    answer = answer_of(language, asked, Drafter(ScriptedDrafter(language)))
    assert answer.text == alone(language, asked).text
    assert answer.metrics.num_rounds < 30
    assert answer.metrics.num_accepted_tokens > 80
    share = answer.metrics.drafters["drafter-0"]
    assert share.accepted == answer.metrics.num_accepted_tokens
    assert share.proposed == share.accepted


@pytest.mark.parametrize("fault", [LinkFault.FORGOTTEN, LinkFault.LINK_LOST_UNSEEN])
def test_drafter_without_the_prefix_gets_it_in_the_same_round(fault: LinkFault) -> None:
    language = babble()
    answer = answer_of(
        language, request(max_tokens=120), Drafter(ScriptedDrafter(language), [fault])
    )
    assert answer.metrics.num_rounds < 30


def test_drafter_with_the_prefix_gets_only_new_tokens() -> None:
    language = babble()

    async def main() -> None:
        async with harness(
            ScriptedTarget(language), [Drafter(ScriptedDrafter(language, hits=0.8))]
        ) as home:
            answer = await home.answer(request("x" * 50, max_tokens=60))
            asked = home.links["drafter-0"].asked
            assert asked[0].is_probe, "no round waits for the first draft"
            assert not all(each.is_probe for each in asked)
            lengths = [len(each.new_tokens) // 4 for each in asked]
            assert lengths[0] == 50
            assert sum(lengths) <= 50 + answer.num_tokens

    run(main())


def test_every_token_is_the_first_or_accepted_or_a_bonus() -> None:
    language = babble(eos_every=30)
    for salt in range(5):
        asked = request(f"salt {salt}", max_tokens=60, ignore_eos=True)
        answer = answer_of(language, asked, Drafter(ScriptedDrafter(language, hits=0.7)))
        metrics = answer.metrics
        assert 1 + metrics.num_rounds + metrics.num_accepted_tokens == answer.num_tokens == 60


class _SlowReader(ScriptedDrafter):
    """Its first draft takes until it `may_draft`."""

    def __init__(self, language: Language) -> None:
        super().__init__(language)
        self.may_draft = threading.Event()

    def draft(
        self, batch: Sequence[DraftWork], is_interrupted: Callable[[int], bool] = never
    ) -> list[DraftResult]:
        assert self.may_draft.wait(10)
        return super().draft(batch, is_interrupted)


def test_no_round_waits_for_a_drafter_that_still_reads_the_prompt() -> None:
    """Its probe takes many passes; as soon as it has drafted it is part of the plans."""
    language = babble()
    drafter = _SlowReader(language)
    num_asked: list[int] = []

    async def main() -> Answer:
        async with harness(target, [Drafter(drafter)], pass_s=0.05) as home:
            links.append(home.links["drafter-0"])
            return await home.answer(request(max_tokens=200, ignore_eos=True))

    def before_pass(number: int, _: list[str]) -> None:
        if number < 30:
            num_asked.append(len(links[0].asked))
        else:
            drafter.may_draft.set()

    links: list[FakeLink] = []
    target = ScriptedTarget(language, before_pass=before_pass)
    answer = run(main())
    assert max(num_asked) == 1
    assert answer.metrics.drafters["drafter-0"].accepted > 50
    assert not answer.metrics.drafters["drafter-0"].late


def test_expert_is_found_among_useless_drafters() -> None:
    language, another = babble(), babble(salt=1)
    asked = request(max_tokens=150)
    answer = answer_of(
        language,
        asked,
        Drafter(ScriptedDrafter(another)),
        Drafter(ScriptedDrafter(language)),
        Drafter(ScriptedDrafter(another)),
    )
    assert answer.metrics.num_rounds < 50
    assert answer.metrics.drafters["drafter-1"].accepted > 90


@pytest.mark.parametrize(
    "fault",
    [
        LinkFault.NOTHING,
        LinkFault.BEYOND_THE_VOCABULARY,
        LinkFault.TOO_FEW_CONFIDENCES,
        LinkFault.ALWAYS_OUT_OF_STEP,
        LinkFault.REQUEST_LATE,
        LinkFault.ANSWER_LATE,
        LinkFault.WRONG_TOKENS,
    ],
)
def test_useless_drafter_is_hardly_asked(fault: LinkFault) -> None:
    language = babble()

    async def main() -> int:
        setup = Drafter(ScriptedDrafter(language), [fault])
        async with harness(ScriptedTarget(language), [setup], pass_s=1e-7) as home:
            await home.answer(request(max_tokens=400))
            return len(home.links["drafter-0"].asked)

    assert run(main()) < 150  # of 400 rounds; a drafter out of step is asked twice


def test_drafter_linked_during_a_request_is_used() -> None:
    language = babble()

    async def main() -> Answer:
        setup = Drafter(ScriptedDrafter(language))
        async with harness(ScriptedTarget(language), [setup]) as home:
            link, observe = home.links.pop("drafter-0"), home.planner.statistics.observe_pass

            def link_after_some(report: PassReport) -> None:
                observe(report)
                if home.verifier.num_passes == 20:
                    home.links["drafter-0"] = link
                    home.planner.statistics.add_link("drafter-0")

            home.planner.statistics.observe_pass = link_after_some  # type: ignore[method-assign]
            return await home.answer(request(max_tokens=200))

    answer = run(main())
    assert 15 < answer.metrics.num_rounds < 120


def test_drafter_is_asked_up_to_its_context_and_the_reason_is_reported() -> None:
    language = babble()

    async def main() -> tuple[list[int], Answer]:
        setup = Drafter(ScriptedDrafter(language))
        async with harness(ScriptedTarget(language), [setup]) as home:
            link = home.links["drafter-0"]
            link.max_context = 40
            answer = await home.answer(request(max_tokens=100))
            return [asked.prefix_len for asked in link.asked], answer

    lengths, answer = run(main())
    assert 20 < max(lengths) <= 40
    assert "drafter-0 reads 40 tokens at most, the text has" in answer.metrics.plan


@pytest.mark.parametrize("max_context", [0, 1 << 30])
def test_no_drafter_is_asked_beyond_the_longest_request(max_context: int) -> None:
    async def main() -> None:
        async with harness(ScriptedTarget(babble()), [Drafter(ScriptedDrafter(babble()))]) as home:
            home.links["drafter-0"].max_context = max_context
            sequence = Prefix(range(LONGEST_PREFIX))
            draft_client = DraftClient(
                key="a/1", sequence=sequence, noise=SharedNoise(), num_vocabulary=1 << 20,
                links=lambda: home.links, statistics=home.planner.statistics,
                metrics=RequestMetrics(),
            )  # fmt: skip
            assert list(draft_client.linked) == ["drafter-0"]
            sequence.extend([1])
            assert not draft_client.linked

    run(main())


def test_drafter_with_unknown_context_is_asked_for_any_length() -> None:
    language = babble()

    async def main() -> list[int]:
        async with harness(ScriptedTarget(language), [Drafter(ScriptedDrafter(language))]) as home:
            await home.answer(request(max_tokens=100))
            return [asked.prefix_len for asked in home.links["drafter-0"].asked]

    assert max(run(main())) > 80


def test_policy_target_alone_gives_the_same_text_without_drafters() -> None:
    language = babble()

    async def main() -> None:
        async with harness(ScriptedTarget(language), [Drafter(ScriptedDrafter(language))]) as home:
            asked = request(policy="target-alone", max_tokens=20)
            answer = await home.answer(asked)
            assert answer.text == alone(language, asked).text
            assert answer.metrics.acceptance_histogram == (19,)
            assert home.links["drafter-0"].asked == []

    run(main())


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "target-alone"])
def test_every_policy_speculates(policy: str) -> None:
    language = babble()
    asked = request(policy=policy, max_tokens=120)
    setups = [Drafter(ScriptedDrafter(language, hits=hits)) for hits in (0.3, 1.0)]
    answer = answer_of(language, asked, *setups)
    assert answer.text == alone(language, asked).text
    # CoSine drafts little for a target that is never idle.
    assert answer.metrics.num_accepted_tokens > (20 if policy == "cosine-paper" else 60)


@pytest.mark.parametrize(
    ("policy", "is_ahead"), [("edgecosine-without-adaptivity", True), ("specinfer", False)]
)
def test_next_tree_is_ready_with_the_result_if_drafters_draft_ahead(
    policy: str, *, is_ahead: bool
) -> None:
    language = babble()

    async def main() -> None:
        after_drafts = outlasting(lambda: home.links["drafter-0"])
        target = ScriptedTarget(language, before_pass=after_drafts)
        async with harness(target, [Drafter(ScriptedDrafter(language))]) as home:
            answer = await home.answer(request(policy=policy, max_tokens=600))
            asked = home.links["drafter-0"].asked
            waited_for = [each for each in asked if not each.is_ahead]
            if is_ahead:
                assert len(waited_for) < 0.5 * answer.metrics.num_rounds
            else:
                assert len(waited_for) >= answer.metrics.num_rounds
                assert len(asked) == len(waited_for)

    run(main())


def test_stepwise_fusion_asks_again_after_every_piece_of_the_trunk() -> None:
    language = babble()

    async def main() -> None:
        setups = [Drafter(ScriptedDrafter(language)) for _ in range(2)]
        async with harness(ScriptedTarget(language), setups) as home:
            await home.answer(request(policy="cosine-paper:idle=0", max_tokens=60))
            asked = home.links["drafter-0"].asked[1:]
            assert {each.num_tokens for each in asked} == {1}
            lengths = [each.prefix_len for each in asked]
            steps = [after - before for before, after in itertools.pairwise(lengths)]
            assert steps.count(1) > len(steps) // 2

    run(main())


def test_drafters_continue_a_common_trunk_and_the_text_stays_the_same() -> None:
    language = babble()

    async def answer(policy: str) -> Answer:
        setups = [Drafter(AlternatingDrafter(language, parity)) for parity in (0, 1)]
        async with harness(ScriptedTarget(language), setups) as home:
            return await home.answer(request(max_tokens=200, policy=policy, trace=True))

    stepping, once = run(answer("cosine-paper:idle=0")), run(answer("specinfer"))
    assert stepping.text == once.text == alone(language, request(max_tokens=200)).text
    assert stepping.metrics.num_rounds < 0.7 * once.metrics.num_rounds


def test_concurrent_sessions_give_the_texts_of_each_alone() -> None:
    language = babble()
    asked = [
        request(
            f"{number} " * (1 + 7 * number),
            request_id=str(number),
            sampling=Sampling(temperature=0.8, seed=number),
            max_tokens=10 + 9 * number,
        )
        for number in range(4)
    ]

    async def main() -> list[Answer]:
        setups = [Drafter(ScriptedDrafter(language, hits=hits)) for hits in (1.0, 0.5)]
        async with harness(ScriptedTarget(language), setups) as home:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(home.answer(each)) for each in asked]
            assert max(map(len, home.target.batches)) > 1
            return [task.result() for task in tasks]

    assert [answer.text for answer in run(main())] == [alone(language, each).text for each in asked]


@pytest.mark.parametrize(
    ("text", "changes", "expected", "reason"),
    [
        ("plain", {}, "plain", "stop"),
        ("plain", {"max_tokens": 3}, "pla", "length"),
        ("plain", {"max_tokens": 5}, "plain", "length"),
        ("one stop two", {"stop": ("stop",)}, "one ", "stop"),
        ("one stop two", {"stop": ("two", "one")}, "", "stop"),
        ("one sto", {"stop": ("stop",)}, "one sto", "stop"),
        ("one sto", {"stop": ("stop",), "max_tokens": 6}, "one st", "length"),
        ("abcd and more", {"stop": ("abcdefg",)}, "abcd and more", "stop"),
        ("aaab", {"stop": ("aab",)}, "a", "stop"),
        ("naïve café", {}, "naïve café", "stop"),
        ("né", {"max_tokens": 2}, "n\ufffd", "length"),
        ("x😀y", {"stop": ("😀",)}, "x", "stop"),
        ("x😀y", {"max_tokens": 3}, "x\ufffd", "length"),
        ("plain", {"sampling": Sampling(min_tokens=7), "max_tokens": 8}, "plainaa", "stop"),
        ("a.b.c.", {"sampling": Sampling(min_tokens=2), "stop": (".",)}, "a.b", "stop"),
        ("plain", {"sampling": Sampling(stop_token_ids=(ord("i"),))}, "pla", "stop"),
        ("plain", {"sampling": Sampling(stop_token_ids=(105,)), "ignore_eos": True}, "pla", "stop"),
    ],
)
@pytest.mark.parametrize("hits", [0.0, 1.0])
def test_text_ends_where_it_should(
    text: str, changes: dict[str, Any], expected: str, reason: str, hits: float
) -> None:
    language = recital("To be", text.encode())
    answer = answer_of(language, request(**changes), Drafter(ScriptedDrafter(language, hits=hits)))
    assert (answer.text, answer.finish_reason) == (expected, reason)


def test_end_token_is_no_end_when_it_is_ignored() -> None:
    language = recital("To be", b"one", 256, *b"two")
    answer = answer_of(language, request(ignore_eos=True, max_tokens=7))
    assert (answer.text, answer.finish_reason, answer.num_tokens) == ("onetwo", "length", 7)


def test_text_is_yielded_once_it_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecosine.node.target.session.YIELD_EVERY_S", 0.0)
    language = recital("To be", "s€ stay stop".encode())

    async def main() -> list[str]:
        async with harness(ScriptedTarget(language)) as home:
            steps = await home.ask(request(stop=("stop",)))
            assert isinstance(steps[0], Started)
            return [step.text for step in steps if isinstance(step, Delta)]

    assert run(main()) == ["s€", " ", "sta", "y", " "]


def test_text_of_quick_rounds_is_yielded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecosine.node.target.session.YIELD_EVERY_S", math.inf)
    language = recital("To be", b"one and all")

    async def main() -> list[str]:
        async with harness(ScriptedTarget(language)) as home:
            steps = await home.ask(request(max_tokens=11))
            return [step.text for step in steps if isinstance(step, Delta)]

    assert run(main()) == ["one and all"]


@pytest.mark.parametrize("yield_every_s", [0.0, math.inf])
def test_every_token_is_yielded_once(yield_every_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecosine.node.target.session.YIELD_EVERY_S", yield_every_s)
    language = babble()
    asked = request(max_tokens=12, ignore_eos=True, policy="target-alone")

    async def main() -> tuple[list[tuple[int, ...]], Answer]:
        async with harness(ScriptedTarget(language)) as home:
            steps = await home.ask(asked)
            committed = [
                step.committed if isinstance(step, Delta) else step
                for step in steps
                if isinstance(step, Delta | Committed)
            ]
            answer = steps[-1]
            assert isinstance(answer, Answer)
            return [step.tokens for step in committed], answer

    rounds, answer = run(main())
    assert len(rounds) == (1 if yield_every_s else answer.num_tokens)
    assert [token for tokens in rounds for token in tokens] == list(alone(language, asked).tokens)


@pytest.mark.parametrize("yield_every_s", [0.0, math.inf])
def test_resumed_session_yields_all_text(
    yield_every_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecosine.node.target.session.YIELD_EVERY_S", yield_every_s)
    language = babble()
    asked = request(max_tokens=12, ignore_eos=True)
    whole = alone(language, asked)

    async def main(num_resumed: int) -> list[Delta]:
        async with harness(ScriptedTarget(language)) as home:
            said = Committed(tuple(whole.tokens[:num_resumed]))
            steps = await home.ask(replace(asked, resumed=said))
            return [step for step in steps if isinstance(step, Delta)]

    for num_resumed in range(1, len(whole.tokens) + 1):
        deltas = run(main(num_resumed))
        assert "".join(delta.text for delta in deltas) == whole.text
        assert [delta.index for delta in deltas] == list(range(len(deltas)))


def test_session_releases_everything_wherever_it_is_cancelled() -> None:
    """Cancel before the first, second, ... resumption of a session, until it ends by itself."""
    language = babble()
    setups = 2

    async def cancelled_after(num_yields: int) -> bool:
        engines = [ScriptedDrafter(language) for _ in range(setups)]
        target = ScriptedTarget(language)
        async with harness(target, [Drafter(engine) for engine in engines]) as home:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(home.answer(request(max_tokens=30)))
                for _ in range(num_yields):
                    await asyncio.sleep(0)
                task.cancel()
            await assert_nothing_is_held(home, engines)
            return task.cancelled()

    async def main() -> None:
        outcomes = [await cancelled_after(num_yields) for num_yields in (*range(30), 60, 120)]
        assert outcomes[0]
        assert sum(outcomes) > 10

    run(main())


def test_session_closed_between_deltas_releases_everything() -> None:
    language = babble()

    async def main() -> None:
        engine = ScriptedDrafter(language)
        async with harness(ScriptedTarget(language), [Drafter(engine)]) as home:
            async with aclosing(home.service.answer(request(max_tokens=40))) as steps:
                async for step in steps:
                    if isinstance(step, Delta) and step.index == 2:
                        break
            assert home.links["drafter-0"].released == ["a/1"]
            await assert_nothing_is_held(home, [engine])

    run(main())


async def assert_nothing_is_held(home: TargetHarness, engines: list[ScriptedDrafter]) -> None:
    """Check that all slots are free for the next request."""
    assert [repr(worker) for worker in home.drafters] == [IDLE] * len(engines)
    assert repr(home.service).startswith("<TextService scripted [0 sessions")
    newcomer = home.planner.statistics.open("edgecosine")
    others = home.planner.statistics.co_batched(newcomer)
    assert (others.requests, others.rows, others.tokens) == (0, 0, 0.0)
    home.planner.statistics.close(newcomer)
    await home.answer(request("another", request_id="2", max_tokens=12))
    assert set(home.target.fed) <= {"a/2"}
    assert "[0 waiting, 0 expected" in repr(home.verifier)
    for engine in engines:
        # The engine thread frees slots with its next pass.
        await asyncio.get_running_loop().run_in_executor(None, engine.wait_until_held_by, {"a/2"})


def test_silent_drafter_is_waited_for_until_the_deadline() -> None:
    language = babble()

    async def main() -> Answer:
        setups = [Drafter(ScriptedDrafter(language)) for _ in range(2)]
        async with harness(ScriptedTarget(language), setups) as home:
            for node_id in home.links:
                home.planner.statistics.observe_answer(node_id, 0.001, 0.001, 4)
            home.links["drafter-0"].held = asyncio.Event()
            answer = await home.answer(request(max_tokens=60))
            assert home.links["drafter-0"].released == ["a/1"]
            return answer

    answer = run(main())
    silent = answer.metrics.drafters.get("drafter-0")
    assert silent is None or silent.accepted == 0
    assert answer.metrics.drafters["drafter-1"].accepted > 30


def test_text_says_who_guessed_it() -> None:
    language = babble()

    async def main() -> None:
        drafters = [Drafter(ScriptedDrafter(language)), Drafter(ScriptedDrafter(babble(salt=1)))]
        async with harness(ScriptedTarget(language), drafters) as home:
            steps = await home.ask(request(max_tokens=60, origins=True))
            plain = await home.ask(request(request_id="2", max_tokens=60))
        assert not any(step.origins for step in plain if isinstance(step, Delta))
        deltas = [step for step in steps if isinstance(step, Delta)]
        assert all(sum(n for n, _ in each.origins) == len(each.text) for each in deltas)
        # A token of the scripted language is a character.
        by_name: Counter[str] = Counter()
        for delta in deltas:
            for length, names in delta.origins:
                for name in names.split("+"):
                    by_name[name] += length
        answer = steps[-1]
        assert isinstance(answer, Answer)
        shares = answer.metrics.drafters
        assert shares["drafter-0"].accepted - 12 <= by_name["drafter-0"]
        assert 0 < by_name["drafter-0"] <= shares["drafter-0"].accepted
        assert by_name[""] > 0

    run(main())


@pytest.mark.parametrize("num_drafters", [0, 1])
def test_repeated_text_takes_fewer_passes_without_a_drafter_that_is_right(
    num_drafters: int,
) -> None:
    text = "one two three " * 5
    language = recital("To be", text.encode())
    useless = [Drafter(ScriptedDrafter(language, hits=0.0)) for _ in range(num_drafters)]
    answer = answer_of(language, request(max_tokens=200), *useless)
    assert answer.text == text
    metrics = answer.metrics
    assert sum(metrics.acceptance_histogram) < len(text) / 2
    assert metrics.drafters[TEXT].accepted > len(text) / 2
