"""Parses the header of a GGUF file, metadata and tensor table, within bounds.

The length of the file is compared with the table, so a truncated file is detected at once.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgecosine.errors import ModelUnavailable

if TYPE_CHECKING:
    from gguf.constants import GGMLQuantizationType

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MAX_ENTRIES: Final = 1 << 16
_MAX_ARRAY: Final = 1 << 24
_MAX_STRING: Final = 1 << 20
_MAX_DIMENSIONS: Final = 4
_MAX_ALIGNMENT: Final = 1 << 20
_KEPT_NUMBERS: Final = 1 << 12
_NUMBERS: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Tensor:
    """A row of the tensor table. `shape` has the outermost dimension first; `kind` is GGML's name
    of the number format; `start` and `size` are bytes in the file `path`."""

    name: str
    shape: tuple[int, ...]
    kind: str
    path: Path
    start: int
    size: int

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def read_header(path: Path) -> tuple[dict[str, Any], list[Tensor]]:
    """Metadata and tensor table of one file.

    Arrays of strings, and arrays of more than 4096 numbers, are replaced by their length.
    Raises ModelUnavailable for a file that is not GGUF, damaged or truncated.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ModelUnavailable(f"{path} is not a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                header = _Header(view, path)
                metadata, tensors = header.read()
                size = len(view)
    except OSError as error:
        raise ModelUnavailable(f"{path} cannot be read: {error.strerror or error}") from error
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise ModelUnavailable(
            f"{path} is cut off or damaged: its header does not parse; fetch it again"
        ) from error
    end = max((tensor.start + tensor.size for tensor in tensors), default=0)
    if size < end:
        raise ModelUnavailable(
            f"{path} is cut off: {size:,} bytes of {end:,}; fetch the whole file again"
        )
    return metadata, tensors


class _Header:
    """A reader of the header of one file."""

    def __init__(self, view: mmap.mmap, path: Path) -> None:
        self._view, self._path = view, path
        self._at = len(_MAGIC)

    def read(self) -> tuple[dict[str, Any], list[Tensor]]:
        """Metadata and tensor table; raises struct.error and others where bytes are missing."""
        version = self._number("I")
        if version not in _VERSIONS:
            raise ModelUnavailable(
                f"{self._path} is GGUF version {version}; versions 2 and 3 (little-endian) are read"
            )
        num_tensors, num_keys = self._count(_MAX_ENTRIES), self._count(_MAX_ENTRIES)
        metadata = {self._string(): self._value(self._number("I")) for _ in range(num_keys)}
        rows = list(self._table(num_tensors))
        alignment = integer(metadata, "general.alignment", 32)
        if not 1 <= alignment <= _MAX_ALIGNMENT:
            raise IndexError("alignment")
        data = -(-self._at // alignment) * alignment
        return metadata, [
            Tensor(name, shape, kind.name, self._path, data + offset, _num_bytes(kind, shape))
            for name, shape, kind, offset in rows
        ]

    def _table(
        self, count: int
    ) -> Iterator[tuple[str, tuple[int, ...], GGMLQuantizationType, int]]:
        from gguf.constants import GGMLQuantizationType  # of the extra `models`

        for _ in range(count):
            name = self._string()
            sizes = [self._number("Q") for _ in range(self._count(_MAX_DIMENSIONS, "I"))]
            if not sizes or not all(sizes):
                raise IndexError("shape")
            number, offset = self._number("I"), self._number("Q")
            try:
                kind = GGMLQuantizationType(number)
            except ValueError as error:
                raise ModelUnavailable(
                    f"{self._path}: tensor {name} has number format {number}, which the installed "
                    "gguf does not know; upgrade it"
                ) from error
            yield name, tuple(reversed(sizes)), kind, offset

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_format(kind))
        element, count = self._number("I"), self._count(_MAX_ARRAY)
        if element == _STRING:
            for _ in range(count):
                self._skip(self._number("Q"))
            return count
        form = f"<{count}{_format(element)}"
        if count > _KEPT_NUMBERS:
            self._skip(struct.calcsize(form))
            return count
        values = struct.unpack_from(form, self._view, self._at)
        self._at += struct.calcsize(form)
        return list(values)

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self._view, self._at)
        self._at += struct.calcsize(f"<{form}")
        return value

    def _count(self, most: int, form: str = "Q") -> int:
        count = int(self._number(form))
        if count > most:
            raise IndexError("count")
        return count

    def _string(self) -> str:
        length = self._count(_MAX_STRING)
        start = self._at
        self._skip(length)
        return self._view[start : self._at].decode()

    def _skip(self, length: int) -> None:
        self._at += length
        if self._at > len(self._view):
            raise IndexError("end")


def integer(metadata: Mapping[str, Any], key: str, default: int) -> int:
    """An integer of the metadata; `default` where it is missing or of another type."""
    value = metadata.get(key, default)
    return value if isinstance(value, int) else default


def _format(kind: int) -> str:
    if kind not in _NUMBERS:
        raise IndexError("type")
    return _NUMBERS[kind]


def _num_bytes(kind: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    from gguf.constants import GGML_QUANT_SIZES

    elements, size = GGML_QUANT_SIZES[kind]
    return prod(shape) // elements * size
