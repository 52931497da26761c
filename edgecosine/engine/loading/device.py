"""Queries the machine: memory, processor features, GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, load_kernels
from edgecosine.engine.loading.control_groups import group_memory
from edgecosine.errors import ConfigError


def available_memory(device: str) -> int:
    """Free bytes on `device`, within the limits of control groups."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    free, within = _machine_memory(), group_memory()
    return free if within is None else min(free, within)


def _machine_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resolve_device(device: str) -> str:
    """The device to use; `auto` is the first GPU if there is one, else the CPU.

    Raises ConfigError for a device that does not exist.
    """
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        is_here = torch.device(device).type != "meta"
        torch.empty(1, device=device)
    # A torch without CUDA raises AssertionError.
    except (RuntimeError, AssertionError, NotImplementedError):
        is_here = False
    if not is_here:
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ConfigError("device", device, f"auto, {', '.join(here)}")
    return device


def describe() -> list[str]:
    """Lines that describe the machine for an operator."""
    lines = [f"torch {torch.__version__}, {torch.get_num_threads()} threads"]
    lines.append(f"processor: {torch.backends.cpu.get_cpu_capability()}")
    if torch.version.cuda and not torch.cuda.device_count():
        lines.append("torch is built for CUDA, and no GPU is here: README names the smaller build")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        lines.append(f"cuda:{index} {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    try:
        kernels = load_kernels()
        lines.append("kernels: compiled, token trees are exact to the bit")
        lines.append(f"kernels: 8-bit and 4-bit weights by {kernels.instructions} instructions")
    except KernelsUnavailable as error:
        lines.append(f"kernels: none ({error}); plain torch, equal up to rounding")
    return lines
