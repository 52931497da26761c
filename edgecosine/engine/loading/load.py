"""Loads the engine of a target or of a drafter."""

from __future__ import annotations

import logging
from dataclasses import replace

from edgecosine.engine.base import DraftEngine, MemberEngine
from edgecosine.engine.draft.draft_progress import TREE_ROOM
from edgecosine.engine.draft.drafter import TransformerDrafter
from edgecosine.engine.draft.prompt_lookup import load_ngram
from edgecosine.engine.loading.load_errors import refusing
from edgecosine.engine.loading.load_model import load_model
from edgecosine.engine.loading.load_plan import kernels_if_any, quickest_form
from edgecosine.engine.loading.load_ranks import load_over_ranks
from edgecosine.engine.options import Loaded, LoadOptions
from edgecosine.engine.target.member import TransformerMember
from edgecosine.errors import ModelUnsupported
from edgecosine.models import NGRAM

logger = logging.getLogger(__name__)


def load_target(options: LoadOptions) -> tuple[MemberEngine, Loaded]:
    """Load the engine of a target or of a member of a committee.

    Raises ModelUnavailable, ModelUnsupported or OutOfMemory.
    """
    if options.model == NGRAM:
        raise ModelUnsupported("ngram is a drafter; a target needs a model")
    with refusing(f"cannot serve {options.model!r}"):
        load = load_model if options.tensor_parallel == 1 else load_over_ranks
        model, loaded, slot_size = load(options)
    engine = TransformerMember(
        model,
        slots=options.slots,
        max_context=loaded.max_context,
        eos_tokens=loaded.codec.eos_tokens if loaded.codec else (),
        num_tokens=loaded.num_rows,
        switches_at=loaded.switches_at,
    )
    assert loaded.codec is not None
    if (fault := loaded.codec.chat_fault()) is not None:
        logger.warning("chat requests are refused, completions are served: reason=%s", fault)
    logger.info(
        "target loaded: model=%s weights=%s instructions=%s slot_size=%d tensor_parallel=%d "
        "exactness=%s reason=%s",
        loaded.name,
        loaded.form,
        kernels.instructions if (kernels := kernels_if_any()) else "torch",
        slot_size,
        options.tensor_parallel,
        loaded.exactness,
        loaded.exactness_reason,
    )
    return engine, loaded


def load_drafter(options: LoadOptions) -> tuple[DraftEngine, Loaded]:
    """Load a draft engine: a model, or the drafter without a model, `ngram`.

    Raises ModelUnavailable, ModelUnsupported or OutOfMemory.
    """
    if options.tensor_parallel > 1:
        raise ModelUnsupported("only a target can be tensor-parallel")
    if options.model == NGRAM:
        return load_ngram()
    # Drafts cannot change an answer, so drafters need no exactness policy.
    options = replace(options, exactness="rounding")
    with refusing(f"cannot draft with {options.model!r}"):
        options = replace(options, weights=quickest_form(options))
        model, loaded, _ = load_model(options, room=TREE_ROOM)
    engine = TransformerDrafter(
        model, slots=options.slots, max_context=loaded.max_context, kernels=kernels_if_any(),
        switches_at=loaded.switches_at,
    )  # fmt: skip
    return engine, loaded
