"""Generates text in batches from prompts of one length, with the model's last hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from edgecosine.engine.gumbel import gumbel


@dataclass(frozen=True)
class GenerationSampling:
    """Temperature 0 is greedy; otherwise a token is the arg max of logits / temperature plus shared
    Gumbel noise of its row's seed."""

    temperature: float
    seeds: Tensor

    def choose(self, logits: Tensor, position: int) -> Tensor:
        """Tokens (n,) at an absolute position from logits (n, vocabulary)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        tokens = torch.arange(logits.shape[-1])
        noise = torch.stack([gumbel(seed, position, tokens) for seed in self.seeds.tolist()])
        return (logits / self.temperature + noise).argmax(-1)


@dataclass(frozen=True)
class GeneratedText:
    """Tokens (n, prompt + new) and the last hidden states (n, prompt + new - 1, width)."""

    tokens: Tensor
    hidden: Tensor


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM, prompts: Tensor, new: int, sampling: GenerationSampling
) -> GeneratedText:
    """Continue prompts (n, length) by `new` tokens; end-of-text does not stop the text."""
    length = prompts.shape[1]
    cache = DynamicCache(config=model.config)
    tokens, hidden, latest = [prompts], [], prompts
    for position in range(length, length + new):
        states = model.model(input_ids=latest, past_key_values=cache, use_cache=True)
        hidden.append(states.last_hidden_state)
        logits = model.lm_head(hidden[-1][:, -1])
        latest = sampling.choose(logits, position)[:, None]
        tokens.append(latest)
    return GeneratedText(torch.cat(tokens, 1), torch.cat(hidden, 1))
