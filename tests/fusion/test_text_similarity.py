"""Similar texts predict the best drafter for a new one."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.fusion.acceptance_rates import PRIOR_WEIGHT, DrafterRecord, RequestRates
from edgecosine.fusion.text_similarity import MEMORY, SHARPNESS, TextMemory, features

COMMON = list(range(200))
SUBJECTS = {"law": range(1000, 1040), "code": range(2000, 2040)}


def text(subject: str, chance: random.Random, size: int = 60) -> list[int]:
    """A text of common tokens and some of its subject."""
    return [
        chance.choice(COMMON if chance.random() < 0.7 else SUBJECTS[subject]) for _ in range(size)
    ]


def learned(num_texts: int, chance: random.Random) -> TextMemory:
    """Each subject's own drafter gets 8 of 10 tokens right, the other 2."""
    experience = TextMemory()
    for number in range(num_texts):
        subject = list(SUBJECTS)[number % 2]
        outcomes = {name: (8.0, 2.0) if name == subject else (2.0, 8.0) for name in SUBJECTS}
        experience.add(features(text(subject, chance)), outcomes)
    return experience


def test_new_text_is_expected_to_suit_the_specialist_of_its_subject() -> None:
    chance = random.Random(1)
    experience = learned(40, chance)
    for subject in SUBJECTS:
        for _ in range(10):
            expected = experience.expect(features(text(subject, chance)))
            best = max(expected, key=lambda name: expected[name].rate)
            assert best == subject


@given(st.lists(st.integers(0, 1 << 31), max_size=200), st.integers(0, 30))
def test_expected_rates_are_between_those_that_were_seen(tokens: list[int], size: int) -> None:
    expected = learned(size, random.Random(2)).expect(features(tokens))
    assert set(expected) == (set(SUBJECTS) if size > 1 else set())
    assert all(0.2 - 1e-6 <= each.rate <= 0.8 + 1e-6 for each in expected.values())


def test_drafter_with_few_judged_tokens_is_not_kept() -> None:
    experience = TextMemory()
    for _ in range(3):
        experience.add(features([1, 2]), {"d": (1.0, 1.0)})
    assert len(experience) == 0


@pytest.mark.parametrize("num_texts", [2, 60, MEMORY + 40])
def test_expectation_is_the_mean_weighted_by_similarity(num_texts: int) -> None:
    """Nadaraya and Watson's estimator by its definition."""
    chance = random.Random(4)
    texts = [features(text(chance.choice([*SUBJECTS]), chance)) for _ in range(num_texts)]
    rates = [chance.random() for _ in texts]
    experience = TextMemory()
    for each, rate in zip(texts, rates, strict=True):
        experience.add(each, {"d": (8 * rate, 8 - 8 * rate)})
    asked = features(text("law", chance))
    kept, rates = np.array(texts[-MEMORY:], dtype=float), rates[-MEMORY:]
    off, mean = kept - kept.mean(axis=0), kept.mean(axis=0)
    cosines = (
        (off * (asked - mean)).sum(axis=1)
        / np.linalg.norm(off, axis=1)
        / np.linalg.norm(asked - mean)
    )
    weights = np.exp(SHARPNESS * cosines)
    expected = experience.expect(asked)["d"]
    assert expected.rate == pytest.approx(float(weights @ rates / weights.sum()), rel=1e-3)
    assert expected.weight == pytest.approx(float(weights.sum()), rel=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_expectation_starts_no_thread_of_a_linear_algebra_library() -> None:
    """The target's engine needs its processor; idle threads of such a library would spin on it.

    In a process of its own: threads that other tests have started may run here.
    """
    program = f"from {__name__} import expect_often; expect_often()"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def expect_often() -> None:
    """Raise AssertionError if a thread that is not Python's works for expectations."""
    chance = random.Random(5)
    experience, asked = learned(MEMORY, chance), features(text("law", chance))
    before = _num_cpu_ns()
    for _ in range(100):
        experience.expect(asked)
    after = _num_cpu_ns()
    assert {thread: after[thread] for thread in before} == before


def _num_cpu_ns() -> dict[str, int]:
    """Nanoseconds that each thread but those of Python has run."""
    of_python = {str(thread.native_id) for thread in threading.enumerate()}
    return {
        folder.name: int((folder / "schedstat").read_text().split()[0])
        for folder in Path("/proc/self/task").iterdir()
        if folder.name not in of_python
    }


def test_memory_is_bounded() -> None:
    assert len(learned(MEMORY + 50, random.Random(3))) == MEMORY


def test_similar_texts_set_the_prior_and_own_rounds_outweigh_it() -> None:
    chance = random.Random(4)
    rates = RequestRates(expected=learned(40, chance).expect(features(text("law", chance))))
    record = DrafterRecord()
    assert rates.estimate("law", record) > 0.6
    assert rates.estimate("code", record) < 0.4
    for _ in range(20):
        rates.observe("law", 0, 1)
        rates.observe("code", 3, 0)
    assert rates.estimate("code", record) > rates.estimate("law", record) + 0.3


def test_record_decides_without_similar_texts() -> None:
    record = DrafterRecord()
    record.rate.observe(90, 10)
    assert RequestRates().estimate("d", record) == record.prior
    assert PRIOR_WEIGHT > 0
