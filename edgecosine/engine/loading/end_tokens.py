"""Collects the tokens that end an answer from all files of a model.

generation_config.json, config.json and the tokenizer often disagree, and each may be the correct
one. The token that the chat template puts after an assistant's turn is the one used in training.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

logger = logging.getLogger(__name__)

_ANSWER: Final = "Yes"


def end_tokens(config: Any, files: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[int]:
    """Ids that end an answer, in order.

    `config` is the configuration of the model, `files` are the contents of config.json and
    generation_config.json. The default of the family is used where no file names a token.
    """
    named = [tokenizer.eos_token_id, turn_end(tokenizer)]
    for settings in files:
        inner = settings.get("text_config")
        named += [
            part.get("eos_token_id") for part in (settings, inner) if isinstance(part, Mapping)
        ]
    ids = set(_ids(named, tokenizer)) or set(
        _ids([config.get_text_config().eos_token_id], tokenizer)
    )
    return sorted(token for token in ids if token >= 0)


def turn_end(tokenizer: Any) -> int | None:
    """The special token that the chat template puts after the text of the assistant; None where
    there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception as error:  # noqa: BLE001 -- a template may raise any error
        logger.debug("chat template rejects two turns: reason=%s", error)
        return None
    after = text.rpartition(_ANSWER)[2].strip()
    tokens = tokenizer.encode(after, add_special_tokens=False) if after else []
    is_special = bool(tokens) and tokens[0] in tokenizer.added_tokens_decoder
    is_special = is_special and tokenizer.added_tokens_decoder[tokens[0]].special
    return tokens[0] if is_special else None


def _ids(named: Iterable[Any], tokenizer: Any) -> Iterable[int]:
    """Ids of values that may be numbers, lists, and strings of an id or of a token."""
    for each in named:
        if isinstance(each, list | tuple):
            yield from _ids(each, tokenizer)
        elif isinstance(each, str):
            is_number = each.strip().isdecimal()
            known = None if is_number else tokenizer.get_vocab().get(each)
            if is_number:
                yield int(each)
            elif known is not None:
                yield known
            else:
                logger.warning("unknown end token ignored: token=%r", each)
        elif isinstance(each, int | float) and not isinstance(each, bool) and each == int(each):
            yield int(each)
