"""What is read of a source beside configuration and weights: tokenizer, settings, identity."""

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
    """A source's tokenizer, one of transformers'.

    Raises ValueError for one without a vocabulary, and whatever transformers does.
    """
    if source.gguf is not None:
        assert source.whole.gguf is not None, "what comes from a GGUF model is one"
        return read_gguf_tokenizer(source.whole.gguf)
    tokenizer = AutoTokenizer.from_pretrained(source.where, trust_remote_code=False)
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        # What transformers makes of a tokenizer's settings alone.
        raise ValueError("it has no tokens: the file of its vocabulary (tokenizer.json) is missing")
    return tokenizer


def settings_of(source: Source, config: Any) -> list[dict[str, Any]]:
    """What a source's files say of the model of this configuration, without what its family has by
    default.

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
    """A file of a directory, or of a hub model that was loaded; None where there is none."""
    found = cached_file(
        source.where, name, local_files_only=True, _raise_exceptions_for_missing_entries=False
    )
    return None if found is None else Path(found)


def digest_of(source: Source) -> str:
    """Identity of all files that were loaded; empty where they are not known."""
    if source.gguf is not None:
        own = files_digest(source.gguf.paths[0])
        return own if source.base is None else f"{own}+{digest_of(source.base)}"
    settings = file_of(source, "config.json")
    return "" if settings is None else files_digest(settings.parent)
