"""Splits a request with `n` choices into requests, and joins their answers.

Each choice is an independent session with its own key and seed. The first one has the request's
seed, so its text is that of the request without `n`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.result import Answer, CommitteeUse, DrafterShare, Metrics


def choices_of(request: Request) -> tuple[Request, ...]:
    """One request for each choice, in order."""
    return tuple(
        replace(
            request,
            n=1,
            choice=choice,
            sampling=replace(request.sampling, seed=choice_seed(request.sampling.seed, choice)),
        )
        for choice in range(request.n)
    )


def choice_seed(seed: int, choice: int) -> int:
    """The 64-bit seed of a choice; the first choice has the request's seed."""
    if not choice:
        return seed
    spelt = seed.to_bytes(8, "little") + choice.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(spelt, digest_size=8).digest(), "little")


def join_answers(answers: Sequence[Answer]) -> Answer:
    """The answer to the request, from the answers to its choices in order.

    Counts are summed. Of times, as the sessions run in parallel, `queue_s` is the minimum and the
    others are the maximum.
    """
    if len(answers) == 1:
        return answers[0]
    return replace(
        answers[0],
        choices=tuple(choice for answer in answers for choice in answer.choices),
        metrics=_join_metrics([answer.metrics for answer in answers]),
    )


def _join_metrics(metrics: Sequence[Metrics]) -> Metrics:
    histograms = zip_longest(*(each.acceptance_histogram for each in metrics), fillvalue=0)
    names = sorted({name for each in metrics for name in each.drafters})
    return Metrics(
        acceptance_histogram=tuple(map(sum, histograms)),
        num_draft_tokens=sum(each.num_draft_tokens for each in metrics),
        num_speculative_rounds=sum(each.num_speculative_rounds for each in metrics),
        num_ahead_rounds=sum(each.num_ahead_rounds for each in metrics),
        drafters={
            name: _join_shares([each.drafters.get(name, DrafterShare()) for each in metrics])
            for name in names
        },
        plan=metrics[0].plan,
        queue_s=min(each.queue_s for each in metrics),
        prefill_s=max(each.prefill_s for each in metrics),
        decode_s=max(each.decode_s for each in metrics),
        rounds=metrics[0].rounds,
        committee=_join_committee([each.committee for each in metrics]),
    )


def _join_committee(uses: Sequence[CommitteeUse | None]) -> CommitteeUse | None:
    """The use of the first choice, or of the first one that was not drawn from all members."""
    known = [use for use in uses if use is not None]
    return min(known, key=lambda use: use.is_exact, default=None)


def _join_shares(shares: Sequence[DrafterShare]) -> DrafterShare:
    return DrafterShare(
        proposed=sum(share.proposed for share in shares),
        accepted=sum(share.accepted for share in shares),
        late=sum(share.late for share in shares),
        led=sum(share.led for share in shares),
        first=sum(share.first for share in shares),
    )
