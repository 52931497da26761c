"""Whether a model family works here: its passes are compared with the model's own plain forward.

Families with recurrent state, masks by cache index or attention of their own fail this test and
are refused by name, instead of being served wrongly.
"""

from __future__ import annotations

from typing import Any

import torch

from edgecosine.engine.model import PassModel
from edgecosine.engine.rows import RowBuilder
from edgecosine.errors import ModelUnsupported
from edgecosine.protocol.tree import TokenTree

_LENGTH = 12
_CUT = 7
_TOLERANCE = 0.02


def _tokens(vocabulary: int) -> list[int]:
    return [(7 + 31 * i) % min(vocabulary, 1000) for i in range(_LENGTH)]


@torch.inference_mode()
def reference_logits(model: Any) -> torch.Tensor:
    """Logits [length, vocabulary] of a fixed sequence, by the model's own attention."""
    tokens = _tokens(model.config.get_text_config().vocab_size)
    output = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False)
    logits: torch.Tensor = output.logits[0].float().cpu()
    return logits


def check_family(model: PassModel, reference: torch.Tensor, family: str) -> None:
    """Run the same sequence as a chunk and then as a branch of a tree.

    Raises ModelUnsupported when the logits differ by more than rounding.
    """
    tokens = _tokens(reference.shape[1])
    try:
        head = RowBuilder()
        head.add_sequence(0, 0, tokens[:_CUT])
        first = model.forward(head.build(), range(_CUT))
        branch, other = tokens[_CUT:], (tokens[_CUT] + 1) % reference.shape[1]
        size = len(branch)
        tree = TokenTree(
            tokens=(other, *branch), parents=(-1, -1, *range(1, size)),
            confidences=(1.0,) * (size + 1), proposers=(1,) * (size + 1),
        )  # fmt: skip
        tail = RowBuilder()
        tail.add_tree(0, _CUT, tree)
        second = model.forward(tail.build(), range(1, size + 1))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelUnsupported(f"model family {family!r} cannot run here: {error}") from error
    deviation = (torch.cat([first, second]).cpu() - reference).abs().max().item()
    scale = reference.abs().max().item() + 1e-6
    if not deviation <= _TOLERANCE * scale:
        raise ModelUnsupported(
            f"model family {family!r} gives other logits under token trees than in plain order "
            f"({deviation:.2g} on a scale of {scale:.2g})"
        )
