"""The page in a real browser, before a real cluster."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from edgecosine import zoo
from edgecosine.local.cluster import LocalCluster
from tests.cluster.shared_cluster import http_cluster
from tests.support.chromium import Page, chromium, needs_chromium
from tests.support.mqtt import free_port, run_patiently

pytestmark = [needs_chromium, pytest.mark.timeout(120)]

SIZES = [(1440, 900), (375, 812)]
ALWAYS_DRAFTED = """
    const ask = window.fetch;
    window.fetch = (url, options = {}) => ask(url, options.body
      ? {...options, body: JSON.stringify({...JSON.parse(options.body), policy: "specinfer"})}
      : options);
    document.getElementById("length").value = 32;
"""
"""Otherwise the page's request is drafted for only where that was measured to pay."""


@pytest.fixture(scope="module")
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def cluster(address: str) -> Iterator[LocalCluster]:
    """A target with HTTP and a drafter."""
    with http_cluster("page", address) as cluster:
        yield cluster


@contextlib.asynccontextmanager
async def drafter(
    cluster: LocalCluster, directory: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A drafter that is not started again when it ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edgecosine", "node", "--role=drafter", "--model=ngram",
        "--node-id=doomed", "--cluster=page", f"--broker={cluster.broker_url}",
        "--credentials=none", f"--state-dir={directory}", stderr=DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def shown_nodes(page: Page, number: int) -> None:
    """Wait until the page shows so many nodes, in the table and in the picture."""
    await page.until(f"document.querySelectorAll('#nodes tr').length === {number}")
    await page.until(f"document.querySelectorAll('#picture .disc').length === {number}")


def test_page_shows_the_cluster_streams_a_chat_and_greys_a_drafter_that_is_killed(
    cluster: LocalCluster, address: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with chromium(tmp_path / "profile") as page, drafter(cluster, tmp_path) as doomed:
            await page.open(f"http://{address}/", width=1440, height=900, is_dark=False)
            await shown_nodes(page, 3)
            await page.until("!document.querySelector('#nodes tr.gone')")
            for width, height in SIZES:
                for is_dark in (False, True):
                    await page.resize(width, height, is_dark=is_dark)
                    assert await page.until("document.body.scrollWidth <= innerWidth")
                    assert (await page.screenshot()).startswith(b"\x89PNG")
            await page.evaluate(f"(() => {{ {ALWAYS_DRAFTED} }})()")
            await page.evaluate("document.getElementById('prompt').focus()")
            await page.type(next(iter(zoo.prompts().values()))[0])
            await page.press("Enter", 13)
            text = "document.querySelector('.answer .text').textContent"
            assert await page.until(f"document.querySelector('.facts') && {text}")
            assert await page.evaluate("document.querySelectorAll('.answer .guess').length")
            assert await page.evaluate("document.querySelectorAll('.rounds rect title').length")
            assert "tokens accepted" in await page.evaluate(
                "document.querySelector('.tip').textContent"
            )
            doomed.kill()
            lost = await page.until("document.querySelector('#nodes tr.gone')?.textContent")
            assert "doomed" in lost
            assert "lost" in lost
            assert await page.until("document.querySelectorAll('#picture .gone .disc').length")
            assert page.complaints == []

    run_patiently(scenario())
