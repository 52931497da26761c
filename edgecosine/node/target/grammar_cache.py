"""Compiles response formats outside of the event loop, and keeps the latest ones."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from typing import Final

from edgecosine.engine.answer_grammar import AnswerForm
from edgecosine.engine.base import Constraint
from edgecosine.engine.grammar import Grammar, Grammars
from edgecosine.engine.tokenizer import TextCodec

MAX_GRAMMARS: Final = 64


class GrammarCache:
    """The grammars of the requests to one model."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._grammars: Grammars | None = None
        self._loading = threading.Lock()
        self._compiled: OrderedDict[AnswerForm, Grammar] = OrderedDict()

    async def constraint(self, form: AnswerForm) -> Constraint | None:
        """The constraint on one answer of this form; None if it may be any text.

        Raises RequestError for a form that cannot be compiled in bounded time and memory.
        """
        if form.form is None and form.tools is None:
            return None
        if form not in self._compiled:
            self._compiled[form] = await self._compile(form)
            if len(self._compiled) > MAX_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(form)
        return self._compiled[form].matcher()

    async def _compile(self, form: AnswerForm) -> Grammar:
        grammars = await asyncio.to_thread(self._load)
        return await asyncio.to_thread(grammars.compile, form)

    def _load(self) -> Grammars:
        with self._loading:
            if self._grammars is None:
                self._grammars = Grammars(
                    self._codec.tokenizer, self._codec.eos_tokens, self._codec.num_tokens
                )
            return self._grammars
