"""One plain error comes out of a group of errors, in every version of Python."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest

import edgecosine
from edgecosine.errors import EngineError, LabError, RequestError, ungrouped
from tests.support.mqtt import run


async def fail(error: Exception) -> None:
    raise error


async def together(*errors: Exception) -> None:
    with ungrouped(RequestError):
        async with asyncio.TaskGroup() as group:
            for error in errors:
                group.create_task(fail(error))


def test_first_error_of_one_kind_comes_without_its_group() -> None:
    first, second = RequestError("first", code="a"), RequestError("second", code="b")
    with pytest.raises(RequestError) as caught:
        run(together(first, second))
    assert caught.value is first


def test_group_with_another_kind_of_error_stays_whole() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        run(together(RequestError("first", code="a"), LabError("second")))
    assert len(caught.value.exceptions) == 2


def test_plain_error_passes() -> None:
    with pytest.raises(EngineError), ungrouped(RequestError):
        raise EngineError("broken")


def test_no_clause_for_groups_raises() -> None:
    for path in Path(edgecosine.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.TryStar):
                assert not any(isinstance(each, ast.Raise) for each in ast.walk(node)), path
