"""A committee's text is that of one process that averages whole distributions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

from edgecosine.engine.base import Constraint, FailedWork, TokenMask, VerificationResult, VerifyWork
from edgecosine.engine.sampling import draw, logprobs_of
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.member import TransformerMember
from edgecosine.node.target.committee import Committee
from edgecosine.node.target.member_client import CannotJudge
from edgecosine.protocol.api.request import Logprobs, Sampling
from edgecosine.protocol.wire.messages import Judgement, JudgeRequest, OutOfStep, Reveal
from edgecosine.protocol.wire.tree import EMPTY_TREE, TokenTree
from tests.engine.decoding import Drafts, nothing, random_trees
from tests.engine.models import VOCABULARY, build, prompt_of
from tests.node.target.committee_harness import CodedLink, CommitteeHarness, committee_of

WEIGHTS = [0.5, 0.3, 0.2]
NAMES = ["own", "second", "third"]
EOS = 2
NUM_TOKENS = 8

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.8, seed=3),
    Sampling(temperature=1.0, seed=2**63 + 5),
    Sampling(temperature=1.0, top_p=0.8, seed=6),
    Sampling(temperature=0.7, top_k=5, min_p=0.02, seed=7),
    Sampling(temperature=1.3, min_p=0.05, presence_penalty=0.7, frequency_penalty=-0.4, seed=8),
    Sampling(presence_penalty=1.0, logit_bias=((5, 4.0), (9, -100.0)), min_tokens=6),
]


def _model(number: int) -> torch.nn.Module:
    return build("llama", layers=2, seed=number)


@pytest.fixture(scope="module")
def models() -> list[torch.nn.Module]:
    return [_model(number) for number in range(3)]


@cache
def engine_of(number: int, replica: int = 0) -> TransformerMember:
    """The engine of a model; tests share it, as requests share a node."""
    slots = SlotModel(_model(number), slots=4, slot_size=256, threads=1, kernels=None)
    return TransformerMember(slots, slots=4, max_context=200, chunk=16)


def engines_of(*numbers: int) -> dict[str, list[TransformerMember]]:
    return {NAMES[seat]: [engine_of(number)] for seat, number in enumerate(numbers)}


class Even:
    """A constraint: even tokens."""

    def allowed(self, answer: Sequence[int]) -> TokenMask | None:
        return TokenMask(bytes([0b01010101]) * (VOCABULARY // 8 + 1))

    def forced(self, answer: Sequence[int], most: int) -> tuple[int, ...]:
        return ()

    def cut(self, answer: Sequence[int], tree: TokenTree) -> TokenTree:
        return tree


@dataclass
class Text:
    tokens: list[int]
    logprobs: list[Logprobs]


@torch.no_grad()
def averaged(
    models: Sequence[torch.nn.Module],
    weights: Sequence[float],
    prompt: list[int],
    sampling: Sampling,
    num_top: int | None = None,
    constraint: Constraint | None = None,
) -> Text:
    """One process averages whole distributions, and samples as for one model."""
    text = Text([], [])
    for _ in range(NUM_TOKENS):
        tokens = torch.tensor([prompt + text.tokens])
        rows = [model(tokens).logits[0, -1].double() for model in models]
        row = sum(w * torch.softmax(row, 0) for w, row in zip(weights, rows, strict=True)).log()
        banned = [EOS] if len(text.tokens) < sampling.min_tokens else []
        position = len(prompt) + len(text.tokens)
        allowed = constraint and constraint.allowed(text.tokens)
        token = draw(row, position, sampling, text.tokens, prompt, banned, allowed)
        text.tokens.append(token)
        if num_top is not None:
            text.logprobs.append(logprobs_of(row, token, num_top))
    return text


async def text_of(
    committee: Committee,
    prompt: list[int],
    sampling: Sampling,
    drafts: Drafts = nothing,
    *,
    key: str = "a",
    num_top: int | None = None,
    num_tokens: int = NUM_TOKENS,
    constraint: Constraint | None = None,
) -> tuple[Text, list[VerificationResult]]:
    """The committee's text under these drafts, and its verification results."""
    sequence, results, text = list(prompt), list[VerificationResult](), Text([], [])
    tree = EMPTY_TREE
    while len(text.tokens) < num_tokens:
        work = VerifyWork(
            key, tuple(sequence), len(prompt), tree, sampling, num_top, constraint=constraint
        )
        step, _ = await committee.run([work], [])
        [result] = step.outcomes
        if isinstance(result, FailedWork):
            raise result.error
        assert isinstance(result, VerificationResult)
        results.append(result)
        new = [*(tree.tokens[node] for node in result.path), result.bonus]
        sequence += new
        text.tokens += new
        text.logprobs += result.logprobs
        tree = drafts(sequence)
    return Text(text.tokens[:num_tokens], text.logprobs[:num_tokens]), results


