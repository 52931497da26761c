"""`/v1/models`, `/health`, `/ready` and `/version`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgecosine import __version__
from edgecosine.errors import RequestError
from edgecosine.http.backend import Backend
from edgecosine.http.replies import error_reply, json_reply


def catalogue_routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes that describe the served models, and whether they can be used now."""
    created_s = int(time.time())

    def described(name: str) -> dict[str, Any]:
        info = backend.info
        return {
            "id": name,
            "object": "model",
            "created": created_s,
            "owned_by": "edgecosine",
            "root": name,
            "max_model_len": info["max_context"],
            "system_fingerprint": info.get("identity"),
            **({"committee": info["committee"]} if "committee" in info else {}),
        }

    async def models(_: HttpRequest) -> Response:
        data = [described(name) for name in backend.info["models"]]
        return json_reply({"object": "list", "data": data})

    async def model(http: HttpRequest) -> Response:
        name = http.path_params["name"]
        if name not in backend.info["models"]:
            raise RequestError(
                "this model is not served here", code="model_not_found", parameter="model",
                status=404,
            )  # fmt: skip
        return json_reply(described(name))

    async def health(_: HttpRequest) -> Response:
        if (objection := backend.objection) is not None:
            return error_reply(objection)
        return json_reply({"status": "ok"})

    async def version(_: HttpRequest) -> Response:
        return json_reply({"version": __version__})

    return (
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
        Route("/ready", health),
        Route("/version", version),
    )
