"""The packages that only models need: those of the extra `models`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from edgecosine.errors import ModelsNotInstalled

NEEDED: Final = ("torch", "transformers", "safetensors", "gguf")
"""By every model; a quantised one needs accelerate and bitsandbytes as well."""
EXTRA: Final = frozenset({*NEEDED, "accelerate", "bitsandbytes"})


def require_packages(what: str) -> None:
    """Raises ModelsNotInstalled when `what` needs a model and the packages for it are missing."""
    if missing := _missing():
        raise ModelsNotInstalled(what, missing)


def are_installed() -> bool:
    """Whether the packages for models are here."""
    return not _missing()


def _missing() -> list[str]:
    return [name for name in NEEDED if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:  # a finder that refuses the name
        return False