@pytest.mark.parametrize(
    ("sampling", "listed"),
    [
        *((sampling, 1) for sampling in SAMPLINGS),
        *((sampling, 16) for sampling in SAMPLINGS[1:4]),
        (SAMPLINGS[1], VOCABULARY),
    ],
)
def test_text_is_that_of_averaged_distributions(
    models: list[torch.nn.Module], sampling: Sampling, listed: int
) -> None:
    prompt = prompt_of(23)
    expected = averaged(models, WEIGHTS, prompt, sampling)
    drafts = random_trees(prompt + expected.tokens, VOCABULARY, seed=listed)

    async def scenario() -> None:
        engines = engines_of(0, 1, 2)
        async with committee_of(
            engines, WEIGHTS, vocabulary=VOCABULARY, listed=listed, eos_tokens=[EOS]
        ) as harness:
            text, results = await text_of(harness.committee, prompt, sampling, drafts)
            assert text.tokens == expected.tokens
            assert sum(len(result.path) for result in results) > 1
            # What a plain pass gives: drafts have changed nothing.
            plain, _ = await text_of(harness.committee, prompt, sampling, key="b")
            assert plain.tokens == expected.tokens

    asyncio.run(scenario())


@pytest.mark.parametrize("sampling", [SAMPLINGS[0], SAMPLINGS[1], SAMPLINGS[3]])
def test_log_probabilities_are_the_mixtures(
    models: list[torch.nn.Module], sampling: Sampling
) -> None:
    prompt = prompt_of(9)
    expected = averaged(models[:2], [0.4, 0.6], prompt, sampling, num_top=3)

    async def scenario() -> None:
        engines = engines_of(0, 1)
        async with committee_of(engines, [0.4, 0.6], vocabulary=VOCABULARY, listed=2) as harness:
            text, _ = await text_of(harness.committee, prompt, sampling, num_top=3)
        assert text.tokens == expected.tokens
        for found, wanted in zip(text.logprobs, expected.logprobs, strict=True):
            assert found.drawn == pytest.approx(wanted.drawn, abs=1e-4)
            assert [token for token, _ in found.top] == [token for token, _ in wanted.top]

    asyncio.run(scenario())


@pytest.mark.parametrize("sampling", [SAMPLINGS[0], SAMPLINGS[1], SAMPLINGS[3]])
def test_constrained_text_is_that_of_averaged_distributions(
    models: list[torch.nn.Module], sampling: Sampling
) -> None:
    prompt = prompt_of(9)
    expected = averaged(models[:2], [0.4, 0.6], prompt, sampling, constraint=Even())

    async def scenario() -> None:
        async with committee_of(
            engines_of(0, 1), [0.4, 0.6], vocabulary=VOCABULARY, listed=4
        ) as harness:
            text, _ = await text_of(harness.committee, prompt, sampling, constraint=Even())
            assert text.tokens == expected.tokens
            assert all(token % 2 == 0 for token in text.tokens)

    asyncio.run(scenario())


def test_sessions_that_share_passes_do_not_change_each_other(
    models: list[torch.nn.Module],
) -> None:
    prompts = [prompt_of(5 + 17 * i, seed=i) for i in range(3)]

    async def scenario() -> None:
        engines = engines_of(0, 1, 2)
        async with committee_of(engines, WEIGHTS, vocabulary=VOCABULARY) as harness:
            works = [
                VerifyWork(str(i), tuple(prompt), len(prompt), EMPTY_TREE, SAMPLINGS[i])
                for i, prompt in enumerate(prompts)
            ]
            step, _ = await harness.committee.run(works, [])
        for prompt, sampling, outcome in zip(prompts, SAMPLINGS, step.outcomes, strict=False):
            assert isinstance(outcome, VerificationResult)
            assert outcome.bonus == averaged(models, WEIGHTS, prompt, sampling).tokens[0]

    asyncio.run(scenario())


def test_copies_of_one_model_give_its_text(models: list[torch.nn.Module]) -> None:
    prompt = prompt_of(11)

    async def scenario() -> None:
        for sampling in SAMPLINGS[:4]:
            engines = {name: [engine_of(0, seat)] for seat, name in enumerate(NAMES)}
            async with committee_of(engines, WEIGHTS, vocabulary=VOCABULARY) as harness:
                text, _ = await text_of(harness.committee, prompt, sampling)
            assert text.tokens == averaged(models[:1], [1.0], prompt, sampling).tokens

    asyncio.run(scenario())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 -- there is no event for that
        await asyncio.sleep(0)


