"""Memory that this process gives back to the operating system."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# From malloc.h; the sizes set afterwards are those that glibc's own adaptation reaches.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def give_back_memory() -> None:
    """Return freed memory to the system where the C library keeps it (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def freeing_at_once() -> Iterator[None]:
    """Context in which freed tensors are returned to the system at once (glibc); afterwards the
    buffers of a forward pass are kept for the next one again."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda _option, _value: 0)
    mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        give_back_memory()


def drop_pages(tensor: torch.Tensor) -> None:
    """Drop a tensor's file-backed pages (Linux); a later read loads them from the file again.

    Weights are views of mapped safetensors files, whose pages stay in memory while any weight of
    the file is in use.
    """
    begin = tensor.untyped_storage().data_ptr() + tensor.storage_offset() * tensor.element_size()
    end = begin + tensor.numel() * tensor.element_size()
    begin, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end and tensor.device.type == "cpu" and _is_mapped(begin, end):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        madvise(begin, end - begin, mmap.MADV_DONTNEED)


def _is_mapped(begin: int, end: int) -> bool:
    """Whether a range of addresses is a mapped file that still exists."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        span, *_, name = line.split(maxsplit=5)
        low, high = (int(edge, 16) for edge in span.split("-"))
        if low <= begin and end <= high:
            is_file = name.startswith("/") and not name.startswith("/dev/")
            return is_file and not name.endswith(" (deleted)")
    return False
