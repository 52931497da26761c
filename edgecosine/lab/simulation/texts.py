"""Recorded texts and drafts of a model, so that simulated drafts are those of real models.

A recording has, for each held-out prompt, the target's text and every drafter's guesses at every
position with their confidences, at temperature 0, or above it with shared noise. Confidences,
agreement between drafters and expertise by domain are therefore real. Below a wrong token nothing
was recorded: there a drafter guesses as at another position, which depends on the wrong token and
is the same for all drafters. Tokens below a wrong one are never accepted, so only their confidences
matter.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edgecosine import models
from edgecosine.engine.draft.draft_sampling import DraftTokens
from edgecosine.protocol.wire.messages import pack_tokens

ZOO: Final = "zoo"
RECORDED: Final[Mapping[str, tuple[float, ...]]] = {
    ZOO: (0.0, 0.8),
    models.DEFAULT_TARGET: (0.0, 0.8),
}
"""Names of the recordings, by their target (of the zoo, or of chats), and their temperatures."""
NUM_PROMPT: Final = 48
"""Tokens of each prompt of the zoo."""
_START: Final = 8
"""Number of tokens that every prompt has at least."""


@dataclass(frozen=True)
class Texts:
    """Recorded texts.

    prompts        tokens of each text before its answer
    answers        [texts, length] uint16; recorded to the same length, also beyond their ends,
                   since drafts may extend beyond an end
    ends           tokens of each answer, including its end token; `length` without an end token
    domains        [texts] names
    drafters       [drafters] names
    guesses        [drafters, texts, length, guesses] uint16, most probable first
    shares         [drafters, texts, length, guesses] uint8: round(255 * confidence)
    prompt_scores  [drafters, texts] float32, in nats per token
    temperature    temperature of target and drafters
    name           name of the recording, one of RECORDED
    """

    prompts: tuple[tuple[int, ...], ...]
    answers: npt.NDArray[np.uint16]
    ends: tuple[int, ...]
    domains: tuple[str, ...]
    drafters: tuple[str, ...]
    guesses: npt.NDArray[np.uint16]
    shares: npt.NDArray[np.uint8]
    prompt_scores: npt.NDArray[np.float32]
    temperature: float = 0.0
    name: str = ZOO

    @cached_property
    def lists(self) -> list[list[int]]:
        """The texts as plain integers, each with its prompt."""
        answers: list[list[int]] = self.answers.tolist()
        return [[*prompt, *answer] for prompt, answer in zip(self.prompts, answers, strict=True)]

    @cached_property
    def num_vocabulary(self) -> int:
        """Size of a vocabulary that has all recorded tokens."""
        return 1 + max(int(self.guesses.max()), *map(max, self.lists))

    @property
    def longest(self) -> int:
        """Tokens of the longest text, including its prompt."""
        return max(map(len, self.lists))

    @property
    def longest_answer(self) -> int:
        """Recorded tokens after each prompt."""
        return int(self.answers.shape[1])

    def answer(self, text: int, max_tokens: int) -> list[int]:
        """The first tokens of an answer, up to its end."""
        found: list[int] = self.answers[text, : min(max_tokens, self.ends[text])].tolist()
        return found

    def only(self, numbers: Sequence[int]) -> Texts:
        """The texts of these numbers, in this order."""
        chosen = list(numbers)
        return replace(
            self,
            prompts=tuple(self.prompts[number] for number in chosen),
            answers=self.answers[chosen],
            ends=tuple(self.ends[number] for number in chosen),
            domains=tuple(self.domains[number] for number in chosen),
            guesses=self.guesses[:, chosen],
            shares=self.shares[:, chosen],
            prompt_scores=self.prompt_scores[:, chosen],
        )

    def turns(self) -> list[int]:
        """The numbers of the texts in an order in which domains take turns."""
        places: dict[str, int] = {}
        order = []
        for number, domain in enumerate(self.domains):
            places[domain] = places.get(domain, -1) + 1
            order.append((places[domain], list(dict.fromkeys(self.domains)).index(domain), number))
        return [number for _, _, number in sorted(order)]

    @cached_property
    def _by_start(self) -> dict[tuple[int, ...], list[int]]:
        found: dict[tuple[int, ...], list[int]] = {}
        for number, prompt in enumerate(self.prompts):
            found.setdefault(prompt[:_START], []).append(number)
        return found

    def text_of(self, tokens: Sequence[int]) -> int:
        """The number of the text whose prompt a sequence begins with."""
        return next(
            number for number in self._by_start[tuple(tokens[:_START])]
            if tuple(tokens[: len(self.prompts[number])]) == self.prompts[number]
        )  # fmt: skip

    def guess(
        self, drafter: int, text: int, tokens: Sequence[int], path: Sequence[int]
    ) -> DraftTokens:
        """A drafter's most probable tokens after a sequence and a path of draft tokens."""
        sequence, truth = [*tokens, *path], self.lists[text]
        place = len(sequence) - len(self.prompts[text])
        if place >= self.longest_answer or sequence != truth[: len(sequence)]:
            text, place = self._elsewhere(sequence)
        return DraftTokens(
            self.guesses[drafter, text, place].tolist(),
            (self.shares[drafter, text, place] / 255.0).tolist(),
        )

    def _elsewhere(self, sequence: Sequence[int]) -> tuple[int, int]:
        chance = zlib.crc32(pack_tokens(sequence[-8:]), len(sequence))
        num_texts = len(self.prompts)
        text = chance % num_texts
        return text, chance // num_texts % self.ends[text]

    def save(self, path: Path) -> None:
        """Write all arrays into one compressed file; prompts are padded on their left."""
        longest = max(map(len, self.prompts))
        padded = np.array([[0] * (longest - len(each)) + [*each] for each in self.prompts])
        np.savez_compressed(
            path,
            tokens=np.concatenate([padded, self.answers], axis=1).astype(np.uint16),
            prompt_lengths=np.array(list(map(len, self.prompts)), np.uint16),
            answer_lengths=np.array(self.ends, np.uint16),
            domains=np.array(self.domains),
            drafters=np.array(self.drafters),
            guesses=self.guesses,
            shares=self.shares,
            surprises=self.prompt_scores,
        )


def path_of(name: str, temperature: float) -> Path:
    """The file of a recording."""
    return Path(__file__).with_name(f"{name}{'-sampled' if temperature else ''}.npz")


def load_texts(temperature: float = 0.0, name: str = ZOO) -> Texts:
    """Read the texts that were recorded at a temperature."""
    return read_texts(path_of(name, temperature), temperature, name)


def read_texts(path: Path, temperature: float, name: str) -> Texts:
    """Read a file that `Texts.save` wrote."""
    with np.load(path, allow_pickle=False) as held:
        longest = held["tokens"].shape[1] - held["guesses"].shape[2]
        padded: list[list[int]] = held["tokens"][:, :longest].tolist()
        lengths: list[int] = held["prompt_lengths"].tolist()
        return Texts(
            prompts=tuple(
                tuple(row[longest - length :]) for row, length in zip(padded, lengths, strict=True)
            ),
            answers=held["tokens"][:, longest:],
            ends=tuple(held["answer_lengths"].tolist()),
            domains=tuple(held["domains"].tolist()),
            drafters=tuple(held["drafters"].tolist()),
            guesses=held["guesses"],
            shares=held["shares"],
            prompt_scores=held["surprises"],
            temperature=temperature,
            name=name,
        )
