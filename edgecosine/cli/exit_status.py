"""The end of a command: one line for each error, and an exit code for the kind of error.

0    done
1    failed while running
2    wrong argument, option, environment variable or file
130  Ctrl-C
141  the reader of its output has ended, as after SIGPIPE
143  SIGTERM
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import logging
import os
import select
import sys
import traceback
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, NoReturn

import click
from click.exceptions import Exit

from edgecosine.errors import AddressTaken, ConfigError, EdgecosineError, ModelsNotInstalled
from edgecosine.models.packages import EXTRA

FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130
UNREAD: Final = 141
TERMINATED: Final = 143

LOG_LEVEL_VARIABLE: Final = "EDGECOSINE_LOG_LEVEL"
_MAX_LINES: Final = 8
_MAX_CHARACTERS: Final = 2000
_PACKAGE: Final = Path(__file__).parents[1]
_UNWRITTEN: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO)


class Failure(click.ClickException):
    """A failure while running; one line for each cause."""

    exit_code = FAILED

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self._lines = lines

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the lines to standard error."""
        for line in self._lines:
            click.echo(f"Error: {line}", file=file, err=file is None)


class Misuse(Failure):
    """A wrong argument, option or setting."""

    exit_code = MISUSED


def end_of(error: BaseException) -> click.ClickException | Exit:
    """The click exception to raise in place of an error: it prints the causes and exits.

    A traceback is printed only at log level `debug`.
    """
    causes = list(map(_explained, _leaves(error)))
    if any(_is_unread(cause) for cause in causes):
        _stop_writing()
        return Exit(UNREAD)
    for cause in causes:
        if isinstance(cause, click.ClickException | Exit):
            return cause
        if isinstance(cause, SystemExit):
            return Exit(cause.code if isinstance(cause.code, int) else FAILED)
    if _is_debugging():
        traceback.print_exception(error)
    if any(isinstance(cause, OSError) and cause.errno in _UNWRITTEN for cause in causes):
        _stop_writing()
    lines = list(dict.fromkeys(_line(cause) for cause in causes))
    if len(lines) > _MAX_LINES:
        lines[_MAX_LINES:] = [f"and {len(lines) - _MAX_LINES} more"]
    return (Misuse if all(map(_is_misuse, causes)) else Failure)(lines)


def run_to_end(command: Callable[[list[str]], Any], arguments: list[str] | None) -> NoReturn:
    """Run the command line on its arguments and exit with a code of this module.

    `command` returns an exit code, or None for 0.
    """
    open_standard_streams()
    # Commands that do not log report errors at their end; warnings would repeat them.
    logging.getLogger("edgecosine").addHandler(logging.NullHandler())
    try:
        _check_environment()
        words = sys.argv[1:] if arguments is None else arguments
        code = command([as_typed(word) for word in words])
        sys.stdout.flush()
    except click.Abort as abort:
        _write("Aborted!")
        code = INTERRUPTED if isinstance(abort.__cause__, KeyboardInterrupt) else FAILED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (Exception, CancelledError, SystemExit) as error:  # noqa: BLE001 -- it is reported
        end = end_of(error)
        if isinstance(end, click.ClickException):
            with contextlib.suppress(OSError):
                end.show()
        code = end.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def open_standard_streams() -> None:
    """Replace closed standard streams, and characters that a terminal cannot show by `?`.

    Otherwise the next socket would get the descriptor of the closed stream. Writing to a standard
    output that was closed still fails.
    """
    for number, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)
    sys.stdout = sys.stdout or io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8")
    sys.stderr = sys.stderr or io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def as_typed(argument: str) -> str:
    """An argument as it was typed, decoded as UTF-8 even if the locale is ASCII.

    Raises UsageError when it is not UTF-8.
    """
    try:
        argument.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(argument).decode()
        except UnicodeError:
            raise click.UsageError(f"{argument!a} is not UTF-8") from None
    return argument


def standard_input() -> BinaryIO:
    """Standard input, as bytes.

    Raises UsageError when it is closed.
    """
    if sys.stdin is None:
        raise click.UsageError("standard input is closed")
    return sys.stdin.buffer


def input_text(content: bytes) -> str:
    """The text of bytes that were read from standard input.

    Raises UsageError when they cannot be decoded.
    """
    encoding = codecs.lookup(sys.stdin.encoding).name
    try:
        # Python falls back to ASCII in a locale without an encoding; texts are UTF-8 then.
        return content.decode("utf-8" if encoding == "ascii" else encoding)
    except UnicodeDecodeError as error:
        reason = f"standard input is not {error.encoding.upper()} (byte {error.start})"
        raise click.UsageError(reason) from None


def _check_environment() -> None:
    for name, value in os.environ.items():
        if name.startswith("EDGECOSINE_"):
            as_typed(value)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group, at any depth."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _explained(cause: BaseException) -> BaseException:
    """The error; ModelsNotInstalled in place of a missing package of the extra `models`."""
    name = (isinstance(cause, ModuleNotFoundError) and cause.name) or ""
    package = name.partition(".")[0]
    return ModelsNotInstalled("this command", [package]) if package in EXTRA else cause


def _is_misuse(cause: BaseException) -> bool:
    return isinstance(cause, ConfigError) and not isinstance(cause, AddressTaken)


def _line(cause: BaseException) -> str:
    match cause:
        case EdgecosineError():
            text = str(cause)
        case OSError(strerror=str(reason)):
            where = cause.filename if cause.filename is not None else "cannot write"
            text = f"{where}: {reason}" if cause.errno in _UNWRITTEN or cause.filename else reason
        case CancelledError():
            text = "cancelled for an unknown reason"
        case _:
            text = f"{type(cause).__name__}: {cause}{_origin(cause)}"
    return " ".join(text.split())[:_MAX_CHARACTERS]


def _origin(cause: BaseException) -> str:
    """File and line in this package where a bug appeared, and how to get its traceback."""
    for frame in reversed(traceback.extract_tb(cause.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(_PACKAGE):
            where = path.relative_to(_PACKAGE.parent)
            return f" ({where}:{frame.lineno}; {LOG_LEVEL_VARIABLE}=debug prints the traceback)"
    return ""


def _is_debugging() -> bool:
    is_requested = os.environ.get(LOG_LEVEL_VARIABLE, "").lower() == "debug"
    return is_requested or logging.getLogger("edgecosine").isEnabledFor(logging.DEBUG)


def _is_unread(cause: BaseException) -> bool:
    """Whether the reader of our output has ended, in which case rich exits with 1."""
    if isinstance(cause, SystemExit):
        return isinstance(cause.__context__, BrokenPipeError)
    return isinstance(cause, BrokenPipeError) and any(map(_has_no_reader, (1, 2)))


def _has_no_reader(number: int) -> bool:
    poll = select.poll()
    poll.register(number, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _stop_writing() -> None:
    """Discard the rest of standard output's buffer; the interpreter would fail to flush it."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _write(text: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(text, err=True)
