"""Loads the parts of a model besides its weights: tokenizer, chat template and end tokens."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from edgecosine.engine.loading.end_tokens import end_tokens
from edgecosine.engine.loading.load_errors import refusing
from edgecosine.engine.loading.load_plan import config_of, context_of, reading
from edgecosine.engine.loading.model_files import display_name
from edgecosine.engine.loading.progress import log_lines_once
from edgecosine.engine.loading.source_files import read_tokenizer, settings_of
from edgecosine.engine.loading.sources import Source, locate
from edgecosine.engine.options import Loaded, LoadOptions
from edgecosine.engine.tokenizer import TextCodec

logger = logging.getLogger(__name__)


def load_codec(options: LoadOptions) -> Loaded:
    """The description of a model whose weights are not loaded and need not be on this machine.

    Its context is as the options and the model allow, its `num_rows` as the settings say.
    Raises ModelUnavailable or ModelUnsupported.
    """
    log_lines_once()
    with refusing(f"cannot read the tokenizer of {options.model!r}"):
        source = locate(options.model, options.gguf, needs_weights=False)
        config = config_of(source)
        tokenizer = reading(options.model, "its tokenizer", lambda: read_tokenizer(source))
        num_rows = int(config.get_text_config().vocab_size)
        codec = codec_of(source, config, tokenizer, num_rows)
    logger.info("tokenizer loaded, no weights: model=%s tokens=%d", options.model, codec.num_tokens)
    return Loaded(
        name=display_name(options),
        quantization="none",
        codec=codec,
        max_context=context_of(config, options.context),
        exactness="none",
        num_parameters=0,
        digest=_digest(codec),
        num_rows=num_rows,
    )


def codec_of(source: Source, config: Any, tokenizer: Any, num_tokens: int) -> TextCodec:
    """The codec of a model that has tokens below `num_tokens`."""
    ends = end_tokens(config, settings_of(source, config), tokenizer)
    known = [token for token in ends if token < num_tokens]
    if len(known) < len(ends):
        beyond = sorted(set(ends).difference(known))
        logger.warning(
            "end tokens beyond the vocabulary ignored: ids=%s tokens=%d", beyond, num_tokens
        )
    return TextCodec(tokenizer, known, num_tokens)


def _digest(codec: TextCodec) -> str:
    """Identity of what changes prompts and ends answers."""
    backend = getattr(codec.tokenizer, "backend_tokenizer", None)
    whole = codec.vocabulary() if backend is None else backend.to_str()
    facts = (sorted(codec.facts.items(), key=str), sorted(codec.eos_tokens), whole)
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
