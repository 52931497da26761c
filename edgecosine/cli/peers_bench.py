"""`edgecosine bench peers`: beside llama.cpp and transformers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgecosine import models
from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.running import run_command
from edgecosine.cli.up import split_cores
from edgecosine.lab.figures import keeping


@click.command("peers")
@click.option("--target", metavar="MODEL", help="Model that is served.")
@click.option("--gguf", default="", metavar="FILE",
              help="Its GGUF file for the peers, where MODEL is not one.")  # fmt: skip
@click.option("--drafter", "drafters", multiple=True, metavar="MODEL",
              help="Drafts for us; may be repeated. Default: those of the target.")  # fmt: skip
@click.option("--generalist", metavar="MODEL",
              help="Drafts for the peers, too, and is made hostile. Empty: none.")  # fmt: skip
@click.option("--prompts", type=click.IntRange(1, 14), help="Of each of four domains, one at a "
              "time. Default: 8; quick: 1.")  # fmt: skip
@click.option("--eight-turns", type=click.IntRange(1, 100),
              help="Of 16 prompts, eight at a time. Default: 4; quick: 1.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(8, 512), default=128, show_default=True)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto",
              show_default=True, help="Of our nodes; peers find the quickest.")  # fmt: skip
@click.option("--quick", is_flag=True, help="A few prompts: whether it works, no figures to tell.")
@click.option("--json", "report", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the figures and every run as data.")  # fmt: skip
def command(
    target: str | None, gguf: str, drafters: tuple[str, ...], generalist: str | None,
    prompts: int | None, eight_turns: int | None, max_tokens: int, dtype: str, report: Path | None,
    *, quick: bool,
) -> None:  # fmt: skip
    """EdgeCoSine beside llama.cpp and transformers, on the same model file, prompts and cores.

    Peers have all cores; of ours the target has the first and the drafters share the others. All
    take turns, prompt by prompt, greedily, and answers end where the model ends them.

    llama.cpp is llama-cpp-python, built for this processor in an environment of its own below the
    user's cache directory: the first time that takes many minutes, a compiler, and the package
    index. A peer that cannot be measured is left out, and the record says why.
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
        eight_turns=eight_turns or (1 if quick else 4), max_tokens=max_tokens,
        trial_tokens=8 if quick else 32, dtype=dtype,
        target_cores=target_cores, drafter_cores=drafter_cores,
    )  # fmt: skip
    found = PeersRecord()
    keep = keeping(report, settings=asdict(settings))

    async def measure() -> None:
        try:
            await run_peers_bench(settings, found, click.echo, keep)
        finally:
            for name, figure in found.figures().items():
                click.echo(f"{name}: {figure}")
            found.write(keep)

    run_command(measure())
