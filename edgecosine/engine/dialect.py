"""The forms in which models write reasoning and tool calls, and the form that a chat template
implies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from edgecosine.protocol.api.tools import ToolUse


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The spelling of tool calls:

    start, begin NAME middle ARGUMENTS end, (between, begin NAME middle ARGUMENTS end)*, stop

    trigger      the text after which a call is certain, a beginning of start and begin; text may
                 precede it where `has_text_before`
    between      empty where an answer has at most one call
    marks        tags in all of these that may be tokens of their own
    """

    begin: str
    middle: str
    end: str
    trigger: str
    start: str = ""
    between: str = ""
    stop: str = ""
    has_text_before: bool = True
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a model divides its answers.

    reasoning  tags before and after its reasoning, which comes first; None: it has none
    turn       what may follow the reasoning before all else
    content    what precedes the content
    dropped    further tags that belong to no channel
    marks      tags of these fields that may be tokens of their own
    """

    reasoning: tuple[str, str] | None = None
    turn: str = ""
    content: str = ""
    dropped: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    tools: ToolFormat | None = None

    @property
    def all_marks(self) -> tuple[str, ...]:
        """All tags that may be tokens of their own."""
        return (*self.marks, *(self.tools.marks if self.tools else ()))

    def opens_reasoning(self, prompt: str) -> bool:
        """Whether a prompt ends within the reasoning, as some templates leave it."""
        return self.reasoning is not None and prompt.rstrip().endswith(self.reasoning[0])


PLAIN: Final = Dialect()
_JSON_BEGIN: Final = '{"name": "'
_HARMONY_MARKS: Final = (
    "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>",
)  # fmt: skip

TOOL_FORMATS: Final[Mapping[str, ToolFormat]] = MappingProxyType({
    "hermes": ToolFormat(
        begin="<tool_call>\n" + _JSON_BEGIN, middle='", "arguments": ', end="}\n</tool_call>",
        trigger="<tool_call>", between="\n", marks=("<tool_call>", "</tool_call>"),
    ),
    "llama3": ToolFormat(
        begin=_JSON_BEGIN, middle='", "parameters": ', end="}",
        trigger=_JSON_BEGIN, has_text_before=False,
    ),
    "mistral": ToolFormat(
        start="[TOOL_CALLS][", begin=_JSON_BEGIN, middle='", "arguments": ', end="}",
        trigger="[TOOL_CALLS]", between=", ", stop="]", marks=("[TOOL_CALLS]",),
    ),
    "harmony": ToolFormat(
        begin="<|channel|>commentary to=functions.", middle=" <|constrain|>json<|message|>", end="",
        trigger="<|channel|>commentary to=functions.", has_text_before=False, marks=_HARMONY_MARKS,
    ),
})  # fmt: skip
"""Formats of tool calls by name: Hermes and Qwen, Llama 3, Mistral, gpt-oss."""

_HARMONY: Final = Dialect(
    reasoning=("<|channel|>analysis<|message|>", "<|end|>"),
    turn="<|start|>assistant",
    content="<|channel|>final<|message|>",
    dropped=("<|channel|>commentary<|message|>", "<|end|>"),
    marks=_HARMONY_MARKS,
    tools=TOOL_FORMATS["harmony"],
)
_THINKING: Final = Dialect(
    reasoning=("<think>", "</think>"), turn="\n\n", marks=("<think>", "</think>")
)


def choose_dialect(template: str, tool_format: str = "auto") -> Dialect:
    """The dialect of a chat template (Jinja); `tool_format` names the format of its tool calls."""
    if "<|channel|>" in template and "<|message|>" in template:
        return _HARMONY
    dialect = _THINKING if "<think>" in template else PLAIN
    if tool_format == "auto":
        tool_format = _tool_format_of(template)
    return replace(dialect, tools=TOOL_FORMATS.get(tool_format))


def describe_tools(use: ToolUse, tools: ToolFormat) -> str:
    """A system message for a model whose chat template does not mention tools."""
    specs = "\n".join(tool.spec for tool in use.tools)
    call = f"{tools.start}{tools.begin}NAME{tools.middle}ARGUMENTS{tools.end}{tools.stop}"
    return (
        f"You can call these functions:\n{specs}\nTo call the function NAME, answer with:\n{call}\n"
        "ARGUMENTS is a JSON object with the function's parameters."
    )


def _tool_format_of(template: str) -> str:
    if "<tool_call>" in template:
        return "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<|eot_id|>" in template and '"parameters"' in template:
        return "llama3"
    return ""
