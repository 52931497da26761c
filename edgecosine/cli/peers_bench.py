"""`edgecosine bench peers`: compares EdgeCoSine with llama.cpp and transformers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgecosine import models
from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.measuring import print_figures, report_option
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.lab.figures import keeping


@click.command("peers")
@click.option("--target", metavar="MODEL", help="Model to serve.")
@click.option("--gguf", default="", metavar="FILE",
              help="The target's GGUF file for the peers, if MODEL is not one.")  # fmt: skip
@click.option("--drafter", "drafters", multiple=True, metavar="MODEL",
              help="Drafter model for EdgeCoSine; may be repeated. Default: those of the target."
              )  # fmt: skip
@click.option("--generalist", metavar="MODEL",
              help="Draft model of the peers, from which an adversarial drafter is made, too. "
              "Empty: none.")  # fmt: skip
@click.option("--prompts", type=click.IntRange(1, 14), help="Prompts in each of four domains, sent "
              "one at a time. Default: 8; quick: 1.")  # fmt: skip
@click.option("--eight-turns", type=click.IntRange(1, 100),
              help="Repetitions with 32 prompts, eight at a time. Default: 5; quick: 1."
              )  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(8, 512), default=128, show_default=True,
              help="Maximum tokens in each answer.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto",
              show_default=True, help="Data type of EdgeCoSine's nodes; peers use their fastest."
              )  # fmt: skip
@click.option("--quick", is_flag=True, help="A few prompts, to test the command.")
@report_option()
def command(
    target: str | None, gguf: str, drafters: tuple[str, ...], generalist: str | None,
    prompts: int | None, eight_turns: int | None, max_tokens: int, dtype: str, report: Path | None,
    *, quick: bool,
) -> None:  # fmt: skip
    """Compare EdgeCoSine with llama.cpp and transformers on the same model file, prompts and cores.

    Peers use all cores; in EdgeCoSine the target uses the first core and the drafters share the
    others. All alternate prompt by prompt, decode greedily, and end an answer at the model's end
    token.

    llama.cpp is llama-cpp-python, built for this processor in a separate environment below the
    user's cache directory. The first build takes many minutes and needs a compiler and the package
    index. A peer that cannot be measured is left out, and the record states the reason.
    """
    from edgecosine.lab.bench.peers.inputs import GENERALIST, TARGET, PeerSettings, PeersRecord
    from edgecosine.lab.bench.peers.run_peers import run_peers_bench

    log_to_stderr("warning")
    target_cores, drafter_cores = split_cores()
    settings = PeerSettings(
        target=target or TARGET, gguf=gguf,
        drafters=drafters or models.drafters_of(target or TARGET),
        generalist=GENERALIST if generalist is None else generalist,
        prompts_per_domain=prompts or (1 if quick else 8),
        eight_turns=eight_turns or (1 if quick else 5), max_tokens=max_tokens,
        trial_tokens=8 if quick else 32, dtype=dtype,
        target_cores=target_cores, drafter_cores=drafter_cores,
    )  # fmt: skip
    found = PeersRecord()
    keep = keeping(report, settings=asdict(settings))

    async def measure() -> None:
        try:
            await run_peers_bench(settings, found, click.echo, keep)
        finally:
            print_figures(found.figures())
            found.write(keep)

    run_command(measure())
