"""Agreement by shared noise on the zoo's model pairs, between its bound and the optimum."""

from __future__ import annotations

import math
import statistics

from edgecosine.lab.exactness.coupling import measure_agreement


def test_drafter_agrees_with_the_target_as_often_as_the_bound() -> None:
    found = measure_agreement(2, 16, temperatures=(1.0,))
    assert len({(a.drafter, a.domain) for a in found}) == 8
    agreed = statistics.fmean(a.agreed for a in found)
    bound = statistics.fmean(a.bound for a in found)
    most = statistics.fmean(1 - a.distance for a in found)
    noise = 3 * math.sqrt(0.25 / len(found))
    assert bound - noise <= agreed <= most + noise
    assert 0.1 < bound < most < 0.95
