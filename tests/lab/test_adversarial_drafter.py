"""The adversarial drafter: as confident as the original, and wrong by one token."""

from __future__ import annotations

from pathlib import Path

from edgecosine import zoo
from edgecosine.engine.base import DraftResult, DraftWork
from edgecosine.engine.loading.load import load_drafter
from edgecosine.engine.options import LoadOptions
from edgecosine.lab.adversarial_drafter import write_adversarial_drafter
from edgecosine.protocol.wire.messages import SharedNoise


def test_adversarial_drafter_proposes_the_next_token_id_with_the_same_confidence(
    tmp_path: Path,
) -> None:
    lies, truths = list[DraftResult](), list[DraftResult]()
    for model, drafts in ((str(write_adversarial_drafter(tmp_path)), lies), ("generalist", truths)):
        engine, loaded = load_drafter(LoadOptions(model, threads=1, slots=1))
        assert loaded.codec is not None
        for prompts in zoo.prompts().values():
            prompt = tuple(loaded.codec.encode(prompts[0]))
            drafts.extend(engine.draft([DraftWork(prompts[0], prompt, 1, 1, SharedNoise())]))
            engine.release(prompts[0])
    size = loaded.codec.num_tokens
    for lie, truth in zip(lies, truths, strict=True):
        assert lie.tokens[0] == (truth.tokens[0] + 1) % size
        assert abs(lie.confidences[0] - truth.confidences[0]) < 0.02
