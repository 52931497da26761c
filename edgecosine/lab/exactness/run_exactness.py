"""`edgecosine bench exactness`: compares answers under speculation with plain decoding."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from edgecosine.engine.loading.load_plan import KV_DTYPES
from edgecosine.engine.options import KvDtype, WeightForm
from edgecosine.engine.target.exactness import Decision
from edgecosine.lab.engine_calls import quiet_transformers
from edgecosine.lab.exactness.assisted import AssistedPair
from edgecosine.lab.exactness.check import (
    CheckCounts,
    EngineShape,
    ModelUnderTest,
    RandomSpeculation,
    Truth,
    plain_answer,
)
from edgecosine.lab.exactness.coupling import Agreement, measure_agreement
from edgecosine.lab.exactness.models import CheckedModel, Questions, candidates, prompts_of
from edgecosine.lab.figures import Figure, Keep, Notify, counted, interval

_WAVE = 24
_PLAIN = EngineShape(slots=1, chunk=64, threads=1)


@dataclass(frozen=True, slots=True)
class ExactnessSettings:
    """Number and length of the checks."""

    answers: int = 1000
    max_tokens: int = 128
    seed: int = 0
    device: str = "cpu"
    form: WeightForm = "bfloat16"
    kv_dtype: KvDtype = "auto"

    @property
    def assisted(self) -> int:
        """Number of transformers' own answers for each model."""
        return min(32, max(2, self.answers // 32))

    @property
    def coupled(self) -> int:
        """Texts for each domain and temperature along which agreement is measured."""
        return min(6, max(1, self.answers // 40))


@dataclass(frozen=True, slots=True)
class ExactnessReport:
    """Figures, the record of every model, and whether a promise was broken."""

    figures: dict[str, Figure]
    runs: list[dict[str, Any]]
    broken: list[str]
    """Models under the policy `bitwise` whose answers or logits diverged."""


def run_exactness_bench(settings: ExactnessSettings, notify: Notify, keep: Keep) -> ExactnessReport:
    """Check all models, then transformers' assisted generation, then agreement by shared noise.

    The results so far are saved after each model and each of these parts.
    """
    quiet_transformers()
    torch.set_num_threads(1)
    models = candidates(settings.form, KV_DTYPES.get(settings.kv_dtype))
    total, runs, broken = CheckCounts(), list[dict[str, Any]](), list[str]()
    for candidate, count in zip(models, _shares(models, settings.answers), strict=True):
        subject, decision = candidate.subject(settings.device)
        notify(f"{subject.name}: {count} answers, {decision.policy} ({decision.reason})")
        counts = _check(subject, candidate, count, settings, notify)
        total.add(counts)
        runs.append(_record(subject, decision, counts))
        keep(_count_figures(total), runs)
        if decision.policy == "bitwise" and (counts.answers_diverging or counts.logits_diverging):
            broken.append(subject.name)
    figures = _count_figures(total)
    if settings.form != "bfloat16" or settings.kv_dtype != "auto":  # the rest depends on neither
        return ExactnessReport(figures, runs, broken)
    parted = {candidate: _assisted(candidate, settings, notify) for candidate in models}
    figures |= _assisted_figures(parted)
    runs += [{"assisted": c.name, "diverging_tokens": tokens} for c, tokens in parted.items()]
    keep(figures, runs)
    agreements = measure_agreement(settings.coupled, settings.max_tokens // 2)
    figures |= _coupling_figures(agreements)
    runs += _coupling_records(agreements)
    keep(figures, runs)
    return ExactnessReport(figures, runs, broken)


def _shares(models: Sequence[CheckedModel], answers: int) -> list[int]:
    """Number of answers for each model by its weight: at least one each, `answers` in all."""
    whole = sum(candidate.weight for candidate in models)
    shares = [max(1, answers * candidate.weight // whole) for candidate in models]
    shares[0] += max(0, answers - sum(shares))
    return shares


def _check(
    subject: ModelUnderTest,
    candidate: CheckedModel,
    count: int,
    settings: ExactnessSettings,
    notify: Notify,
) -> CheckCounts:
    """Plain answers and then random speculation, in waves of questions."""
    questions = Questions(prompts_of(candidate), settings.seed)
    speculation, known, total = (
        RandomSpeculation(subject, settings.seed),
        list[Truth](),
        CheckCounts(),
    )
    started = time.perf_counter()
    while len(known) < count:
        wave: list[Truth] = []
        reference = subject.open(_PLAIN)
        for _ in range(min(_WAVE, count - len(known))):
            question = questions.next([*known, *wave])
            wave.append(plain_answer(reference, question, settings.max_tokens))
        total.add(speculation.run(wave))
        known += wave
        notify(
            f"{subject.name}: {total.answers} of {count} answers, {total.answers_diverging} "
            f"diverging, {total.logits_diverging} of {total.logits} logits; "
            f"{total.mean_accepted:.2f} accepted a round; {time.perf_counter() - started:.0f} s"
        )
    return total


def _record(subject: ModelUnderTest, decision: Decision, counts: CheckCounts) -> dict[str, Any]:
    return {
        "model": subject.name,
        "policy": decision.policy,
        "reason": decision.reason,
        **asdict(counts),
        "mean_accepted": counts.mean_accepted,
    }


def _assisted(candidate: CheckedModel, settings: ExactnessSettings, notify: Notify) -> list[int]:
    """Diverging tokens of each of transformers' own answers."""
    pair = AssistedPair(candidate, settings.device)
    prompts = prompts_of(candidate)[: settings.assisted]
    found = [pair.diverging_tokens(prompt, settings.max_tokens) for prompt in prompts]
    parted = sum(map(bool, found))
    notify(f"transformers assisted, {candidate.name}: {parted} of {len(found)} answers diverge")
    return found


def _count(value: int, unit: str = "answers") -> Figure:
    return counted(value, unit)


def _count_figures(total: CheckCounts) -> dict[str, Figure]:
    mean = total.mean_accepted
    return {
        "answers_checked": _count(total.answers),
        "answers_diverging": _count(total.answers_diverging),
        "tokens_diverging": _count(total.tokens_diverging, "tokens"),
        "logits_checked": _count(total.logits, "rows"),
        "logits_diverging": _count(total.logits_diverging, "rows"),
        "accepted_per_round": counted(mean, "tokens"),
        "positions_copied": counted(total.copied, "KV positions"),
    }


def _assisted_figures(parted: dict[CheckedModel, list[int]]) -> dict[str, Figure]:
    by_dtype: dict[str, list[float]] = {}
    for candidate, tokens in parted.items():
        name = str(candidate.dtype).removeprefix("torch.")
        by_dtype.setdefault(name, []).extend(float(count > 0) for count in tokens)
    figures = {"hf_assisted_diverging": _share([x for xs in by_dtype.values() for x in xs])}
    return figures | {f"hf_assisted_diverging_{k}": _share(xs) for k, xs in by_dtype.items()}


def _share(samples: Sequence[float]) -> Figure:
    return interval(samples, statistics.fmean, "share of answers")


def _coupling_figures(found: Sequence[Agreement]) -> dict[str, Figure]:
    def mean(samples: list[float]) -> Figure:
        return interval(samples, statistics.fmean, "share of positions")

    return {
        "coupling_agreement": mean([a.agreed for a in found]),
        "coupling_bound": mean([a.bound for a in found]),
        "speculative_sampling_agreement": mean([1 - a.distance for a in found]),
    }


def _coupling_records(found: Sequence[Agreement]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str, float], list[Agreement]] = {}
    for one in found:
        groups.setdefault((one.drafter, one.domain, one.temperature), []).append(one)
    return [
        {
            "drafter": drafter, "domain": domain, "temperature": temperature,
            "positions": len(group),
            "agreement": statistics.fmean(a.agreed for a in group),
            "bound": statistics.fmean(a.bound for a in group),
            "speculative_sampling": statistics.fmean(1 - a.distance for a in group),
        }
        for (drafter, domain, temperature), group in groups.items()
    ]  # fmt: skip
