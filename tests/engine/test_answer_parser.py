"""The channels of an answer do not depend on how its text is cut, in any dialect."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.engine.answer_parser import AnswerParser
from edgecosine.engine.dialect import PLAIN, TOOL_FORMATS, Dialect, choose_dialect
from edgecosine.protocol.api.channels import Channel

THINKING = choose_dialect("<think>")
HARMONY = choose_dialect("<|channel|><|message|>")
PROSE = "ab <>{}[]|/\n\"thinktool_call:'"


def divided(dialect: Dialect, parts: list[str], *, in_reasoning: bool = False) -> dict[str, str]:
    """The text of each channel; a call's is its name and arguments."""
    parser = AnswerParser(
        dialect, in_reasoning=in_reasoning, call_id=lambda n: f"call-{n}", tools=dialect.tools
    )
    texts = dict[Channel, str]()
    for channel, text in [piece for part in parts for piece in parser.feed(part)] + parser.finish():
        assert text
        texts[channel] = texts.get(channel, "") + text
    return {
        f"{channel.call_id} {channel.name}" if channel.call_id else channel.kind: text
        for channel, text in texts.items()
    }


def spelled(dialect: Dialect, calls: list[tuple[str, str]]) -> str:
    """The text of tool calls, as the dialect's grammar has it."""
    tools = dialect.tools
    assert tools is not None
    texts = [f"{tools.begin}{name}{tools.middle}{text}{tools.end}" for name, text in calls]
    return tools.start + tools.between.join(texts) + tools.stop


names = st.text("getCity_-1", min_size=1, max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(PROSE + "\\é{", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(PROSE), inner, max_size=3),
    max_leaves=5,
)
arguments = st.dictionaries(st.text('ab"\\{', max_size=4), values, max_size=3).map(json.dumps)


@st.composite
def answers(draw: st.DrawFn) -> tuple[Dialect, str, dict[str, str]]:
    """A dialect, an answer in it, and its channels."""
    dialect = draw(
        st.sampled_from([
            *(replace(base, tools=tools) for base in (PLAIN, THINKING)
              for name, tools in TOOL_FORMATS.items() if name != "harmony"),
            HARMONY, THINKING,
        ])
    )  # fmt: skip
    words = st.text("ab é\n", min_size=1, max_size=12).map(str.strip).filter(bool)
    text, expected = "", {}
    if dialect.reasoning and draw(st.booleans()):
        expected["reasoning"] = draw(words)
        text += dialect.reasoning[0] + expected["reasoning"] + dialect.reasoning[1] + dialect.turn
    tools = dialect.tools
    called = draw(st.lists(st.tuples(names, arguments), max_size=3)) if tools else []
    if tools and not tools.between:
        called = called[:1]
    if not called or (tools and tools.has_text_before and draw(st.booleans())):
        expected["content"] = draw(words)
        text += dialect.content + expected["content"]
    if called:
        text += draw(st.sampled_from(["", "\n"])) if "content" in expected else ""
        text += spelled(dialect, called)
    expected |= {f"call-{n} {name}": each for n, (name, each) in enumerate(called)}
    return dialect, text, expected


@given(answers(), st.lists(st.integers(0, 400), max_size=12))
def test_answer_is_divided_by_its_tags_however_it_is_cut(
    answer: tuple[Dialect, str, dict[str, str]], cuts: list[int]
) -> None:
    dialect, text, expected = answer
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    parts = [text[start:end] for start, end in pairwise(places)]
    assert divided(dialect, parts) == expected
    assert divided(dialect, list(text)) == expected


@given(st.text(PROSE, max_size=60), st.lists(st.integers(0, 60), max_size=8))
@pytest.mark.parametrize("dialect", [PLAIN, THINKING, HARMONY, choose_dialect("<tool_call>")])
def test_any_text_is_divided_alike_however_it_is_cut(
    dialect: Dialect, text: str, cuts: list[int]
) -> None:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    parts = [text[start:end] for start, end in pairwise(places)]
    assert divided(dialect, parts) == divided(dialect, [text])


def test_plain_text_keeps_every_character() -> None:
    text = " \n<think>x</think><tool_call>\n"
    assert divided(PLAIN, [text]) == {"content": text}


def test_prompt_may_have_opened_the_reasoning() -> None:
    assert THINKING.opens_reasoning("<|im_start|>assistant\n<think>\n")
    assert not THINKING.opens_reasoning("<think>\n\n</think>\n\n")
    texts = divided(THINKING, ["so\n</thi", "nk>\n\nYes"], in_reasoning=True)
    assert texts == {"reasoning": "so", "content": "Yes"}


def test_cut_off_call_shows_no_tags() -> None:
    dialect = choose_dialect("<tool_call>")
    assert divided(dialect, ['Wait.\n<tool_call>\n{"na']) == {"content": "Wait."}
    texts = divided(dialect, ['<tool_call>\n{"name": "f", "arguments": {"a": "b'])
    assert texts == {"call-0 f": '{"a": "b'}


@pytest.mark.parametrize(
    ("template", "tool_format", "begin"),
    [
        ("{{ messages }}", "auto", None),
        ("{% if tools %}<tool_call>", "auto", "<tool_call>"),
        ("[TOOL_CALLS]", "auto", '{"name": "'),
        ('<|eot_id|> "parameters"', "auto", '{"name": "'),
        ("{{ messages }}", "hermes", "<tool_call>"),
        ("<|channel|><|message|>", "auto", "<|channel|>commentary"),
    ],
)
def test_template_implies_the_format_of_calls(
    template: str, tool_format: str, begin: str | None
) -> None:
    tools = choose_dialect(template, tool_format).tools
    assert (tools is None) == (begin is None)
    assert tools is None or tools.begin.startswith(begin or "")
