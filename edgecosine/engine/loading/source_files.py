"""Reads the tokenizer, the settings and the identity of a source."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils.hub import cached_file

from edgecosine.engine.loading.gguf_weights import read_gguf_tokenizer
from edgecosine.engine.loading.load_plan import reading
from edgecosine.engine.loading.model_files import files_digest
from edgecosine.engine.loading.sources import Source


def read_tokenizer(source: Source) -> Any:
    """The tokenizer of a source, a transformers object.

    Raises ValueError for a tokenizer without a vocabulary, and the errors of transformers.
    """
    if source.gguf is not None:
        assert source.whole.gguf is not None, "what comes from a GGUF model is one"
        return read_gguf_tokenizer(source.whole.gguf)
    tokenizer = AutoTokenizer.from_pretrained(source.where, trust_remote_code=False)
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        # transformers builds one from the settings where the vocabulary is missing.
        raise ValueError("it has no tokens: the file of its vocabulary (tokenizer.json) is missing")
    return tokenizer


def settings_of(source: Source, config: Any) -> list[dict[str, Any]]:
    """The contents of the settings files of a source, without defaults of the family.

    Raises ModelUnavailable where a file cannot be read.
    """
    if source.gguf is not None:
        return [{"eos_token_id": config.get_text_config().eos_token_id}]

    def read(name: str) -> dict[str, Any]:
        path = file_of(source, name)
        return {} if path is None else dict(json.loads(path.read_bytes()))

    names = ("config.json", "generation_config.json")
    return [reading(source.where, name, functools.partial(read, name)) for name in names]


def file_of(source: Source, name: str) -> Path | None:
    """The path of a file in a directory or a downloaded hub model; None where it does not exist."""
    found = cached_file(
        source.where, name, local_files_only=True, _raise_exceptions_for_missing_entries=False
    )
    return None if found is None else Path(found)


def digest_of(source: Source) -> str:
    """Identity of all loaded files; empty where they are not known."""
    if source.gguf is not None:
        own = files_digest(source.gguf.paths[0])
        return own if source.base is None else f"{own}+{digest_of(source.base)}"
    settings = file_of(source, "config.json")
    return "" if settings is None else files_digest(settings.parent)
