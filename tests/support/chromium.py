"""A headless Chromium, driven by the DevTools protocol over two pipes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.mqtt import PATIENCE_S

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, PROGRAMS)), None)

needs_chromium = pytest.mark.skipif(
    PROGRAM is None and "EDGECOSINE_TESTS_REQUIRE_TOOLS" not in os.environ,
    reason="Chromium is not installed (Debian: chromium-headless-shell)",
)


class Page:
    """One page of a browser."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._session: str | None = None
        self.complaints: list[str] = []
        """Errors and warnings that the console showed, and exceptions."""

    async def read(self) -> None:
        """Read messages until the browser ends."""
        while True:
            message = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            if (number := message.get("id")) in self._answers:
                self._answers.pop(number).set_result(message)
            else:
                self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, method: str, about: Mapping[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                details = about["exceptionDetails"]
                said = details.get("exception", {}).get("description") or details["text"]
                self.complaints.append(str(said))
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning", "assert"):
                self.complaints.append(str([each.get("value") for each in about["args"]]))
            case "Log.entryAdded" if about["entry"]["level"] in ("error", "warning"):
                self.complaints.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")

    async def call(self, method: str, **parameters: Any) -> Mapping[str, Any]:
        """The result of a command of the protocol."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(2 * PATIENCE_S):
            found = await answer
        assert "error" not in found, found
        result: Mapping[str, Any] = found["result"]
        return result

    async def open(self, url: str, *, width: int, height: int, is_dark: bool) -> None:
        """Show a URL in a window of this size and colour scheme."""
        if self._session is None:
            target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
            attached = await self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                await self.call(f"{domain}.enable")
        await self.resize(width, height, is_dark=is_dark)
        await self.call("Page.navigate", url=url)

    async def resize(self, width: int, height: int, *, is_dark: bool) -> None:
        """Change the window's size and its colour scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until an expression is true in the page; returns its value."""
        patience_ms = PATIENCE_S * 1000
        return await self.evaluate(
            f"""new Promise((resolve, reject) => {{
              const end = performance.now() + {patience_ms};
              (function look() {{
                const found = {expression};
                if (found) resolve(found);
                else if (performance.now() > end) reject(new Error(document.body.innerText));
                else requestAnimationFrame(look);
              }})();
            }})"""
        )

    async def type(self, text: str) -> None:
        """Type a text into the element that has the focus."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, code: int) -> None:
        """Press and release a key; `code` is its virtual key code."""
        names = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        text = {"text": "\r"} if key == "Enter" else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **names, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **names)

    async def screenshot(self) -> bytes:
        """A picture of the whole page, as PNG."""
        taken = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(taken["data"])


@contextlib.asynccontextmanager
async def chromium(profile: Path) -> AsyncIterator[Page]:
    """A browser with an empty profile."""
    assert PROGRAM is not None, "install Chromium: scripts/test --install-tools"
    # Chromium reads commands from descriptor 3 and writes to descriptor 4.
    (commands_out, commands_in), (results_out, results_in) = os.pipe(), os.pipe()
    command = (
        f"exec {PROGRAM} --headless --no-sandbox --disable-gpu --disable-dev-shm-usage "
        f"--no-first-run --hide-scrollbars --remote-debugging-pipe --user-data-dir={profile} "
        f"3<&{commands_out} 4>&{results_in}"
    )
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", command, pass_fds=(commands_out, results_in),
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    os.close(commands_out)
    os.close(results_in)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=64 << 20)
    results, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(results_out, "rb")
    )
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(commands_in, "wb")
    )
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    page = Page(reader, writer)
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(page.read())
        try:
            yield page
        finally:
            reading.cancel()
            process.kill()
            await process.wait()
            transport.close()
            results.close()
