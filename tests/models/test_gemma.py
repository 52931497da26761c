"""A checkpoint of another maker: another tokenizer, a large vocabulary, windows.

Nobody accepts its terms for a user, so it is tested where it was fetched on request.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecosine import models
from edgecosine.engine.loading.gguf_file import read_gguf
from edgecosine.engine.loading.gguf_weights import read_gguf_config, read_gguf_tokenizer
from edgecosine.engine.tokenizer import TextCodec
from edgecosine.errors import ModelUnavailable

NAME = "gemma-3-270m"


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """The file, where it was fetched."""
    try:
        path = models.obtain(NAME)
    except ModelUnavailable as error:
        pytest.skip(str(error))
    assert path is not None
    return path


def test_settings_and_vocabulary_are_read(checkpoint: Path) -> None:
    model = read_gguf(checkpoint)
    assert (model.architecture, model.num_tokens, model.chat_template) == ("gemma3", 262_144, "")
    assert {"Q4_K", "Q6_K"} <= set(model.quantization.split(", "))
    config = read_gguf_config(model)
    assert (config.model_type, config.sliding_window, config.head_dim) == ("gemma3_text", 512, 256)
    codec = TextCodec(read_gguf_tokenizer(model), model.end_tokens)
    assert codec.encode("The capital of France is") == [2, 818, 5279, 529, 7001, 563]
    text = "  zwei  Leerzeichen, 漢字, 😀\n\n"
    assert codec.decode(codec.encode(text)) == text
    assert codec.num_tokens == 262_144
    assert codec.eos_tokens == {1}
