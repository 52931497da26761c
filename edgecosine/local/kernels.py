"""Builds the kernels before nodes start, which would all wait for them in silence."""

from __future__ import annotations

from collections.abc import Callable

from edgecosine.engine.cpu.kernel_library import (
    KernelsUnavailable,
    are_kernels_built,
    load_kernels,
)
from edgecosine.models.packages import are_installed


def build_kernels(notify: Callable[[str], None]) -> None:
    """Build the kernels of this machine, unless that was done; `notify` receives what happens.

    It raises no error: nodes without kernels use plain torch, those without models need none.
    """
    if not are_installed() or are_kernels_built():
        return
    notify("building kernels for this processor, once; on a small machine it takes minutes")
    try:
        load_kernels()
    except KernelsUnavailable as reason:
        notify(f"no kernels ({reason}): nodes use plain torch, slower and equal up to rounding")
