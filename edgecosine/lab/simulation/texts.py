"""Recorded texts and drafts of the zoo, so that simulated drafts are those of real models.

For each held-out prompt: the target's text, and every drafter's guesses at every position with
their confidences, at temperature 0 and above it with shared noise. Confidences, agreement between
drafters and expertise by domain are therefore real. Below a wrong token nothing was recorded; there
a drafter guesses as at another position, which depends on the wrong token and is the same for all
drafters. Tokens below a wrong one are never accepted, so only their confidences matter.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgecosine.engine.draft.draft_sampling import DraftTokens
from edgecosine.protocol.wire.messages import pack_tokens

RECORDED = {
    0.0: Path(__file__).parent / "texts.npz",
    0.8: Path(__file__).parent / "texts-sampled.npz",
}
"""By temperature."""
NUM_PROMPT = 48


@dataclass(frozen=True)
class Texts:
    """Recorded texts.

    tokens   [texts, length] uint16, each with a prompt of NUM_PROMPT tokens
    domains  [texts] names
    drafters [drafters] names
    guesses  [drafters, texts, length - NUM_PROMPT, guesses] uint16, best first
    shares   the same, uint8: round(255 * confidence)
    surprises [drafters, texts] float32: at the prompt, in nats per token
    temperature  of target and drafters
    """

    tokens: npt.NDArray[np.uint16]
    domains: tuple[str, ...]
    drafters: tuple[str, ...]
    guesses: npt.NDArray[np.uint16]
    shares: npt.NDArray[np.uint8]
    surprises: npt.NDArray[np.float32]
    temperature: float = 0.0

    @cached_property
    def lists(self) -> list[list[int]]:
        """The texts as plain integers."""
        found: list[list[int]] = self.tokens.tolist()
        return found

    @cached_property
    def by_prompt(self) -> dict[tuple[int, ...], int]:
        """Number of the text that begins with a prompt."""
        return {tuple(text[:NUM_PROMPT]): number for number, text in enumerate(self.lists)}

    @cached_property
    def num_vocabulary(self) -> int:
        """One more than the largest token."""
        return 1 + max(int(self.tokens.max()), int(self.guesses.max()))

    @property
    def longest_answer(self) -> int:
        """Recorded tokens after each prompt."""
        return len(self.lists[0]) - NUM_PROMPT

    def only(self, numbers: Sequence[int]) -> Texts:
        """Some of the texts, in this order."""
        chosen = list(numbers)
        return replace(
            self,
            tokens=self.tokens[chosen],
            domains=tuple(self.domains[number] for number in chosen),
            guesses=self.guesses[:, chosen],
            shares=self.shares[:, chosen],
            surprises=self.surprises[:, chosen],
        )

    def turns(self) -> list[int]:
        """The texts' numbers, domains in turn."""
        places: dict[str, int] = {}
        order = []
        for number, domain in enumerate(self.domains):
            places[domain] = places.get(domain, -1) + 1
            order.append((places[domain], list(dict.fromkeys(self.domains)).index(domain), number))
        return [number for _, _, number in sorted(order)]

    def text_of(self, tokens: Sequence[int]) -> int:
        """Which text a sequence belongs to, by its prompt."""
        return self.by_prompt[tuple(tokens[:NUM_PROMPT])]

    def guess(
        self, drafter: int, text: int, tokens: Sequence[int], path: Sequence[int]
    ) -> DraftTokens:
        """A drafter's best guesses after a sequence and a path below it."""
        sequence, truth = [*tokens, *path], self.lists[text]
        place = len(sequence) - NUM_PROMPT
        if place >= self.longest_answer or sequence != truth[: len(sequence)]:
            text, place = self._elsewhere(sequence)
        return DraftTokens(
            self.guesses[drafter, text, place].tolist(),
            (self.shares[drafter, text, place] / 255.0).tolist(),
        )

    def _elsewhere(self, sequence: Sequence[int]) -> tuple[int, int]:
        chance = zlib.crc32(pack_tokens(sequence[-8:]), len(sequence))
        num_texts = len(self.lists)
        return chance % num_texts, chance // num_texts % self.longest_answer

    def save(self, path: Path) -> None:
        """Write all arrays into one compressed file."""
        np.savez_compressed(
            path,
            tokens=self.tokens,
            domains=np.array(self.domains),
            drafters=np.array(self.drafters),
            guesses=self.guesses,
            shares=self.shares,
            surprises=self.surprises,
        )


def load_texts(temperature: float = 0.0) -> Texts:
    """Read the texts that were recorded at a temperature."""
    with np.load(RECORDED[temperature], allow_pickle=False) as held:
        return Texts(
            tokens=held["tokens"],
            domains=tuple(held["domains"].tolist()),
            drafters=tuple(held["drafters"].tolist()),
            guesses=held["guesses"],
            shares=held["shares"],
            surprises=held["surprises"],
            temperature=temperature,
        )
