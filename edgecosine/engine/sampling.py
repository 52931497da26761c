"""Draws a token from one row of logits, by the same rule for target and drafters.

y = argmax over tokens of log p~(token) + g(seed, position, token), where p~ is the distribution
after penalties, bias, response format, ban, temperature, top-k, top-p and min-p, in this order, and
g is Gumbel noise. Log-probabilities are reported from the model's own distribution, before all of
these. Below a temperature of `MIN_TEMPERATURE` the noise is left out. No truncation removes the
most probable token. A draw reads its own row only, so it does not depend on the batch; noise is
computed for the truncated support only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from edgecosine.engine.base import TokenMask
from edgecosine.engine.gumbel import gumbel
from edgecosine.errors import NoLogits
from edgecosine.protocol.api.request import MIN_REPETITION_PENALTY, Logprobs, Sampling
from edgecosine.protocol.wire.messages import SharedNoise

_FIRST_SIZE = 256
"""Tokens examined before the whole vocabulary is sorted for top-p."""
_BITS = torch.arange(8, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class Support:
    """The tokens that can be drawn and their natural log-probabilities under p~."""

    tokens: torch.Tensor  # [n] int64
    logprobs: torch.Tensor  # [n] float32


def adjust(
    logits: torch.Tensor,
    answer: Sequence[int],
    prompt: Sequence[int],
    sampling: Sampling,
) -> torch.Tensor:
    """Logits [vocabulary] after penalties and bias.

    Presence and frequency count the answer's tokens (OpenAI), repetition the prompt's too (Keskar
    et al., CTRL).
    """
    if sampling.is_plain:
        return logits
    logits = logits.clone()
    counts = Counter(answer)
    if sampling.repetition_penalty != 1.0 and (seen := sorted({*counts, *prompt})):
        ids = torch.tensor(seen, device=logits.device)
        values = logits[ids]
        penalty = max(MIN_REPETITION_PENALTY, sampling.repetition_penalty)
        logits[ids] = torch.where(values > 0, values / penalty, values * penalty)
    if counts and (sampling.presence_penalty or sampling.frequency_penalty):
        ids = torch.tensor(list(counts), device=logits.device)
        times = torch.tensor(list(counts.values())).to(logits)
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * times
    for token, bias in sampling.logit_bias:
        logits[token] += bias
    return logits


def support(logits: torch.Tensor, sampling: Sampling | SharedNoise) -> Support:
    """The drawable tokens of adjusted logits [vocabulary] at a temperature that is not greedy."""
    # Differences of logits are exact near the highest one; quotients of logits are not.
    scaled = (logits.float() - logits.max()) / sampling.temperature
    if sampling.top_k:
        values, tokens = torch.topk(scaled, min(sampling.top_k, scaled.numel()))
        logprobs = values - torch.logsumexp(values, 0)
    elif sampling.top_p < 1.0:
        tokens, logprobs = _head(scaled, sampling.top_p)
    else:
        tokens = torch.arange(scaled.numel(), device=scaled.device)
        logprobs = torch.log_softmax(scaled, 0)
    if sampling.top_p < 1.0:
        before = torch.cumsum(logprobs.exp(), 0) - logprobs.exp()
        is_kept = before < sampling.top_p
        is_kept[0] = True  # in float32 the smallest top-p is 0
        tokens, logprobs = _keep(tokens, logprobs, is_kept)
    if sampling.min_p > 0.0:
        floor = logprobs.max() + math.log(sampling.min_p)
        tokens, logprobs = _keep(tokens, logprobs, logprobs >= floor)
    return Support(tokens, logprobs)


def _head(scaled: torch.Tensor, mass: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable tokens, sorted, with a total probability of at least `mass`."""
    norm = torch.logsumexp(scaled, 0)
    size = _FIRST_SIZE
    while size < scaled.numel():
        values, tokens = torch.topk(scaled, size)
        if float((values - norm).exp().sum()) >= mass:
            return tokens, values - norm
        size *= 16
    values, tokens = torch.sort(scaled, descending=True, stable=True)
    return tokens, values - norm


def _keep(
    tokens: torch.Tensor, logprobs: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, logprobs = tokens[mask], logprobs[mask]
    return tokens, logprobs - torch.logsumexp(logprobs, 0)


def scores(chosen: Support, seed: int, position: int) -> torch.Tensor:
    """log p~ + g for each token of the support, float64 [n]; the draw is its argmax."""
    return chosen.logprobs.double() + gumbel(seed, position, chosen.tokens)


def draw(
    logits: torch.Tensor,
    position: int,
    sampling: Sampling,
    answer: Sequence[int] = (),
    prompt: Sequence[int] = (),
    banned: Collection[int] = (),
    allowed: TokenMask | None = None,
) -> int:
    """The token at `position` of a sequence, from its row of logits [vocabulary].

    A `banned` token is never drawn, whatever its bias; nor is one that is not `allowed`. Raises
    NoLogits where the logits of all others are minus infinity.
    """
    logits = adjust(logits, answer, prompt, sampling)
    if allowed is not None:
        logits = _only(logits, allowed)
    if banned:
        logits = logits.index_fill(0, torch.tensor([*banned], device=logits.device), -torch.inf)
    if sampling.is_greedy:
        return int(torch.argmax(logits))
    if sampling.top_k == 1:
        return int(torch.argmax(logits))
    candidates = support(logits, sampling)
    best = torch.argmax(scores(candidates, sampling.seed, position))
    return int(candidates.tokens[best])


def _only(logits: torch.Tensor, allowed: TokenMask) -> torch.Tensor:
    """The logits [vocabulary], minus infinity at tokens that are not allowed."""
    packed = torch.frombuffer(bytearray(allowed.bits), dtype=torch.uint8)
    bits = (packed[:, None] >> _BITS) & 1
    is_allowed = torch.zeros(logits.numel(), dtype=torch.bool)
    size = min(logits.numel(), bits.numel())
    is_allowed[:size] = bits.view(-1)[:size].bool()
    masked = logits.masked_fill(~is_allowed.to(logits.device), -torch.inf)
    if float(masked.max()) == -math.inf:
        raise NoLogits
    return masked


def logprobs_of(logits: torch.Tensor, token: int, num_top: int) -> Logprobs:
    """Log-probabilities of a drawn token and of the `num_top` most probable ones.

    `logits` [vocabulary] is one row of the model's output. Rows are processed one by one: the order
    of a sum over several rows may depend on their number.
    """
    logprobs = torch.log_softmax(logits.float(), 0)
    best = torch.topk(logprobs, min(num_top, logprobs.numel()))
    top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Logprobs(float(logprobs[token]), tuple(top))
