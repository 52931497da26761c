"""Structures and constants that Python and the kernels share.

`kernel_library` compares them with the values that the kernels report.
"""

from __future__ import annotations

import ctypes
import enum
from typing import Final

from edgecosine.fusion.shared_noise import FIRST, GOLDEN, SECOND
from edgecosine.protocol.wire.tree import ROOT

TREE_CAPACITY: Final = 2048
"""Nodes of a draft tree; a full tree is not explored further."""
CHILDREN: Final = 4
"""Draft tokens that are kept after each node of a draft tree."""
BLOCK_SIZE: Final = 32
"""Inputs of a column that share a scale where weights have 8 or 4 bits."""
MAX_NLL: Final = 16.0
"""Highest NLL of one token, in nats; it would be infinite outside a shortlist."""
UNREAD: Final = -1
NO_NODE: Final = -1


class WeightLayout(enum.IntEnum):
    """How panels hold weights."""

    FLOAT32 = 0
    BFLOAT16 = 1
    PAIRS = 2
    WIDE_PAIRS = 3
    """Pairs, multiplied with float32 inputs at half the speed."""
    BYTES = 4
    """Blocks of 8 bits, multiplied with inputs that are rounded to 8 bits."""
    WIDE_BYTES = 5
    """The same blocks, multiplied with float32 inputs, slowly."""
    NIBBLES = 6
    """Blocks of 4 bits, multiplied as those of 8 bits."""
    WIDE_NIBBLES = 7

    @property
    def wide(self) -> WeightLayout:
        """The layout that multiplies the same panels with float32 inputs."""
        return _WIDE.get(self, self)


_WIDE = {
    WeightLayout.PAIRS: WeightLayout.WIDE_PAIRS,
    WeightLayout.BYTES: WeightLayout.WIDE_BYTES,
    WeightLayout.NIBBLES: WeightLayout.WIDE_NIBBLES,
}


class NativeWeight(ctypes.Structure):
    """A packed matrix."""

    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("layout", ctypes.c_int64),
    )


MATRICES = ("query_key_value", "output", "gate_up", "down")


class NativeLayer(ctypes.Structure):
    """Weights and cache of one layer."""

    _fields_ = (
        *((name, NativeWeight) for name in MATRICES),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "input_norm", "middle_norm", "query_norm", "key_norm", "keys", "values"
            )
        ),
        ("window", ctypes.c_int64),
    )  # fmt: skip


class NativeDecoder(ctypes.Structure):
    """A whole model and its sizes."""

    _fields_ = (
        ("layers", ctypes.POINTER(NativeLayer)),
        ("head", NativeWeight),
        *(
            (name, ctypes.c_void_p)
            for name in ("embedding", "output_norm", "cosine", "sine", "shortlist")
        ),
        *(
            (name, ctypes.c_int64)
            for name in (
                "num_layers", "hidden", "heads", "groups", "head_size", "inner", "slot_size",
                "embedding_bytes", "threads", "vocabulary", "slots", "cell_bytes",
            )
        ),
        ("epsilon", ctypes.c_float),
        ("scale", ctypes.c_float),
    )  # fmt: skip


class NativeNodes(ctypes.Structure):
    """The nodes of a draft tree as columns; see `DraftTree`."""

    _fields_ = (
        ("length", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("num_read", ctypes.c_int32),
        ("first_of_root", ctypes.c_int32),
        *((name, ctypes.c_int32 * TREE_CAPACITY) for name in ("token", "parent", "depth")),
        ("kv_position", ctypes.c_int32 * TREE_CAPACITY),
        ("first", ctypes.c_int32 * TREE_CAPACITY),
        *(
            (name, ctypes.c_double * TREE_CAPACITY)
            for name in ("confidence", "path_probability", "share")
        ),
        ("share_of_root", ctypes.c_double),
    )


class NativeDraftWork(ctypes.Structure):
    """One work of `edgecosine_draft_step`; `is_top1`, `num_chosen` and `nll` are outputs."""

    _fields_ = (
        ("nodes", ctypes.POINTER(NativeNodes)),
        ("seeded", ctypes.POINTER(ctypes.c_int32)),
        ("pending", ctypes.POINTER(ctypes.c_int32)),
        ("is_top1", ctypes.POINTER(ctypes.c_uint8)),
        ("noise_seed", ctypes.c_uint64),
        *(
            (name, ctypes.c_int64)
            for name in (
                "num_seeded", "num_pending", "slot", "width", "room", "deepest", "num_scored",
                "num_chosen",
            )
        ),
        ("nll", ctypes.c_double),
        ("inverse_temperature", ctypes.c_float),
        ("is_noisy", ctypes.c_int32),
    )  # fmt: skip


def shared_values() -> dict[str, int]:
    """Sizes and constants by name, in the order of `edgecosine_shared_values` in the kernels."""
    structures = (NativeWeight, NativeLayer, NativeDecoder, NativeNodes, NativeDraftWork)
    noise = {"GOLDEN": GOLDEN, "FIRST": FIRST, "SECOND": SECOND}
    return {
        **{structure.__name__: ctypes.sizeof(structure) for structure in structures},
        "TREE_CAPACITY": TREE_CAPACITY,
        "CHILDREN": CHILDREN,
        "MAX_NLL": int(MAX_NLL),
        "ROOT": ROOT,
        "UNREAD": UNREAD,
        "NO_NODE": NO_NODE,
        "BLOCK_SIZE": BLOCK_SIZE,
        **{layout.name: layout.value for layout in WeightLayout},
        **{name: ctypes.c_int64(value).value for name, value in noise.items()},
    }
