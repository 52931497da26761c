"""`edgecosine bench http`: measures the time that HTTP adds to a request."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.measuring import ballast_option, print_figures, report_option
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.lab.figures import keeping


@click.command("http")
@click.option("--pairs", type=click.IntRange(1, 10_000), default=100, show_default=True,
              help="Pairs of requests, one over HTTP and one over MQTT.")  # fmt: skip
@click.option("--streams", type=click.IntRange(1, 10_000), default=500, show_default=True,
              help="Streams that are open at once.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(2, 512), default=32, show_default=True,
              help="Tokens in each answer.")  # fmt: skip
@ballast_option(1)
@report_option("the figures and all requests")
def command(pairs: int, streams: int, max_tokens: int, ballast: int, report: Path | None) -> None:
    """Compare streamed completions over HTTP with those by the Python client over MQTT.

    http_overhead_first_text_ms: median of the differences of the times to the first text.

    http_overhead_token_ms: median of the differences of the times per token after the first text.

    http_streams_memory_growth_mib: growth of the target's memory from the first of four rounds of
    --streams streams at once, which all have to end, to the last one.
    """
    from edgecosine.lab.bench.http.run_http import HttpSettings, run_http

    log_to_stderr("warning")
    settings = HttpSettings(pairs, streams, max_tokens, ballast, split_cores()[0])

    async def measure() -> None:
        keep = keeping(report, network="loopback", settings=asdict(settings))
        print_figures(await run_http(settings, click.echo, keep), 3)

    run_command(measure())
