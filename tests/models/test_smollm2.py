"""The real checkpoint of the catalogue, fetched as a user would fetch it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgecosine import models
from edgecosine.engine.loading.gguf_file import read_gguf
from edgecosine.engine.loading.gguf_weights import load_gguf_weights, read_gguf_config
from edgecosine.engine.loading.load import load_target
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.errors import ModelUnavailable
from edgecosine.protocol.api.request import ChatMessage
from tests.engine.decoding import decode, nothing

NAME = "smollm2-135m-instruct"
SYSTEM = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
    19712, 8182, 2, 198,
]  # fmt: skip
"""The template's own first turn, as the original checkpoint's tokenizer encodes it."""
LENGTH = 8


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """The file, fetched unless it is on this machine."""
    try:
        path = models.obtain(NAME)
    except ModelUnavailable as error:
        pytest.skip(str(error))
    assert path is not None
    return path


def test_answer_is_that_of_the_dequantised_weights(checkpoint: Path) -> None:
    engine, loaded = load_target(
        LoadOptions(
            NAME,
            device="cpu",
            dtype="float32",
            slots=1,
            context=128,
            threads=1,
            exactness="rounding",
        )
    )
    assert isinstance(engine, TransformerTarget)
    assert loaded.codec is not None
    assert (loaded.name, loaded.quantization, loaded.codec.eos_tokens) == (NAME, "Q4_1", {2})
    prompt = loaded.codec.encode_chat([ChatMessage("user", "What is the capital of France?")])
    assert prompt[: len(SYSTEM)] == SYSTEM
    [answer], _ = decode(engine, [prompt], LENGTH, [nothing])
    model = read_gguf(checkpoint)
    reference = load_gguf_weights(model, read_gguf_config(model), torch.float32)
    whole = reference.generate(torch.tensor([prompt]), max_new_tokens=LENGTH, do_sample=False)
    assert answer == whole[0, len(prompt) :].tolist()
    assert "Paris" in loaded.codec.decode(answer)
