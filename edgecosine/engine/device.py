"""What the machine has: memory, processor features, GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from edgecosine.engine.native import KernelsUnavailable, load_kernels


def available_memory(device: str) -> int:
    """Bytes that can be taken on `device` now."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resolve_device(device: str) -> str:
    """`auto` is the first GPU when there is one."""
    if device != "auto":
        return device
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def describe() -> list[str]:
    """One line for each thing that an operator wants to know."""
    lines = [f"torch {torch.__version__}, {torch.get_num_threads()} threads"]
    lines.append(f"processor: {torch.backends.cpu.get_cpu_capability()}")
    if torch.version.cuda and not torch.cuda.device_count():
        lines.append("torch is built for CUDA, and no GPU is here: README names the smaller build")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        lines.append(f"cuda:{index} {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    try:
        load_kernels()
        lines.append("kernels: compiled, token trees are exact to the bit")
    except KernelsUnavailable as error:
        lines.append(f"kernels: none ({error}); plain torch, equal up to rounding")
    return lines
