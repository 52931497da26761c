"""Measures how often a drafter's guess with shared noise equals the target's sample.

For distributions p and q at total variation distance TV, tokens drawn with shared Gumbel noise are
equal with a probability of at least (1 - TV) / (1 + TV) (Daliri et al., arXiv 2408.07978).
Speculative sampling (Leviathan et al., arXiv 2211.17192) accepts with probability 1 - TV, but needs
q on the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edgecosine import zoo
from edgecosine.engine.draft.draft_sampling import rank_draft_tokens
from edgecosine.engine.sampling import draw, support
from edgecosine.lab.exactness.models import zoo_model, zoo_prompts
from edgecosine.lab.zoo.generation import GenerationSampling as Texts
from edgecosine.lab.zoo.generation import generate
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.messages import SharedNoise

_DRAWS = 4
"""Seeds tried at each position."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One position of a text and its measured agreement."""

    drafter: str
    domain: str
    temperature: float
    agreed: float
    """Share of the seeds under which guess and sample are the same token."""
    distance: float
    """Total variation distance of the two distributions."""

    @property
    def bound(self) -> float:
        """Lower bound of the expected agreement by shared noise."""
        return (1 - self.distance) / (1 + self.distance)


def measure_agreement(
    num_prompts: int, num_tokens: int, temperatures: Sequence[float] = (0.8, 1.0)
) -> list[Agreement]:
    """Agreement at each token of texts that the zoo's target samples, with each domain's specialist
    and the generalist; `num_prompts` texts of `num_tokens` for each domain and temperature."""
    target = zoo_model(zoo.TARGET, torch.float32)
    drafters = {name: zoo_model(name, torch.float32) for name in zoo.drafter_names()}
    found: list[Agreement] = []
    for domain, prompts in zoo_prompts().items():
        rows = torch.tensor(prompts[:num_prompts])
        for temperature in temperatures:
            how = Texts(temperature, torch.arange(len(rows)))
            texts = generate(target, rows, num_tokens, how).tokens
            after = rows.shape[1] - 1
            truth = _logits(target, texts, after)
            for name in dict.fromkeys((domain, "generalist")):
                guessed = _logits(drafters[name], texts, after)
                found += [
                    _agreement(name, domain, temperature, p, q, position)
                    for text in range(len(rows))
                    for position, (p, q) in enumerate(zip(truth[text], guessed[text], strict=True))
                ]
    return found


@torch.inference_mode()
def _logits(model: Any, texts: torch.Tensor, after: int) -> torch.Tensor:
    """Logits [texts, new tokens, vocabulary] from which each new token is drawn."""
    logits: torch.Tensor = model(input_ids=texts[:, :-1], use_cache=False).logits[:, after:]
    return logits


def _agreement(
    drafter: str, domain: str, temperature: float, p: torch.Tensor, q: torch.Tensor, position: int
) -> Agreement:
    how = Sampling(temperature=temperature)
    one, other = (support(logits, how) for logits in (p, q))
    shared = torch.zeros(2, p.numel())
    shared[0, one.tokens], shared[1, other.tokens] = one.logprobs.exp(), other.logprobs.exp()
    distance = 0.5 * float((shared[0] - shared[1]).abs().sum())
    agreed = 0
    for seed in range(_DRAWS):
        coupling = SharedNoise(temperature=temperature, seed=seed.to_bytes(8, "little"))
        mine = draw(p, position, Sampling(temperature=temperature, seed=seed))
        [guesses] = rank_draft_tokens(q[None], [position], [coupling], 1, None)
        agreed += guesses.tokens[0] == mine
    return Agreement(drafter, domain, temperature, agreed / _DRAWS, distance)
