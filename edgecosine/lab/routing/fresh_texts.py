"""Records the target's answers to fresh prompts, and every drafter's guesses for each token.

Transformers computes them with whole texts in one forward pass: a thousand texts in a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgecosine import zoo
from edgecosine.lab.engine_calls import quiet_transformers
from edgecosine.lab.simulation.texts import NUM_PROMPT, Texts
from edgecosine.protocol.wire.messages import pack_shares

_GUESSES, _BATCH = 4, 50


@torch.inference_mode()
def record_texts(prompts: Sequence[tuple[str, str]], answer: int) -> Texts:
    """Greedy answers of `answer` tokens to prompts of (domain, text).

    With them come each drafter's four most probable tokens at each place, and its mean negative
    log-likelihood of each prompt, in nats per token.
    """
    quiet_transformers()
    tokenizer: Any = AutoTokenizer.from_pretrained(zoo.DIRECTORY / zoo.TARGET)
    rows = tokenizer([text for _, text in prompts], add_special_tokens=False)["input_ids"]
    starts = range(0, len(prompts), _BATCH)
    tokens = torch.cat(
        [_answered(torch.tensor(rows[start : start + _BATCH]), answer) for start in starts]
    )
    names = zoo.drafter_names()
    shape = (len(names), len(prompts), answer, _GUESSES)
    guesses, shares = np.zeros(shape, np.uint16), np.zeros(shape, np.uint8)
    prompt_scores = np.zeros(shape[:2], np.float32)
    for which, name in enumerate(names):
        model = _load(name)
        for start in starts:
            batch = tokens[start : start + _BATCH]
            places = slice(start, start + len(batch))
            logs = model(batch).logits.float().log_softmax(-1)
            best = logs[:, NUM_PROMPT - 1 : -1].topk(_GUESSES)
            guesses[which, places] = best.indices.numpy()
            packed = pack_shares(best.values.exp().flatten().tolist())
            shares[which, places] = np.frombuffer(packed, np.uint8).reshape(best.values.shape)
            of_prompt = logs[:, : NUM_PROMPT - 1].gather(2, batch[:, 1:NUM_PROMPT, None])
            prompt_scores[which, places] = -of_prompt.mean((1, 2)).numpy()
    domains = tuple(domain for domain, _ in prompts)
    return Texts(
        prompts=tuple(map(tuple, tokens[:, :NUM_PROMPT].tolist())),
        answers=tokens[:, NUM_PROMPT:].numpy().astype(np.uint16),
        ends=(answer,) * len(prompts),
        domains=domains,
        drafters=names,
        guesses=guesses,
        shares=shares,
        prompt_scores=prompt_scores,
    )


def _answered(prompts: torch.Tensor, answer: int) -> torch.Tensor:
    model = _load(zoo.TARGET)
    model.generation_config.eos_token_id = None
    made: torch.Tensor = model.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), do_sample=False,
        max_new_tokens=answer,
    )  # fmt: skip
    return made


def _load(name: str) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(zoo.DIRECTORY / name, dtype=torch.float32)
    return model.eval()
