"""Checks that the tensors of a checkpoint and of its model correspond one to one.

transformers initialises missing weights at random and ignores unknown ones, with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from transformers.quantizers.auto import AutoHfQuantizer

from edgecosine.errors import ModelUnavailable, ModelUnsupported

_HARMLESS: Final = re.compile(
    r"""
    (^|\.)(rotary_emb|rope|rotary)\.\w*(inv_freq|cos_cached|sin_cached)$  # computed from settings
    | (^|\.)(attn|attention|self_attn)\.(bias|masked_bias)$  # GPT-2's causal masks
    | (^|\.)(position_ids|_extra_state)$
    | (^|\.)mtp(_layers|_block|s)?\.  # heads for multi-token prediction
    # Encoders of images and sounds, which are not supported here.
    | ^(model\.)?(vision_tower|vision_model|visual|audio_tower|multi_modal_projector
        |embed_vision|embed_audio)\.
    """,
    re.VERBOSE,
)
_LAYER: Final = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_SCALES: Final = re.compile(
    r"scale|zero_?point|\bqweight|\bqzeros|g_idx|absmax|quant_(map|state)|\bSCB$|_blocks$|packed"
)
_PART: Final = re.compile(
    r"(.+)\.((?:nested_)?(?:absmax|quant_map)|quant_state\..+|SCB|weight_format)"
)
_CODED: Final = ("I", "U", "F8", "F4", "F6")
"""Number formats of quantised weights."""
_PREFIXES: Final = ("model", "transformer", "gpt_neox")
"""transformers accepts names with and without these."""
_HEAD: Final = "lm_head.weight"
_NAMED = 3


def check_tensors(name: str, config: Any, info: Mapping[str, Any]) -> None:
    """Check `info`, the `output_loading_info` of transformers for the model `name`.

    Raises ModelUnavailable where tensors are missing or of another shape, ModelUnsupported where
    the file has tensors that the model does not use.
    """
    missing, unexpected = set(info["missing_keys"]), _unaccounted(config, info["unexpected_keys"])
    shapes = {key: (list(found), list(wanted)) for key, found, wanted in info["mismatched_keys"]}
    faults = []
    if missing:
        faults.append(f"it lacks {_some(missing)}")
    if shapes:
        faults.append(
            "of another shape "
            + _some(shapes, lambda key: f"{key} ({shapes[key][0]}, not {shapes[key][1]})")
        )
    if unexpected:
        kind = "scales of an unknown quantisation" if _are_scales(unexpected) else ""
        faults.append(f"no place for {_some(unexpected)}" + (f", {kind}" if kind else ""))
    if not faults:
        return
    remedy = "use a complete safetensors checkpoint of this family that names its format"
    if missing == {_HEAD}:
        remedy = "set tie_word_embeddings in config.json if its output layer is the embedding"
    error = ModelUnavailable if missing or shapes else ModelUnsupported
    raise error(f"{name} does not match its config.json: {'; '.join(faults)}; {remedy}")


def check_stored(name: str, files: Sequence[Path], config: Any) -> None:
    """Check what transformers does not report about the files of the model `name`.

    Raises ModelUnavailable for duplicate tensors and quantised tensors with missing parts,
    ModelUnsupported for quantised tensors without a quantisation in config.json.
    """
    kinds = dict[str, str]()
    twice = set[str]()
    for file in files:
        with safe_open(file, "pt") as opened:
            keys = set(opened.keys())
            twice |= keys & kinds.keys()
            kinds |= {key: opened.get_slice(key).get_dtype() for key in keys}
    twice |= {key for key in kinds for prefix in _PREFIXES if f"{prefix}.{key}" in kinds}
    if twice:
        raise ModelUnavailable(
            f"{name} has duplicates of {_some(twice)}; use a complete checkpoint"
        )
    if parts := _missing_parts(kinds):
        raise ModelUnavailable(
            f"{name} lacks parts of quantised weights, {_some(parts)}; use a complete checkpoint"
        )
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        coded = {
            key
            for key, kind in kinds.items()
            if kind.startswith(_CODED) and not _HARMLESS.search(key)
        }
        if coded:
            raise ModelUnsupported(
                f"{name} has {_some(coded, lambda key: f'{key} ({kinds[key]})')}, and its "
                "config.json does not name the quantisation; use a checkpoint that does"
            )
    elif not AutoHfQuantizer.supports_quant_method(quantization):  # type: ignore[no-untyped-call]
        raise ModelUnsupported(
            f"{name} has a quantisation that transformers does not support "
            f"({getattr(quantization, 'quant_method', quantization)}); use another checkpoint"
        )


def _missing_parts(keys: Collection[str]) -> set[str]:
    """Parts that some but not all of the quantised weights of bitsandbytes have."""
    parts = dict[str, set[str]]()
    for key in keys:
        if found := _PART.fullmatch(key):
            parts.setdefault(found[1], set()).add(found[2])
    everywhere = set().union(*parts.values())
    return {f"{stem}.{part}" for stem, own in parts.items() for part in everywhere - own}


def _unaccounted(config: Any, unexpected: Collection[str]) -> set[str]:
    text = config.get_text_config()
    num_layers = getattr(text, "num_hidden_layers", None) or 0
    num_ahead = getattr(text, "num_nextn_predict_layers", None) or 0
    further = {str(layer) for layer in range(num_layers, num_layers + num_ahead)}

    def is_harmless(key: str) -> bool:
        layer = _LAYER.search(key)
        return bool(_HARMLESS.search(key)) or (layer is not None and layer[1] in further)

    return {key for key in unexpected if not is_harmless(key)}


def _are_scales(keys: Collection[str]) -> bool:
    return any(_SCALES.search(key.rpartition(".")[2]) for key in keys)


def _some(keys: Collection[str], spell: Callable[[str], str] = str) -> str:
    """`3 tensors: a, b, c`, with at most the first names."""
    first = ", ".join(spell(key) for key in sorted(keys)[:_NAMED])
    return (
        f"{len(keys)} tensor{'s' if len(keys) > 1 else ''}: {first}"
        f"{', …' if len(keys) > _NAMED else ''}"
    )