class Running:
    """A committee of two, each member with two nodes of the same model."""

    def __init__(self, models: list[torch.nn.Module]) -> None:
        self.models, self.prompt = models[:2], prompt_of(13)
        self.sampling = Sampling(temperature=0.8, seed=11)
        self.weights = [0.5, 0.5]
        self.expected = averaged(self.models, self.weights, self.prompt, self.sampling).tokens
        self.first = averaged(self.models, self.weights, self.prompt, self.sampling).tokens[:4]

    def engines(self, num_nodes: int) -> dict[str, list[TransformerMember]]:
        return {"own": [engine_of(0)], "second": [engine_of(1, i) for i in range(num_nodes)]}

    async def rest(self, harness: CommitteeHarness) -> list[int]:
        """The text, after its first four tokens."""
        text, _ = await text_of(
            harness.committee, self.prompt + self.first, self.sampling, num_tokens=4
        )
        return text.tokens


def test_replica_takes_over_a_member_that_freezes(models: list[torch.nn.Module]) -> None:
    running = Running(models)

    async def scenario() -> None:
        async with committee_of(
            running.engines(2), running.weights, vocabulary=VOCABULARY, listed=2
        ) as harness:
            harness.links["second"]["second-0"].held = asyncio.Event()
            assert await running.rest(harness) == running.expected[4:]
            assert len(harness.links["second"]["second-1"].requests) >= 4

    asyncio.run(scenario())


def test_strict_committee_waits_for_a_lost_member_and_goes_on_with_the_same_text(
    models: list[torch.nn.Module],
) -> None:
    running = Running(models)

    async def scenario() -> None:
        async with committee_of(
            running.engines(1), running.weights, vocabulary=VOCABULARY
        ) as harness:
            harness.links["second"]["second-0"].held = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                rest = group.create_task(running.rest(harness), name="rest")
                await until(lambda: bool(harness.links["second"]["second-0"].requests))
                harness.remove("second", "second-0")
                harness.workers["second-0"].drop_all()
                await until(lambda: harness.committee.stall is not None)
                assert harness.committee.stall == "member second away"
                harness.add("second", "second-0", harness.link("second-0"))
            assert rest.result() == running.expected[4:]
            assert harness.committee.stall is None

    asyncio.run(scenario())


def test_renormalising_committee_goes_on_with_the_others_and_says_so(
    models: list[torch.nn.Module],
) -> None:
    running = Running(models)

    async def scenario() -> None:
        async with committee_of(
            running.engines(1), running.weights, vocabulary=VOCABULARY, waits=False
        ) as harness:
            harness.remove("second", "second-0")
            text, results = await text_of(harness.committee, running.prompt, running.sampling)
            assert (
                text.tokens
                == averaged(running.models[:1], [1.0], running.prompt, running.sampling).tokens
            )
            for result in results:
                assert result.committee is not None
                assert set(result.committee.seconds) == {"own"}
                assert not result.committee.is_exact

    asyncio.run(scenario())


class CutAt:
    """Cuts a member's only or first link when a request of a kind is on its way over it."""

    def __init__(self, harness: CommitteeHarness, kind: type, *, skipped: int = 0) -> None:
        self.harness, self.kind, self.skipped = harness, kind, skipped
        self.is_cut = asyncio.Event()
        harness.links["second"]["second-0"].on_request = self.on_request

    def on_request(self, request: object) -> None:
        if isinstance(request, self.kind) and not self.is_cut.is_set():
            self.skipped -= 1
            if self.skipped < 0:
                self.harness.remove("second", "second-0")
                self.is_cut.set()


def test_replica_takes_over_where_a_link_is_cut_within_a_round(
    models: list[torch.nn.Module],
) -> None:
    running = Running(models)

    async def scenario() -> None:
        async with committee_of(
            running.engines(2), running.weights, vocabulary=VOCABULARY, listed=1
        ) as harness:
            harness.links["second"]["second-1"].held = CutAt(harness, Reveal).is_cut
            assert await running.rest(harness) == running.expected[4:]
            assert harness.committee.totals.num_judged_again == 1

    asyncio.run(scenario())


def test_strict_committee_waits_where_a_link_is_cut_within_a_round(
    models: list[torch.nn.Module],
) -> None:
    running = Running(models)

    async def scenario() -> None:
        async with committee_of(
            running.engines(1), running.weights, vocabulary=VOCABULARY, listed=1
        ) as harness:
            cut = CutAt(harness, Reveal)
            async with asyncio.TaskGroup() as group:
                rest = group.create_task(running.rest(harness), name="rest")
                await cut.is_cut.wait()
                await until(lambda: harness.committee.stall == "member second away")
                harness.add("second", "second-0", harness.link("second-0"))
            assert rest.result() == running.expected[4:]

    asyncio.run(scenario())


