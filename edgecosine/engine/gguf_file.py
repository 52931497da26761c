"""What a GGUF file says of itself, before any of its weights is read: metadata and tensor table.

The header is parsed within bounds and the file's length is compared with its table, so a damaged
or unfinished file is found in milliseconds. A model may be split over several files, which are one
`GgufModel` here. Nothing here imports torch.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from edgecosine.errors import ModelUnavailable

SUFFIX: Final = ".gguf"
EMBEDDING: Final = "token_embd.weight"
_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MAX_ENTRIES: Final = 1 << 16
_MAX_ARRAY: Final = 1 << 24
_MAX_STRING: Final = 1 << 20
_MAX_PARTS: Final = 1 << 10
_MAX_DIMENSIONS: Final = 4
_MAX_ALIGNMENT: Final = 1 << 20
_NUMBERS: Final = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_KEPT_NUMBERS: Final = 1 << 12
_PART: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_PLAIN: Final = frozenset({"F32", "F16", "F64"})
_END_TOKENS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")
# Factors for rotary positions; every other tensor is a weight.
_TABLES: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


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
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model in one GGUF file or in a split set.

    `metadata` is the first part's; of an array of strings, and of one of more than 4096 numbers,
    its length stands for it.
    """

    paths: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        """GGUF's name of the model family."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The tensors that are parameters of the model."""
        return tuple(tensor for tensor in self.tensors if tensor.name not in _TABLES)

    @property
    def num_parameters(self) -> int:
        """Numbers in all weights."""
        return sum(tensor.num_elements for tensor in self.weights)

    @property
    def num_packed(self) -> int:
        """Numbers as they are held: the embedding beside the output layer also where that is it."""
        tied = (t.num_elements for t in self.tensors if self.is_tied and t.name == EMBEDDING)
        return self.num_parameters + sum(tied)

    @property
    def num_bytes(self) -> int:
        """Size of all parts."""
        return sum(path.stat().st_size for path in self.paths)

    @property
    def is_tied(self) -> bool:
        """Whether the output layer is the embedding."""
        return all(tensor.name != "output.weight" for tensor in self.tensors)

    @property
    def quantization(self) -> str:
        """The formats of the matrices, the one of most numbers first: "Q4_1, Q8_0"."""
        return ", ".join(self._formats())

    @property
    def main_format(self) -> str:
        """The format of most numbers in matrices."""
        return next(iter(self._formats()), "F32")

    @property
    def is_coarse(self) -> bool:
        """Whether most of the numbers in matrices have no more digits than bfloat16 keeps."""
        return self.main_format not in _PLAIN

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary in the file; 0 where it has none."""
        known = "tokenizer.ggml.model" in self.metadata
        return int(self.metadata.get("tokenizer.ggml.tokens", 0)) if known else 0

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end an answer, by the file's own account."""
        ids = (self.metadata.get(f"tokenizer.ggml.{key}") for key in _END_TOKENS)
        return tuple(dict.fromkeys(token for token in ids if isinstance(token, int)))

    @property
    def chat_template(self) -> str:
        """How conversations are written; empty for a model without."""
        return str(self.metadata.get("tokenizer.chat_template", ""))

    def setting(self, key: str) -> Any:
        """A number of the architecture, such as `context_length`; None where it is not said."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def _formats(self) -> dict[str, int]:
        sizes = Counter[str]()
        for tensor in self.weights:
            if len(tensor.shape) > 1:
                sizes[tensor.kind] += tensor.num_elements
        return dict(sizes.most_common())


def is_gguf(path: Path) -> bool:
    """Whether a name is that of a GGUF file."""
    return path.suffix.lower() == SUFFIX


def read_gguf(path: Path) -> GgufModel:
    """The model that begins in the file `path`, with all parts of a split set.

    Raises ModelUnavailable for a file that is no GGUF, is cut off, has no tokenizer or belongs to a
    set with missing parts.
    """
    paths = _parts(path)
    metadata, tensors = _read_part(paths[0])
    count = metadata.get("split.count", 1)
    if count != len(paths) and count > 1:
        raise ModelUnavailable(
            f"{path} is one of {count} parts, but its name does not end in "
            f"-00001-of-{count:05d}.gguf, so the others cannot be found"
        )
    for other in paths[1:]:
        tensors += _read_part(other)[1]
    model = GgufModel(paths, metadata, tuple(tensors))
    if not model.architecture:
        raise ModelUnavailable(f"{path} does not name its architecture: not a language model")
    if not tensors:
        raise ModelUnavailable(f"{path} holds no weights: a vocabulary alone cannot be served")
    if not model.num_tokens:
        raise ModelUnavailable(
            f"{path} holds no tokenizer; take a file that has one (tokenizer.ggml.model)"
        )
    return model


def part_names(name: str) -> tuple[str, ...]:
    """Names of all files of the set that a file belongs to, of itself alone where there is none.

    Raises ModelUnavailable for a part beyond the set.
    """
    match = _PART.fullmatch(name)
    if match is None:
        return (name,)
    number, count = int(match[2]), int(match[3])
    if not 1 <= number <= count <= _MAX_PARTS:
        raise ModelUnavailable(f"{name}: no such part of a split model")
    return tuple(f"{match[1]}-{i:05d}-of-{count:05d}{SUFFIX}" for i in range(1, count + 1))


def _parts(path: Path) -> tuple[Path, ...]:
    if not path.is_file():
        raise ModelUnavailable(f"{path} does not exist")
    paths = tuple(path.with_name(name) for name in part_names(path.name))
    for part in paths:
        if not part.is_file():
            raise ModelUnavailable(f"{part} is missing; {path.name} is one of {len(paths)} parts")
    return paths


def _read_part(path: Path) -> tuple[dict[str, Any], list[Tensor]]:
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
    """A cursor over the header of one file."""

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
        alignment = int(metadata.get("general.alignment", 32))
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
        for _ in range(count):
            name = self._string()
            sizes = [self._number("Q") for _ in range(self._count(_MAX_DIMENSIONS, "I"))]
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


def _format(kind: int) -> str:
    if kind not in _NUMBERS:
        raise IndexError("type")
    return _NUMBERS[kind]


def _num_bytes(kind: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    elements, size = GGML_QUANT_SIZES[kind]
    return prod(shape) // elements * size
