"""`edgecosine demo`: shows the speedup from speculation on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.measuring import report_option
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.errors import ModelUnavailable
from edgecosine.lab.demo_models import Scene, chat_scene, zoo_scene
from edgecosine.local.kernels import build_kernels
from edgecosine.models.packages import require_packages
from edgecosine.zoo import BALLAST


@click.command("demo")
@click.option("--lab", is_flag=True, help="Serve the tiny models of the zoo; needs no download.")
@click.option("--ballast", type=click.IntRange(1, 256), default=BALLAST, show_default=True,
              help="Widen the zoo's target by this factor.")  # fmt: skip
@click.option("--prompts", type=click.IntRange(1, 7), default=3, show_default=True,
              help="Prompts per domain.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(8, 512), default=128, show_default=True,
              help="Maximum tokens in each answer.")  # fmt: skip
@click.option("--drafter", "drafters", multiple=True, help="Drafter model; may be repeated. "
              "Default: all that come with EdgeCoSine for the target.")  # fmt: skip
@click.option("--device", default="auto", show_default=True,
              help="Device of the target: cpu, cuda, …")  # fmt: skip
@click.option("--drafter-device", "drafter_devices", multiple=True, default=("auto",),
              show_default=True,
              help="Device of the drafters; several are assigned in rotation.")  # fmt: skip
@report_option()
def command(
    *, lab: bool, ballast: int, prompts: int, max_tokens: int, drafters: tuple[str, ...],
    device: str, drafter_devices: tuple[str, ...], report: Path | None,
) -> None:  # fmt: skip
    """Start a broker, a target and its drafters on this machine, send held-out prompts over MQTT,
    and show the speedup over the target alone.

    The target is a real chat model, SmolLM2-135M-Instruct, which is downloaded once (93 MB).
    """
    require_packages("the demo")
    from edgecosine.lab.demo import DemoSettings, run_demo

    log_to_stderr("warning")
    console = Console(highlight=False)
    target_cores, drafter_cores = split_cores()
    scene = _scene(ballast, is_lab=lab)
    build_kernels(click.echo)
    settings = DemoSettings(
        scene=replace(scene, drafters=drafters or scene.drafters), prompts_per_domain=prompts,
        max_tokens=max_tokens, target_cores=target_cores, drafter_cores=drafter_cores,
        target_device=device, drafter_devices=drafter_devices,
    )  # fmt: skip

    async def demo() -> None:
        if not await run_demo(settings, console, report):
            raise click.ClickException("a text differs from that of the target alone")

    run_command(demo())


def _scene(ballast: int, *, is_lab: bool) -> Scene:
    if not is_lab:
        try:
            return chat_scene()
        except ModelUnavailable as error:
            click.echo(f"{error}\nrunning the tiny models of the zoo instead")
    return zoo_scene(ballast)
