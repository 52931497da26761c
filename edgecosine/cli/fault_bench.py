"""`edgecosine bench faults`: what kills, restarts and protection cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.lab.figures import Figure, keeping
from edgecosine.zoo import BALLAST

_PARTS = ("drafter", "target", "protection")


@click.command("faults")
@click.option("--only", "parts", multiple=True, type=click.Choice(_PARTS),
              help="This part alone; may be repeated.")  # fmt: skip
@click.option("--kills", type=click.IntRange(5, 10_000), default=100, show_default=True,
              help="Of drafters at work.")  # fmt: skip
@click.option("--restarts", type=click.IntRange(1, 100), default=5, show_default=True,
              help="Of the target at work; as many at rest.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1, 100), default=9, show_default=True,
              help="Turns of the clusters with and without protection.")  # fmt: skip
@click.option("--requests", type=click.IntRange(8, 1000), default=16, show_default=True,
              help="In each turn, eight at a time.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(8, 512), default=128, show_default=True,
              help="Of each answer in a turn.")  # fmt: skip
@click.option("--ballast", type=click.IntRange(1, 256), default=BALLAST, show_default=True,
              help="Widen the target so that it costs what a larger one does.")  # fmt: skip
@click.option("--json", "report", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the figures and every kill, restart and turn as data.")  # fmt: skip
def command(
    parts: tuple[str, ...], kills: int, restarts: int, repeats: int, requests: int,
    max_tokens: int, ballast: int, report: Path | None,
) -> None:  # fmt: skip
    """Kill drafters and the target at work, and weigh what journal and TLS cost.

    drafter_kill_to_next_token_over_deadline_p99: from SIGKILL of a drafter that a request was using
    to that request's next committed token, less the target's pass that makes the token, over the
    deadline of the plan in force. A deadline bounds how long a round waits for drafts; a pass takes
    its time whoever dies. drafter_kill_with_pass_... is the same with the pass.

    target_restart_extra_s: from the start of a process to the first new text of a request that it
    resumes, less what a start without work takes until requests are taken; the target was killed by
    SIGKILL in both cases, in turn.

    journal_tls_cost: share of throughput that is lost at eight sessions with a journal and with TLS
    on links and MQTT, beside a cluster without them that is asked in turn. Needs Mosquitto.
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
            for name, figure in figures.items():
                click.echo(f"{name}: {figure.text(3)}")

    run_command(measure())