def test_renormalising_committee_marks_from_where_a_member_was_cut_off(
    models: list[torch.nn.Module],
) -> None:
    running = Running(models)
    prompt, sampling = running.prompt, running.sampling
    alone = averaged(models[:1], [1.0], prompt + running.expected[:3], sampling).tokens

    async def scenario() -> None:
        async with committee_of(
            running.engines(1), running.weights, vocabulary=VOCABULARY, waits=False
        ) as harness:
            CutAt(harness, JudgeRequest, skipped=3)
            text, results = await text_of(harness.committee, prompt, sampling)
        assert text.tokens == [*running.expected[:3], *alone[:5]]
        rounds = [result.committee for result in results]
        assert [len(each.seconds) for each in rounds if each] == [2, 2, 2, 1, 1, 1, 1, 1]
        assert [each.is_exact for each in rounds if each] == [True] * 3 + [False] * 5

    asyncio.run(scenario())


def test_member_with_fewer_slots_than_requests_judges_them_all(
    models: list[torch.nn.Module],
) -> None:
    prompts = [prompt_of(5 + 17 * i, seed=i) for i in range(6)]
    slots = SlotModel(_model(1), slots=2, slot_size=256, threads=1, kernels=None)
    small = TransformerMember(slots, slots=2, max_context=200, chunk=16)
    engines = {"own": [engine_of(0)], "second": [small]}

    async def scenario() -> None:
        async with committee_of(
            engines, [0.5, 0.5], vocabulary=VOCABULARY, listed=1, max_batch=2
        ) as harness:
            works = [
                VerifyWork(str(i), tuple(prompt), len(prompt), EMPTY_TREE, SAMPLINGS[i])
                for i, prompt in enumerate(prompts)
            ]
            step, _ = await harness.committee.run(works, [])
            assert any(
                isinstance(request, Reveal)
                for request in harness.links["second"]["second-0"].requests
            )
        for prompt, sampling, outcome in zip(prompts, SAMPLINGS, step.outcomes, strict=False):
            assert isinstance(outcome, VerificationResult)
            assert outcome.bonus == averaged(models[:2], [0.5, 0.5], prompt, sampling).tokens[0]

    asyncio.run(scenario())


class Forgetful(CodedLink):
    """A member that has dropped its rows whenever it is asked about one."""

    def change(self, answer: Judgement | OutOfStep) -> Judgement | OutOfStep:
        if isinstance(last := self.requests[-1], Reveal):
            return OutOfStep(last.request_id, last.round, 0)
        return answer


def test_request_fails_where_a_member_drops_its_rows_every_time(
    models: list[torch.nn.Module],
) -> None:
    running = Running(models)

    async def scenario() -> None:
        engines = running.engines(1)
        async with committee_of(
            engines, running.weights, vocabulary=VOCABULARY, listed=1, link_type=Forgetful
        ) as harness:
            with pytest.raises(CannotJudge, match="dropped its rows"):
                await running.rest(harness)

    asyncio.run(scenario())


class Lying(CodedLink):
    """A member whose log-sum-exp is NaN."""

    def change(self, answer: Judgement | OutOfStep) -> Judgement | OutOfStep:
        if isinstance(answer, OutOfStep):
            return answer
        size = len(answer.lse) // 4
        return Judgement(
            **{name: getattr(answer, name) for name in answer.__struct_fields__ if name != "lse"},
            lse=np.full(size, np.nan, dtype=np.float32).tobytes(),
        )


def test_node_with_impossible_rows_is_put_out_and_its_replica_decides(
    models: list[torch.nn.Module],
) -> None:
    running = Running(models)

    async def scenario() -> None:
        async with committee_of(
            running.engines(2), running.weights, vocabulary=VOCABULARY
        ) as harness:
            lying = Lying(harness.links["second"]["second-0"].member, harness.workers["second-0"])
            harness.links["second"]["second-0"] = lying
            harness.links["second"]["second-1"].held = held = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                rest = group.create_task(running.rest(harness), name="rest")
                await until(lambda: bool(lying.put_out_for))
                harness.remove("second", "second-0")
                held.set()
            assert rest.result() == running.expected[4:]
            assert "NaN" in str(lying.put_out_for[0])

    asyncio.run(scenario())


def test_bytes_of_sixteen_tokens_are_those_of_the_format(models: list[torch.nn.Module]) -> None:
    async def scenario() -> None:
        engines = engines_of(0, 1, 2)
        async with committee_of(engines, WEIGHTS, vocabulary=VOCABULARY) as harness:
            work = VerifyWork("a", tuple(prompt_of(7)), 7, EMPTY_TREE, Sampling())
            step, _ = await harness.committee.run([work], [])
            [result] = step.outcomes
            assert isinstance(result, VerificationResult)
            assert result.committee is not None
            assert result.committee.num_rows == 2
            assert result.committee.num_asked_back == 0
            assert result.committee.num_bytes == 2 * (16 * 8 + 8)

    asyncio.run(scenario())
