"""`/tokenize`, `/detokenize` and `/tokenizer_info`, in vLLM's form."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgecosine.errors import RequestError
from edgecosine.http.backend import Backend, Tokenizer
from edgecosine.http.body import read_body
from edgecosine.http.replies import json_reply
from edgecosine.protocol.api.chat import MAX_PROMPT_TOKENS, missing, read_messages, read_prompt
from edgecosine.protocol.api.json_fields import Fields, read_object


def tokenization_routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes by which clients use the model's tokenizer."""

    async def tokenize(http: HttpRequest) -> Response:
        tokenizer, body = _tokenizer_of(backend), read_object(await read_body(http))
        if "messages" in body:
            tokens = tokenizer.encode_chat(read_messages(body))
        else:
            special = Fields(body).boolean("add_special_tokens", default=True)
            tokens = tokenizer.encode(read_prompt(body), add_special_tokens=special)
        limit = backend.info["max_context"]
        return json_reply({"count": len(tokens), "max_model_len": limit, "tokens": tokens})

    async def detokenize(http: HttpRequest) -> Response:
        tokenizer, body = _tokenizer_of(backend), read_object(await read_body(http))
        if body.get("tokens") is None:
            missing("tokens")
        tokens = Fields(body).tokens("tokens", max_entries=MAX_PROMPT_TOKENS)
        if max(tokens, default=0) >= tokenizer.num_tokens:
            raise RequestError(
                f"tokens names a token above {tokenizer.num_tokens - 1}", code="invalid_value",
                parameter="tokens",
            )  # fmt: skip
        return json_reply({"prompt": tokenizer.decode(tokens)})

    async def info(_: HttpRequest) -> Response:
        return json_reply(_tokenizer_of(backend).facts)

    return (
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/tokenizer_info", info),
    )


def _tokenizer_of(backend: Backend) -> Tokenizer:
    if backend.tokenizer is None:
        raise RequestError(
            "the tokenizer is not available here; ask a target", code="no_tokenizer", status=404
        )
    return backend.tokenizer
