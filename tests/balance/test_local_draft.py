"""The target's own drafts are used where repetitions last, and learned of elsewhere."""

from __future__ import annotations

import random

import pytest

from edgecosine.balance.cost_model import PassReport
from edgecosine.balance.local_draft import MOST_READ, MOST_TOKENS, TEXT, LocalDraft
from edgecosine.balance.plan import Plan
from edgecosine.balance.planner import Planner
from edgecosine.balance.round import Round, union_of
from edgecosine.fusion.ngram_table import MOST_COUNT, NgramTable
from edgecosine.protocol.wire.tree import ROOT, TokenTree
from tests.fusion.drafts import draft_of

PASS_S, ROW_S = 0.005, 0.0006
PASSAGE = list(range(100, 160))


def planner(ngrams: NgramTable | None = None) -> Planner:
    made = Planner(ngrams=ngrams)
    for rows in (1, 16):
        made.statistics.observe_pass(PassReport(rows, PASS_S + ROW_S * (rows - 1)))
    return made


def decode(made: Planner, prompt: list[int], answer: list[int], policy: str) -> tuple[int, int]:
    """Passes in which an answer is decoded, and the rows of drafts in them."""
    request = made.statistics.open(policy, num_prompt=len(prompt))
    own, text, num_passes, num_rows = LocalDraft(request, made.statistics), [*prompt], 0, 0
    while (done := len(text) - len(prompt)) < len(answer):
        tree = own.draft(text, len(answer) - done - 1)
        accepted = 0
        while accepted < len(tree) and tree.tokens[accepted] == answer[done + accepted]:
            accepted += 1
        text += answer[done : done + accepted + 1]
        own.observe(text)
        own.learn(text, len(prompt) + done)
        num_passes, num_rows = num_passes + 1, num_rows + len(tree)
    made.statistics.close(request)
    return num_passes, num_rows


def test_repeated_passage_takes_a_fraction_of_its_passes() -> None:
    num_passes, _ = decode(planner(), [*PASSAGE, 7, 8], [9, *PASSAGE], "edgecosine")
    assert num_passes < len(PASSAGE) / 3


def test_chance_repetitions_cost_less_than_a_hundredth() -> None:
    made, rng, cost_s, num_tokens = planner(), random.Random(0), 0.0, 0
    for _ in range(40):
        words = [rng.randrange(8) for _ in range(200)]
        num_passes, num_rows = decode(made, words[:72], words[72:], "edgecosine")
        cost_s += num_passes * PASS_S + num_rows * ROW_S
        num_tokens += 128
    assert cost_s < 1.01 * num_tokens * PASS_S
    state = made.statistics.drafter(TEXT)
    assert state.calibration(is_greedy=True).probability(0.45) < 0.2


def test_text_that_seldom_goes_on_as_before_costs_little_although_others_did() -> None:
    made = planner()
    for _ in range(10):
        decode(made, [*PASSAGE, 7, 8], [9, *PASSAGE], "edgecosine")
    # Four tokens recur every time, what follows them never does.
    verse = [token for number in range(25) for token in (1, 2, 3, 4, 300 + number)]
    num_passes, num_rows = decode(made, verse[:5], verse[5:], "edgecosine")
    assert num_passes * PASS_S + num_rows * ROW_S < 1.05 * (len(verse) - 5) * PASS_S


def test_answer_like_earlier_ones_takes_a_fraction_of_its_passes() -> None:
    made = planner()
    num_passes = [decode(made, [5, 6], PASSAGE, "edgecosine")[0] for _ in range(8)]
    assert num_passes[0] == len(PASSAGE)
    assert num_passes[-1] < len(PASSAGE) / 3


def test_drafters_are_compared_with_what_the_own_drafts_give_in_the_same_text() -> None:
    made = planner()
    looping = made.statistics.open("edgecosine")
    own, text = LocalDraft(looping, made.statistics), [*PASSAGE, *PASSAGE[:8]]
    while len(text) < 2 * len(PASSAGE):
        draft = own.draft(text, 50)
        text += PASSAGE[len(text) - len(PASSAGE) :][: 1 + len(draft)]
        own.observe(text)
    assert looping.trial.local_speedup > 1.5
    made.statistics.close(looping)
    fresh = made.statistics.open("edgecosine")
    own = LocalDraft(fresh, made.statistics)
    own.draft(PASSAGE, 50)
    own.observe([*PASSAGE, 7])
    assert fresh.trial.local_speedup == 1.0


def test_policies_do_not_learn_from_each_other() -> None:
    made = planner()
    for _ in range(8):
        decode(made, [5, 6], PASSAGE, "edgecosine")
    for policy in ("edgecosine-without-repetition", "edgecosine-without-ngrams", "target-alone"):
        assert decode(made, [5, 6], PASSAGE, policy)[0] == len(PASSAGE)


