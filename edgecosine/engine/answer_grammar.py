"""Writes the grammar of an answer that has a response format or tool calls, after reasoning or not.

A grammar is text in Lark's syntax with schemas beside it, in llguidance's form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgecosine.engine.dialect import PLAIN, Dialect, ToolFormat
from edgecosine.protocol.api.response_format import ResponseFormat
from edgecosine.protocol.api.tools import ToolUse

Rules = list[str]


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What restricts an answer: its format, its tools, and the dialect of the model.

    in_reasoning  whether the prompt has opened the reasoning
    """

    form: ResponseFormat | None = None
    tools: ToolUse | None = None
    dialect: Dialect = PLAIN
    in_reasoning: bool = False

    @property
    def is_bare(self) -> bool:
        """Whether the answer is the text of the format alone."""
        return self.tools is None and self.dialect.reasoning is None


class AnswerGrammar:
    """The rules of one form.

    `mark_ids` has the ids of tags that are tokens without text; others are spelled.
    """

    def __init__(self, form: AnswerForm, mark_ids: Mapping[str, int]) -> None:
        self._form, self._ids = form, mark_ids
        self._rules: Rules = ["%llguidance {}", "TEXT: /(.|\\n)*/"]

    def lark(self) -> str:
        """The main grammar. It refers to the grammar `content` of the response format, where there
        is one, and to `arguments_N` of the tool N that may be called."""
        tails = list[str]()
        tools, dialect = self._form.tools, self._form.dialect
        if tools is None or tools.choice == "auto":
            content = "TEXT" if self._form.form is None else "@content"
            tails.append(f"{self._spelled(dialect.content)} {content}")
        if tools is not None and dialect.tools is not None:
            tails.append(self._called(tools, dialect.tools))
        self._rules.append(f"start: {self._reasoning()} ({' | '.join(tails)})")
        return "\n".join(self._rules)

    def _reasoning(self) -> str:
        dialect = self._form.dialect
        if dialect.reasoning is None:
            return ""
        opening, closing = dialect.reasoning
        turn = self._spelled(dialect.turn)
        if not dialect.turn.strip():
            self._rules.append("TURN: /[ \\n]{0,4}/")
            turn = "TURN?"
        rest = f"{self._up_to('reasoned', closing)} {turn}"
        return rest if self._form.in_reasoning else f"({self._spelled(opening)} {rest})?"

    def _called(self, use: ToolUse, tools: ToolFormat) -> str:
        for number, tool in enumerate(use.callable_tools):
            head, tail = self._spelled(tool.name + tools.middle), self._spelled(tools.end)
            self._rules.append(f"call_{number}: {head} @arguments_{number} {tail}")
        names = " | ".join(f"call_{number}" for number in range(len(use.callable_tools)))
        self._rules.append(f"call: {names}")
        opening = tools.start + tools.begin
        first = self._spelled(opening)
        if use.choice == "auto":
            has_text = tools.has_text_before and self._form.form is None
            trigger = self._up_to("opening", tools.trigger, "TEXT" * has_text)
            first = f"{trigger} {self._spelled(opening.removeprefix(tools.trigger))}"
        more = ""
        if use.is_parallel and tools.between:
            more = f"({self._spelled(tools.between + tools.begin)} call)*"
        return f"{first} call {more} {self._spelled(tools.stop)}"

    def _up_to(self, name: str, tag: str, text: str = "TEXT") -> str:
        """Any text, then a tag, which ends it where it first occurs."""
        if any(mark in tag for mark in self._ids):
            return f"{text} {self._spelled(tag)}"
        self._rules.append(f"{name}[lazy]: {text} {_quoted(tag)}")
        return name

    def _spelled(self, text: str) -> str:
        """A text as literals and, for tags without text, tokens."""
        marks = "|".join(map(re.escape, self._ids))
        parts = re.split(f"({marks})", text) if marks else [text]
        return " ".join(
            f"<[{self._ids[part]}]>" if part in self._ids else _quoted(part)
            for part in parts
            if part
        )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def schemas_of(form: AnswerForm) -> dict[str, ResponseFormat]:
    """The grammars to which the main one refers, by name."""
    tools = form.tools.callable_tools if form.tools else ()
    schemas = {
        f"arguments_{number}": ResponseFormat("json_schema", tool.parameters)
        for number, tool in enumerate(tools)
    }
    return schemas | ({"content": form.form} if form.form else {})


def joined(main: str, schemas: Mapping[str, Any]) -> str:
    """The source of a grammar and of those to which it refers, each an entry in `grammars`."""
    grammars = [{"name": "answer", "lark_grammar": main}]
    for name, source in schemas.items():
        grammars.append({**json.loads(source)["grammars"][0], "name": name})
    return json.dumps({"grammars": grammars})
