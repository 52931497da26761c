"""Reads the description of a model in GGUF files, without weights. No torch.

A model that is split over several files is one `GgufModel`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgecosine.engine.loading.gguf_header import Tensor, integer, read_header
from edgecosine.errors import ModelUnavailable

SUFFIX: Final = ".gguf"
EMBEDDING: Final = "token_embd.weight"
BASE: Final = "edgecosine.base"
"""Key of the name of the base model, which provides embedding and tokenizer, or weights."""
BASE_DIGEST: Final = "edgecosine.base_sha256"
_ADAPTER: Final = "adapter.type"
_MAX_PARTS: Final = 1 << 10
_PART: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_PLAIN: Final = frozenset({"F32", "F16", "F64"})
_TOKENIZER, _TOKENS = "tokenizer.ggml.model", "tokenizer.ggml.tokens"
_END_TOKENS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")
# Rotary factors and lists of tokens; every other tensor is a weight.
SHORTLIST: Final = "output.tokens"
_TABLES: Final = (
    "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight", SHORTLIST
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model in one GGUF file or in a split set.

    `metadata` comes from the first part, in the form of `read_header`.
    """

    paths: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        """GGUF's name of the model family."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def base(self) -> str:
        """The name of the base model; empty for a whole model."""
        return str(self.metadata.get(BASE, ""))

    @property
    def is_adapter(self) -> bool:
        """Whether the file has low-rank changes to the weights of its base in place of weights."""
        return self.metadata.get(_ADAPTER) == "lora"

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The tensors that are parameters of the model."""
        return tuple(tensor for tensor in self.tensors if tensor.name not in _TABLES)

    @property
    def num_parameters(self) -> int:
        """Elements of all weights."""
        return sum(tensor.num_elements for tensor in self.weights)

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
        """The number formats of the matrices, the most frequent first: "Q4_1, Q8_0"."""
        return ", ".join(self._formats())

    @property
    def main_format(self) -> str:
        """The most frequent number format of the matrices."""
        return next(iter(self._formats()), "F32")

    @property
    def is_coarse(self) -> bool:
        """Whether most matrix elements have no more precision than bfloat16."""
        return self.main_format not in _PLAIN

    @property
    def is_quantized(self) -> bool:
        """Whether most matrix elements are in a quantised format."""
        return self.is_coarse and self.main_format != "BF16"

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary; 0 for a file without one."""
        return integer(self.metadata, _TOKENS, 0) if _TOKENIZER in self.metadata else 0

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end an answer according to the file."""
        ids = (self.metadata.get(f"tokenizer.ggml.{key}") for key in _END_TOKENS)
        return tuple(dict.fromkeys(token for token in ids if isinstance(token, int)))

    @property
    def chat_template(self) -> str:
        """The chat template; empty for a model without one."""
        return str(self.metadata.get("tokenizer.chat_template", ""))

    def setting(self, key: str) -> Any:
        """A setting of the architecture, such as `context_length`; None where it is missing."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def _formats(self) -> dict[str, int]:
        sizes = Counter[str]()
        for tensor in self.weights:
            if len(tensor.shape) > 1:
                sizes[tensor.kind] += tensor.num_elements
        return dict(sizes.most_common())


def is_gguf(path: Path) -> bool:
    """Whether a path has the suffix of a GGUF file."""
    return path.suffix.lower() == SUFFIX


def read_gguf(path: Path) -> GgufModel:
    """The model that begins in the file `path`, with all parts of a split set.

    Raises ModelUnavailable for a file that is not GGUF, is truncated, has no tokenizer or belongs
    to a set with missing parts.
    """
    paths = _parts(path)
    metadata, tensors = read_header(paths[0])
    count = integer(metadata, "split.count", 1)
    if count != len(paths) and count > 1:
        raise ModelUnavailable(
            f"{path} is one of {count} parts, but its name does not end in "
            f"-00001-of-{count:05d}.gguf, so the others cannot be found"
        )
    for other in paths[1:]:
        tensors += read_header(other)[1]
    model = GgufModel(paths, metadata, tuple(tensors))
    if not model.architecture:
        raise ModelUnavailable(f"{path} has no architecture in its metadata: not a language model")
    if not tensors:
        raise ModelUnavailable(f"{path} has no weights: a vocabulary alone cannot be served")
    if not (model.num_tokens or model.base):
        raise ModelUnavailable(
            f"{path} has no tokenizer; use a file that has one (tokenizer.ggml.model)"
        )
    return model


def part_names(name: str) -> tuple[str, ...]:
    """Names of all files of the set that a file belongs to; its own name if it is no part of one.

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
