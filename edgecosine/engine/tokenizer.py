"""Converts text to tokens and back with the tokenizer of the model."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgecosine.errors import RequestError
from edgecosine.protocol.api.request import ChatMessage

_UNFINISHED = "�"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_MAX_SPELLINGS = 4096
_MAX_REASON = 300
_CHARACTERS_A_TOKEN = 8
"""More characters than a token has on average."""
_EDGE = 64
"""Tokens at the end of a text that may change when the text continues."""
MAX_CONTEXT = 16
"""Most prompt tokens that are decoded as context of an answer."""


class TextCodec:
    """Encodes prompts and decodes answers; safe to use from any one thread."""

    def __init__(self, tokenizer: Any, eos_tokens: Sequence[int], num_rows: int = 1 << 31) -> None:
        """`tokenizer` is from transformers; the model has embeddings for ids below `num_rows`."""
        self._tokenizer, self.num_rows = tokenizer, num_rows
        self._decode = functools.partial(_decoder(tokenizer), skip_special_tokens=True)
        self.eos_tokens = frozenset(eos_tokens)
        self._spellings = functools.lru_cache(_MAX_SPELLINGS)(self._spell)
        self._text_of = functools.lru_cache(_MAX_SPELLINGS)(lambda token: self._decode([token]))

    @property
    def tokenizer(self) -> Any:
        """The tokenizer's object from transformers."""
        return self._tokenizer

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt, with the special tokens that the tokenizer adds."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    @property
    def facts(self) -> Mapping[str, str | None]:
        """The special tokens and the chat template, by their names in transformers."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
        found = {name: getattr(self._tokenizer, name, None) for name in names}
        return {name: value if isinstance(value, str) else None for name, value in found.items()}

    def is_longer(self, text: str, num_tokens: int) -> bool:
        """Whether the beginning of a text already has more tokens; encoding all of it is slow."""
        beginning = text[: num_tokens * _CHARACTERS_A_TOKEN]
        return len(beginning) < len(text) and len(self.encode(beginning)) > num_tokens + _EDGE

    @property
    def chat_template(self) -> str:
        """The chat template; empty for a model without one."""
        template = getattr(self._tokenizer, "chat_template", None) or ""
        return template if isinstance(template, str) else str(template.get("default", ""))

    def encode_chat(
        self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Token ids of a conversation up to the beginning of the assistant's turn.

        Raises RequestError when the model has no chat template, or the template rejects them.
        """
        return self.encode_rendered(self.render_chat(messages, tools))

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a text that has its special tokens by name."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def render_chat(
        self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """The text of a conversation up to the beginning of the assistant's turn.

        Raises RequestError as `encode_chat` does.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise RequestError(
                "this model has no chat template; use a completion request",
                code="no_chat_template",
            )
        turns = [_turn(message) for message in messages]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    turns, tools=list(tools) or None, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # templates are third-party programs
            raise RequestError(
                f"the chat template of the model rejects these messages: {_one_line(error)}",
                code="chat_template_error",
                parameter="messages",
            ) from error

    def chat_fault(self) -> str | None:
        """Why the chat template rejects a minimal chat; None where it does not or there is none."""
        if not getattr(self._tokenizer, "chat_template", None):
            return None
        try:
            self.encode_chat([ChatMessage("user", "hi")])
        except RequestError as error:
            return error.message
        return None

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens without special tokens."""
        if len(tokens) == 1:
            return self._text_of(tokens[0])
        return self._decode(tokens)

    def spelling(self, token: int) -> tuple[str, bytes]:
        """One token in the middle of a text, special ones by name: as text and as UTF-8.

        For a part of a character the text is in the form of OpenAI's API: `bytes:\\xf0`.
        """
        return self._spellings(token)

    def _spell(self, token: int) -> tuple[str, bytes]:
        before = self._letter()
        start, whole = (
            self._tokenizer.decode(
                tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            for tokens in (before, [*before, token])
        )
        text = str(whole[len(start) :])
        if _UNFINISHED not in text:
            return text, text.encode()
        utf8 = _bytes_of(str(self._tokenizer.convert_ids_to_tokens(token))) or text.encode()
        try:
            return utf8.decode(), utf8
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in utf8), utf8

    def context(self, prompt: Sequence[int]) -> list[int]:
        """Tokens to decode before an answer: the last ones of the prompt that have text, else a
        letter. Some tokenizers drop the leading space of the first token."""
        for size in range(1, min(len(prompt), MAX_CONTEXT) + 1):
            tail = list(prompt[-size:])
            if self._decode(tail):
                return tail
        return self._letter()

    def _letter(self) -> list[int]:
        return list(self._tokenizer.encode("a", add_special_tokens=False)[-1:])

    def special_token(self, name: str) -> int | None:
        """The id of the special token `name`; None if there is none, or if it decodes to text."""
        for token in self._tokenizer.encode(name, add_special_tokens=False):
            if self._tokenizer.convert_ids_to_tokens(token) == name and not self._decode([token]):
                return int(token)
        return None

    @property
    def num_tokens(self) -> int:
        """Upper bound of the token ids of the model; some below may be unused."""
        return min(self._num_ids, self.num_rows)

    @functools.cached_property
    def _num_ids(self) -> int:
        """The highest id plus 1, which exceeds the tokenizer's length where ids are unused."""
        if not hasattr(self._tokenizer, "get_vocab"):
            return len(self._tokenizer)
        return 1 + max(self._tokenizer.get_vocab().values(), default=-1)

    def vocabulary(self) -> list[bytes]:
        """The tokens by id, empty for unused ids, for comparison between nodes."""
        names = self._tokenizer.convert_ids_to_tokens(range(self._num_ids))
        return [(name or "").encode() for name in names]


