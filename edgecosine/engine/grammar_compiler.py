"""Compiles grammars by llguidance, without asyncio and processes."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from copy import copy
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgecosine.errors import RequestError
from edgecosine.protocol.api.response_format import ResponseFormat, refuse_schema

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MAX_REASON: Final = 500
# One spelling of a value leaves fewer tokens to chance, and none to a model that repeats blanks.
# A schema can choose otherwise by `x-guidance`.
_JSON: Final[Any] = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ",
}  # fmt: skip
_COUNTED: Final = re.compile(r"\[[^\]\n/\"]*\b(max_tokens|stop)\s*=")
"""Attributes of Lark rules that count tokens or stop at texts: llguidance cannot take them back."""


class TokenizerText(msgspec.Struct, frozen=True):
    """What llguidance makes a tokenizer from: the content of a tokenizer.json, the number of
    tokens, and the end tokens."""

    content: str
    num_tokens: int
    eos_tokens: tuple[int, ...]


@functools.cache
def grammar_version() -> str:
    """The library and its version, on which answers of a format depend."""
    return f"llguidance {metadata.version('llguidance')}"


def grammar_source(form: ResponseFormat) -> str:
    """The grammar of a format in llguidance's form.

    Raises RequestError, and ValueError for a schema that llguidance cannot read.
    """
    from llguidance import LLMatcher

    match form.kind:
        case "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}', defaults=_JSON)
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(form.text, defaults=_JSON)
        case "regex":
            return LLMatcher.grammar_from_regex(form.text)
        case "choice":
            choices = " | ".join(json.dumps(text) for text in json.loads(form.text))
            return LLMatcher.grammar_from_lark(f"start: {choices}")
    if match := _COUNTED.search(form.text):
        refuse_schema(f"a grammar with {match[1]}= cannot be used: such rules cannot be taken back")
    return LLMatcher.grammar_from_lark(form.text)


def tokenizer_text(tokenizer: Any, eos_tokens: Sequence[int], num_tokens: int) -> TokenizerText:
    """The text of a tokenizer from transformers; `num_tokens` is the bound of its token ids.

    Raises RequestError where grammars cannot be used with it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RequestError(
            "response formats cannot be used with the tokenizer of this model: it has no "
            "tokenizer.json",
            code="unsupported_value",
            parameter="response_format",
        )
    backend = copy(backend)
    backend.no_padding()
    backend.no_truncation()
    return TokenizerText(backend.to_str(), num_tokens, tuple(eos_tokens))


def load_tokenizer(text: TokenizerText) -> LLTokenizer:
    """llguidance's tokenizer; takes up to seconds."""
    from llguidance import LLTokenizer

    return LLTokenizer(text.content, n_vocab=text.num_tokens, eos_token=list(text.eos_tokens))


def compiled(tokenizer: LLTokenizer, source: str) -> LLMatcher:
    """A matcher at the start of an answer, or one in error. Some grammars are endless here."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(initial_lexer_fuel=300_000, verbose_errors=False)
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # some grammars prove too complex at their first mask
    return matcher


def reason_of(matcher: LLMatcher) -> str:
    """Why a matcher is in error."""
    reason = one_line(matcher.get_error())
    if "NoExtension" in reason:
        return "no text of this model's tokens has this form"
    return reason or matcher.stop_reason()


def one_line(reason: str) -> str:
    """A reason of the library on one line, without the dump of its state."""
    said = reason.partition("<state>")[0].replace("<non-verbose/>", "")
    return " ".join(said.split())[:_MAX_REASON]
