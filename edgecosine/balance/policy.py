"""Speculation policies by name. The text is the same under all of them except `RECONSTRUCTIONS`.

A policy is a set of switches for one runtime, so that a baseline differs from EdgeCoSine only in
its rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from edgecosine.balance.baselines.rules import (
    Baseline,
    Colocated,
    CosinePaper,
    SpecEdge,
    SpecInfer,
    TargetAlone,
)
from edgecosine.fusion.committee.draw_rule import Reconstruction

Routing = Literal["learned", "drawn"]

FIXED_GAMMA = 5
"""Draft length of the policy that does not adapt it."""
FIXED_DRAFTERS = 2
"""Maximum number of a request's drafters under policies that do not choose them by their gain."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Switches of the runtime.

    baseline           the rules of a published system, which then plans instead of EdgeCoSine
    max_drafters       most drafters that work on one request at a time
    routing            learned: by expected tokens per second; drawn: at random for each request
    fuses              whether several drafts, with the target's own one, make one tree; else the
                       most promising one is taken
    width              most probable tokens that a drafter reads per step; 0: chains only
    is_calibrated      whether confidences are calibrated by verification results
    is_ahead           whether drafters draft while the target verifies
    is_adaptive        whether lengths, trees and waits follow measured speeds
    scores_prompts     whether routing uses the drafters' NLL of the prompt
    uses_self_reports  whether routing uses the top-1 agreement that drafters report of the answer
    reconstruction     how a committee replaces what members do not list; empty: it is exact
    proposes_forced    whether tokens that a response format leaves no choice are draft tokens
    repeats_text       whether the target drafts from the text itself
    uses_ngrams        whether it drafts from n-grams of earlier answers
    """

    name: str
    baseline: Baseline | None = None
    max_drafters: int = 4
    routing: Routing = "learned"
    fuses: bool = True
    width: int = 2
    is_calibrated: bool = True
    is_ahead: bool = True
    is_adaptive: bool = True
    scores_prompts: bool = True
    uses_self_reports: bool = True
    proposes_forced: bool = True
    repeats_text: bool = True
    uses_ngrams: bool = True
    reconstruction: Reconstruction = ""


_EDGECOSINE = Policy("edgecosine")
_PUBLISHED = replace(
    _EDGECOSINE,
    is_calibrated=False,
    is_adaptive=False,
    proposes_forced=False,
    repeats_text=False,
    uses_ngrams=False,
)

_ABLATIONS: Mapping[str, Policy] = {
    "cooperation": replace(_EDGECOSINE, max_drafters=1),
    "fusion": replace(_EDGECOSINE, fuses=False),
    "siblings": replace(_EDGECOSINE, width=0),
    "routing": replace(_EDGECOSINE, routing="drawn"),
    "surprise": replace(_EDGECOSINE, scores_prompts=False),
    "reports": replace(_EDGECOSINE, uses_self_reports=False),
    "calibration": replace(_EDGECOSINE, is_calibrated=False),
    "ahead": replace(_EDGECOSINE, is_ahead=False),
    "adaptivity": replace(_EDGECOSINE, is_adaptive=False),
    "repetition": replace(_EDGECOSINE, repeats_text=False),
    "ngrams": replace(_EDGECOSINE, uses_ngrams=False),
}
PARTS = tuple(_ABLATIONS)
"""Parts that the policies `edgecosine-without-PART` leave out, one each."""

BASELINES: Mapping[str, Policy] = {
    "target-alone": replace(_PUBLISHED, baseline=TargetAlone()),
    "colocated": replace(_PUBLISHED, baseline=Colocated()),
    "specinfer": replace(_PUBLISHED, baseline=SpecInfer()),
    "specedge": replace(_PUBLISHED, baseline=SpecEdge()),
    "cosine-paper": replace(_PUBLISHED, baseline=CosinePaper()),
}

POLICIES: Mapping[str, Policy] = {
    name: replace(policy, name=name)
    for name, policy in {
        "edgecosine": _EDGECOSINE,
        **BASELINES,
        **{f"edgecosine-without-{part}": policy for part, policy in _ABLATIONS.items()},
    }.items()
}


RECONSTRUCTIONS: Mapping[str, Policy] = {
    f"specfed-{how}": replace(_EDGECOSINE, name=f"specfed-{how}", reconstruction=how)
    for how in ("renormalise", "uniform")
}
"""Policies of committees whose text is not exact (SpecFed); never the default."""


def find_policy(text: str) -> Policy | None:
    """The policy of a name, or of a baseline's name with constants: `specedge:depth=7,width=4`;
    None when there is no such policy."""
    name, _, constants = text.partition(":")
    policy = POLICIES.get(name) or RECONSTRUCTIONS.get(name)
    if policy is None or not constants:
        return policy
    if policy.baseline is None:
        return None
    known = policy.baseline
    pairs = [constant.partition("=") for constant in constants.split(",")]
    try:
        changes = {field: type(getattr(known, field))(value) for field, _, value in pairs}
        return replace(policy, baseline=replace(known, **changes))
    except (AttributeError, TypeError, ValueError):
        return None
