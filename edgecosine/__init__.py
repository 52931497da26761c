"""EdgeCoSine: an edge cluster runtime for cooperative speculative decoding.

`from edgecosine import Client, Request` gives the Python client of a cluster:

    async with Client("mqtt://broker.local", "home") as client:
        async for step in client.ask(Request("me", "1", "chat", "Hello!")):
            ...

Both names are imported on first use, so that `import edgecosine` loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgecosine.client.client import Client
    from edgecosine.protocol.api.request import Request

__all__ = ["Client", "Request"]
__version__ = "0.1.0"

_MODULES: Final = {
    "Client": "edgecosine.client.client",
    "Request": "edgecosine.protocol.api.request",
}


def __getattr__(name: str) -> object:
    """The public class `name`. Raises AttributeError for any other name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