def _decoder(tokenizer: Any) -> Callable[..., str]:
    """The function that decodes tokens without changing spaces. It is that of the library below
    transformers if the tokenizer's class adds nothing, since the layers of transformers cost more
    than the decoding."""
    if hasattr(tokenizer, "backend_tokenizer"):
        from transformers import PreTrainedTokenizerFast as Plain

        kind = type(tokenizer)
        if kind.decode is Plain.decode and kind._decode is Plain._decode:
            return tokenizer.backend_tokenizer.decode  # type: ignore[no-any-return]
    return functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False)


def _turn(message: ChatMessage) -> dict[str, Any]:
    """A message in the form that chat templates read: arguments of calls are objects."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.calls:
        turn["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.calls
        ]
    if message.call_id:
        turn["tool_call_id"] = message.call_id
    if message.name:
        turn["name"] = message.name
    return turn


def _arguments(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _one_line(error: Exception) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__


def _bytes_of(name: str) -> bytes:
    """The bytes that a token's name encodes: `<0xF0>`, or one letter of GPT-2's for each byte."""
    if match := _BYTE.fullmatch(name):
        return bytes.fromhex(match[1])
    letters = _byte_letters()
    return bytes(letters[letter] for letter in name) if letters.keys() >= set(name) else b""


@functools.cache
def _byte_letters() -> Mapping[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters: Mapping[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
    return {letter: byte for byte, letter in letters.items()}


@dataclass(slots=True)
class Detokenizer:
    """Converts a growing token sequence to text, piece by piece.

    A piece is returned once later tokens cannot change it, so characters of several tokens stay
    whole. `text` is all text returned so far, as it reads after `prompt`.
    """

    codec: TextCodec
    prompt: Sequence[int] = ()
    text: str = ""
    shown: Mapping[int, str] = field(default_factory=dict)
    """Special tokens that are part of the text, and their names."""
    _tokens: list[int] = field(default_factory=list)
    _start: int = 0
    """First token of the window that is decoded for each piece."""
    _read: int = 0
    """Tokens whose text was returned or belongs to the prompt."""

    def __post_init__(self) -> None:
        self._tokens = self.codec.context(self.prompt)
        self._read = len(self._tokens)

    def push(self, tokens: Sequence[int]) -> str:
        """Add tokens; returns the text that has become final."""
        piece = ""
        for token in tokens:
            if (name := self.shown.get(token)) is not None:
                piece += self.finish() + name
                self.text += name
            else:
                self._tokens.append(token)
        return piece + self._emit(is_last=False)

    def finish(self) -> str:
        """The rest of the text, incomplete characters included."""
        return self._emit(is_last=True)

    def _emit(self, *, is_last: bool) -> str:
        before = self.codec.decode(self._tokens[self._start : self._read])
        window = self.codec.decode(self._tokens[self._start :])
        if len(window) <= len(before) or (window.endswith(_UNFINISHED) and not is_last):
            return ""
        piece = window[len(before) :]
        self._start, self._read = self._read, len(self._tokens)
        self.text += piece
        return piece