def test_ngrams_known_at_first_serve_the_first_request() -> None:
    known = NgramTable(12)
    for _ in range(MOST_COUNT):
        known.learn(PASSAGE, 0)
    made = planner(known)
    assert decode(made, [5, 6], PASSAGE, "edgecosine")[0] < len(PASSAGE) / 3


@pytest.mark.parametrize(
    ("repeated", "next_token", "source"),
    [(PASSAGE[1:3], PASSAGE[3], 2), ([50, 51, 52, 53, *PASSAGE[:3]], 7, 1)],
)
def test_more_probable_source_gives_the_token(
    repeated: list[int], next_token: int, source: int
) -> None:
    known = NgramTable(12)
    for _ in range(MOST_COUNT):
        known.learn(PASSAGE, 0)
    made = planner(known)
    own = LocalDraft(made.statistics.open("edgecosine"), made.statistics)
    tree = own.draft([*repeated, 7, 8, 9, *repeated], 50)
    assert (tree.tokens[0], tree.proposers[0]) == (next_token, source)


@pytest.mark.parametrize("policy", ["target-alone", "edgecosine-without-repetition"])
def test_other_policies_have_no_such_drafts(policy: str) -> None:
    num_passes, num_rows = decode(planner(), [*PASSAGE, 7], PASSAGE, policy)
    assert (num_passes, num_rows) == (len(PASSAGE), 0)


@pytest.mark.parametrize("row_s", [0.0, PASS_S])
def test_beside_other_requests_drafts_must_be_worth_their_rows(row_s: float) -> None:
    made = Planner()
    for rows in (1, 16):
        made.statistics.observe_pass(PassReport(rows, PASS_S + row_s * (rows - 1)))
    for _ in range(7):
        made.statistics.set_size(made.statistics.open("edgecosine"), 1, 1.0)
    num_passes, num_rows = decode(made, PASSAGE, PASSAGE, "edgecosine")
    if row_s:
        assert (num_passes, num_rows) == (len(PASSAGE), 0)
    else:
        assert num_passes < len(PASSAGE) / 3


def test_other_requests_expect_the_rows_of_a_draft_that_is_verified() -> None:
    made = planner()
    request, other = (made.statistics.open("edgecosine") for _ in range(2))
    own = LocalDraft(request, made.statistics)
    tree = own.draft([*PASSAGE, 7, *PASSAGE[:6]], 50)
    assert made.statistics.co_batched(other).rows == 1
    own.note_verified()
    others = made.statistics.co_batched(other)
    assert others.rows == 1 + len(tree) > 1
    assert 1.0 < others.tokens <= 1 + len(tree)


@pytest.mark.parametrize(
    ("policy", "tokens"), [("edgecosine", 5), ("edgecosine-without-fusion", 3)]
)
def test_without_fusion_the_most_promising_draft_is_verified(policy: str, tokens: int) -> None:
    made = planner()
    request = made.statistics.open(policy)
    request.own_draft = TokenTree((1, 2, 3), (ROOT, 0, 1), (0.9, 0.9, 0.9), (1, 1, 1))
    drafted = draft_of("d", 0, (7, 8), (0.9, 0.9))
    union = union_of([drafted], request, made.statistics.drafters)
    assert len(union.tree(20)) == tokens
    assert {1, 2, 3} <= {*union.tree(20).tokens}


def test_draft_fits_the_room_and_only_the_end_of_a_long_text_is_read() -> None:
    made = planner()
    own = LocalDraft(made.statistics.open("edgecosine"), made.statistics)
    text = [*PASSAGE, *range(1000, 1000 + MOST_READ), *PASSAGE[:6]]
    assert not len(own.draft(text, 8))
    text += range(2000, 2010)
    assert len(own.draft(text, 3)) == 3
    assert 3 < len(own.draft(text, 100)) <= MOST_TOKENS


def test_own_draft_is_verified_beside_those_of_drafters_and_alone() -> None:
    made = planner()
    request = made.statistics.open("edgecosine")
    own = LocalDraft(request, made.statistics)
    repeated = own.draft([*PASSAGE, *PASSAGE[:8]], 50).tokens
    drafted = draft_of("d", 0, (7, 8), (0.9, 0.9))
    assert made.fuse(request, Round(Plan()), 20).tokens == repeated
    both = made.fuse(request, Round(Plan(drafters=("d",), gamma=2), [drafted]), 20)
    assert {*repeated, 7, 8} <= {*both.tokens}
    assert not len(own.draft([*PASSAGE, *PASSAGE[:8], 1], 50))
    assert not len(made.fuse(request, Round(Plan()), 20))
