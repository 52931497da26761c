"""Figures of a committee's distribution that need no cluster: its loss, and the errors of SpecFed's
reconstructions with their bounds (arXiv 2604.25777)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgecosine import zoo
from edgecosine.fusion.committee.ballot import Ballot
from edgecosine.fusion.committee.bounds import mixed
from edgecosine.fusion.committee.reconstruction import mixture

Rows = npt.NDArray[np.float64]

SHARES = (0.001, 0.01, 0.1, 1.0)
"""Lengths of the lists, as shares of the vocabulary."""
TEMPERATURES = (0.8, 1.0, 1.2)
HOWS = ("renormalise", "uniform")


class TextRows:
    """Logits of several models along held-out texts: [models, tokens, vocabulary] for each text."""

    def __init__(self, models: Sequence[str], domains: Sequence[str], per_domain: int) -> None:
        paths = [str(Path(zoo.DIRECTORY) / name) for name in models]
        tokenizer = AutoTokenizer.from_pretrained(paths[0])
        built: list[Any] = [AutoModelForCausalLM.from_pretrained(path) for path in paths]
        prompts = zoo.prompts()
        self.texts = [
            (domain, tokenizer.encode(text, add_special_tokens=False))
            for domain in domains
            for text in prompts[domain][:per_domain]
        ]
        self._models = built

    def rows(self) -> Iterator[tuple[str, list[int], Rows]]:
        """Yields of each text its domain, its tokens after the first, and the logits that predict
        them."""
        for domain, tokens in self.texts:
            with torch.no_grad():
                logits = [model(torch.tensor([tokens])).logits[0, :-1] for model in self._models]
            yield domain, tokens[1:], np.stack([each.double().numpy() for each in logits])


def losses(rows: TextRows, weights: Sequence[float], names: Sequence[str]) -> list[dict[str, Any]]:
    """A record for each text, with nats per token of each model alone and of the committee."""
    found = []
    for domain, tokens, logits in rows.rows():
        logprobs = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
        drawn = logprobs[:, np.arange(len(tokens)), tokens]
        alone = dict(zip(names, (-drawn.mean(axis=1)).tolist(), strict=True))
        together = float(-mixed(weights, drawn).mean())
        found.append(
            {
                "kind": "loss",
                "domain": domain,
                "tokens": len(tokens),
                "committee": together,
                **alone,
            }
        )
    return found


def reconstruction_errors(
    rows: TextRows, weights: Sequence[float], every: int
) -> list[dict[str, Any]]:
    """A record for each reconstruction, temperature and length of the lists: the mean L1 error, its
    mean bound (2 sum of w_i eps_i) and the largest ratio of the two, at every `every`-th position.

    As in the paper, each member applies the temperature to its own row.
    """
    samples = [logits[:, ::every] for _, _, logits in rows.rows()]
    positions = np.concatenate(samples, axis=1).transpose(1, 0, 2)
    found = []
    for temperature in TEMPERATURES:
        for share in SHARES:
            for how in HOWS:
                errors = [_error(row / temperature, weights, share, how) for row in positions]
                bias, bound = np.array(errors).T
                ratios = bias / np.maximum(bound, 1e-12)
                found.append(
                    {
                        "kind": "reconstruction", "how": how, "temperature": temperature,
                        "share": share, "positions": len(errors), "bias": float(bias.mean()),
                        "bound": float(bound.mean()),
                        "worst": float(ratios[bound > 1e-5].max(initial=0.0)),
                    }
                )  # fmt: skip
    return found


def _error(rows: Rows, weights: Sequence[float], share: float, how: Any) -> tuple[float, float]:
    """The L1 distance of the reconstructed mixture from the exact one, and its bound."""
    vocabulary = rows.shape[1]
    count = max(1, round(share * vocabulary))
    lses = np.logaddexp.reduce(rows, axis=1)
    exact = np.exp(mixed(weights, rows - lses[:, None]))
    ballots = []
    for row, lse in zip(rows, lses, strict=True):
        best = np.argpartition(-row, count - 1)[:count]
        ballots.append(Ballot.of(float(lse), best, row[best], vocabulary=vocabulary))
    logprobs, lost = mixture(weights, ballots, how, vocabulary)
    return float(np.abs(np.exp(logprobs) - exact).sum()), 2.0 * lost
