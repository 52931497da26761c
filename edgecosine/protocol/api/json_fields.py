"""Validates the fields of an untrusted JSON object.

Each method returns a valid value, or the default when the field is absent or null, or raises
RequestError with the field's name. Messages never repeat refused text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, NoReturn

import msgspec

from edgecosine.errors import RequestError

_SHOWN_DIGITS = 40
_MAX_NAME_BYTES: Final = 1024
_BOM: Final = b"\xef\xbb\xbf"
_NULL: Final = msgspec.Raw(b"null")


class _Names(msgspec.Struct, frozen=True):
    """The fields for client, id and reply topic, not yet decoded."""

    client: msgspec.Raw = _NULL
    id: msgspec.Raw = _NULL
    reply_to: msgspec.Raw = _NULL


_names = msgspec.json.Decoder(_Names).decode
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_object(payload: bytes) -> dict[str, object]:
    """Parse the JSON object in `payload`; the literals NaN and Infinity become floats.

    Raises RequestError.
    """
    try:
        body = json.loads(payload.decode("utf-8-sig"), parse_constant=float)
    except UnicodeDecodeError as error:
        raise RequestError("the body is not UTF-8", code="invalid_encoding") from error
    except RecursionError as error:
        raise RequestError("the body is nested too deeply", code="invalid_json") from error
    except json.JSONDecodeError as error:
        raise RequestError(
            f"the body is not JSON: {error.msg} at character {error.pos}", code="invalid_json"
        ) from error
    except ValueError as error:
        raise RequestError("a number in the body is too long", code="invalid_json") from error
    if not isinstance(body, dict):
        raise RequestError("the body is not a JSON object", code="invalid_json")
    return body


def read_names(payload: bytes | bytearray) -> dict[str, object]:
    """`client`, `id` and `reply_to` of a JSON object of any size; empty when it cannot be read.

    The rest of the object is not stored.
    """
    try:
        names = _names(payload.removeprefix(_BOM))
        raw = {"client": names.client, "id": names.id, "reply_to": names.reply_to}
        return {
            name: msgspec.json.decode(value)
            for name, value in raw.items()
            if len(bytes(value)) <= _MAX_NAME_BYTES
        }
    except _UNREADABLE:
        return {}


def read_text(payload: bytes) -> str:
    """The UTF-8 text in `payload`.

    Raises RequestError.
    """
    try:
        return payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError("the body is not UTF-8", code="invalid_encoding") from error


def is_sound(text: str) -> bool:
    """Whether the text can be encoded; JSON can contain single surrogates, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Fields:
    """The fields of one object."""

    def __init__(self, body: Mapping[str, object]) -> None:
        self._body = body

    def get(self, name: str) -> object:
        """The raw value; None when the field is absent or null."""
        return self._body.get(name)

    def boolean(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self._body.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            wrong_type(name, "a boolean")
        return value

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        """A whole number, low <= n <= high."""
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            wrong_type(name, "an integer")
        if value < low:
            _out_of_range(name, value, f"at least {low}", "integer_below_min_value")
        if value > high:
            _out_of_range(name, value, f"at most {high}", "integer_above_max_value")
        return value

    def number(
        self, name: str, default: float, *, low: float, high: float, above: bool = False
    ) -> float:
        """A finite number, low <= x <= high, or low < x <= high when `above`."""
        return _number(name, self._body.get(name), default, low=low, high=high, above=above)

    def text(self, name: str, *, max_length: int) -> str | None:
        """Text of 1 to `max_length` characters."""
        value = self._body.get(name)
        return None if value is None else check_text(name, value, max_length=max_length)

    def tokens(self, name: str, *, max_entries: int) -> tuple[int, ...]:
        """A list of token ids."""
        value = self._body.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or any(type(each) is not int for each in value):
            wrong_type(name, "a list of token ids")
        if len(value) > max_entries:
            invalid(name, f"{name} has at most {max_entries} entries")
        if not all(0 <= token < 1 << 31 for token in value):
            invalid(name, f"an entry of {name} is not a token id")
        return tuple(value)

    def biases(self, name: str, *, max_entries: int, limit: float) -> tuple[tuple[int, float], ...]:
        """A map from token ids in decimal text to numbers in [-limit, limit], sorted by id."""
        value = self._body.get(name)
        if value is None:
            return ()
        if not isinstance(value, dict) or None in value.values():
            wrong_type(name, "an object of token ids and numbers")
        if len(value) > max_entries:
            invalid(name, f"{name} has at most {max_entries} entries")
        return tuple(
            sorted(
                (
                    _token_id(name, token),
                    _number(name, bias, 0.0, low=-limit, high=limit, above=False),
                )
                for token, bias in value.items()
            )
        )


def check_text(name: str, value: object, *, max_length: int) -> str:
    """Return `value` if it is text of 1 to `max_length` characters that can be encoded.

    Raises RequestError.
    """
    if not isinstance(value, str):
        wrong_type(name, "a string")
    if not 1 <= len(value) <= max_length:
        invalid(name, f"{name} has 1 to {max_length} characters")
    if not is_sound(value):
        invalid(name, f"{name} holds half of a surrogate pair")
    return value


def wrong_type(name: str, expected: str) -> NoReturn:
    """Raise RequestError for a field's type."""
    raise RequestError(f"{name} is not {expected}", code="invalid_type", parameter=name)


def invalid(name: str, message: str) -> NoReturn:
    """Raise RequestError for a field's value."""
    raise RequestError(message, code="invalid_value", parameter=name)


def _number(
    name: str, value: object, default: float, *, low: float, high: float, above: bool
) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        wrong_type(name, "a number")
    if value > high:
        _out_of_range(name, value, f"at most {high:.15g}", "decimal_above_max_value")
    # In this form NaN, which compares false with everything, is refused too.
    if not (value > low if above else value >= low):
        bound = f"{'above' if above else 'at least'} {low:.15g}"
        _out_of_range(name, value, bound, "decimal_below_min_value")
    return float(value)


def _token_id(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:12]) < 1 << 31 and len(text) <= 10):
        invalid(name, f"a key of {name} is not a token id")
    return int(text)


def _out_of_range(name: str, value: float, allowed: str, code: str) -> NoReturn:
    shown = str(value)[:_SHOWN_DIGITS]
    raise RequestError(f"{name} is {shown}; it must be {allowed}", code=code, parameter=name)
