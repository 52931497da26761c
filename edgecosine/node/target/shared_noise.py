"""The noise that drafters share with the target, from a request's sampling parameters."""

from __future__ import annotations

from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.messages import SharedNoise


def noise_of(sampling: Sampling) -> SharedNoise:
    """The sampling parameters that drafters need to draw the target's tokens."""
    if sampling.is_greedy:
        return SharedNoise()
    return SharedNoise(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed.to_bytes(8, "little"),
    )
