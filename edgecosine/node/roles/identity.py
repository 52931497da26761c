"""The identity of all that a target's texts depend on, and the name under which it is served."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from edgecosine.config import NodeConfig
from edgecosine.engine.grammar_compiler import grammar_version
from edgecosine.engine.options import Loaded


def checkpoint_of(config: NodeConfig, loaded: Loaded) -> str:
    """Digest of everything but the request that determines a model's texts."""
    return _digest(
        loaded.digest, loaded.dtype, loaded.form, loaded.kv_dtype, loaded.exactness,
        loaded.max_context, config.engine.ballast, config.engine.tensor_parallel,
    )  # fmt: skip


def identity_of(
    config: NodeConfig, loaded: Loaded, members: Sequence[tuple[float, str]] = ()
) -> str:
    """Digest of everything but the request that determines a target's texts; `members` are the
    weights and checkpoints of a committee, in order."""
    loss = config.committee.on_member_loss
    return _digest(checkpoint_of(config, loaded), grammar_version(), [*members], loss)


def served_name(config: NodeConfig, loaded: Loaded) -> str:
    """The name of the served model: that of the target's own, and the names of other members."""
    others = config.committee.weights
    return "+".join([loaded.name, *others] if config.committee.own_weight else others)


def _digest(*facts: Any) -> str:
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
