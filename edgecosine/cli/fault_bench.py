"""`edgecosine bench faults`: measures the cost of kills, restarts and protection."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.measuring import ballast_option, print_figures, report_option
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.lab.figures import Figure, keeping

_PARTS = ("drafter", "target", "protection")


@click.command("faults")
@click.option("--only", "parts", multiple=True, type=click.Choice(_PARTS),
              help="Measure only this part; may be repeated.")  # fmt: skip
@click.option("--kills", type=click.IntRange(5, 10_000), default=100, show_default=True,
              help="Number of kills of drafters in use.")  # fmt: skip
@click.option("--restarts", type=click.IntRange(1, 100), default=5, show_default=True,
              help="Number of target restarts during requests, and as many without requests."
              )  # fmt: skip
@click.option("--repeats", type=click.IntRange(1, 100), default=9, show_default=True,
              help="Repetitions with and without protection.")  # fmt: skip
@click.option("--requests", type=click.IntRange(8, 1000), default=16, show_default=True,
              help="Requests in each repetition; eight run at a time.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(8, 512), default=128, show_default=True,
              help="Tokens in each answer of a repetition.")  # fmt: skip
@ballast_option()
@report_option("the figures and every kill, restart and repetition")
def command(
    parts: tuple[str, ...], kills: int, restarts: int, repeats: int, requests: int,
    max_tokens: int, ballast: int, report: Path | None,
) -> None:  # fmt: skip
    """Kill drafters and the target during requests, and measure the cost of journal and TLS.

    drafter_kill_to_next_token_over_deadline_p99: time from SIGKILL of a drafter in use to the
    request's next committed token, without the target's forward pass for that token, relative to
    the deadline of the current plan. The deadline bounds how long a round waits for drafts; the
    forward pass does not depend on drafters. drafter_kill_with_pass_... includes the pass.

    target_restart_extra_s: time from the start of a process to the first new text of a request that
    it resumes, minus the time until a target without requests is ready. The target is killed by
    SIGKILL in both cases, which alternate.

    journal_tls_cost: share of throughput at eight sessions that is lost with a journal and TLS on
    links and MQTT, relative to a cluster without them; the two alternate. Needs Mosquitto.
    """
    from edgecosine.lab.faults.protection import ProtectionSettings
    from edgecosine.lab.faults.run_faults import FaultSettings, run_fault_bench

    log_to_stderr("warning")
    target_cores, drafter_cores = split_cores()
    settings = FaultSettings(
        parts=parts or _PARTS, kills=kills, restarts=restarts,  # type: ignore[arg-type]
        protection=ProtectionSettings(
            repeats=repeats, requests=requests, max_tokens=max_tokens, ballast=ballast,
            target_cores=target_cores, drafter_cores=drafter_cores,
        ),
    )  # fmt: skip
    figures: dict[str, Figure] = {}
    runs: list[dict[str, Any]] = []
    keep = keeping(report, **asdict(settings))

    async def measure() -> None:
        try:
            await run_fault_bench(settings, figures, runs, click.echo, keep)
        finally:
            print_figures(figures, 3)

    run_command(measure())
