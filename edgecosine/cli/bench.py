"""`edgecosine bench`: benchmarks, and plots and tables of their records."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import click

from edgecosine.cli.chaos import command as chaos
from edgecosine.cli.committee_bench import command as committee
from edgecosine.cli.fault_bench import command as faults
from edgecosine.cli.fuzz import command as fuzz
from edgecosine.cli.http_bench import command as http
from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.map_bench import command as map_bench
from edgecosine.cli.map_validation import command as map_validation
from edgecosine.cli.measuring import (
    ballast_option,
    network_option,
    print_figures,
    repeats_option,
    report_option,
)
from edgecosine.cli.options import CommandGroup
from edgecosine.cli.peers_bench import command as peers
from edgecosine.cli.records import plot, table
from edgecosine.cli.rounds_bench import command as rounds
from edgecosine.cli.routing_bench import command as routing
from edgecosine.cli.running import run_command
from edgecosine.cli.simulation_bench import command as simulation
from edgecosine.cli.soak import command as soak
from edgecosine.cli.up import split_cores
from edgecosine.engine.options import KvDtype, WeightForm
from edgecosine.errors import LabError
from edgecosine.lab.bench.cells import CELL_NAMES, all_cells, only, quick_cells, schedule
from edgecosine.lab.cluster import NetworkKind
from edgecosine.lab.figures import keeping
from edgecosine.models import DEFAULT_TARGET

RATES_PER_S = (0.4, 1.2)


@click.group("bench", cls=CommandGroup, invoke_without_command=True)
@ballast_option()
@repeats_option()
@click.option("--quick", is_flag=True, help="Measure only the first seven figures, in minutes.")
@click.option("--only", "names", multiple=True, metavar="CELL",
              help="Measure only this cell; may be repeated. Cells: "
              f"{', '.join(CELL_NAMES)}.")  # fmt: skip
@click.option("--policy", "policies", multiple=True, metavar="POLICY",
              help="Measure only this policy in each cell; may be repeated. Ratios are those of "
              "edgecosine over the others.")  # fmt: skip
@click.option("--requests", type=click.IntRange(1, 1000),
              help="Requests in each closed loop; 16 or more at 4 at a time, 32 or more at 8. "
              "Default: 8; quick: 4.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(8, 512), default=128, show_default=True,
              help="Tokens in each answer; prompts have 48.")  # fmt: skip
@click.option("--rates", type=click.FloatRange(0, min_open=True), nargs=2, metavar="LOW HIGH",
              default=RATES_PER_S, show_default=True,
              help="Requests per second in the open loads.")  # fmt: skip
@click.option("--drafter", "drafters", multiple=True,
              help="Drafter model; may be repeated. Default: all of the zoo.")  # fmt: skip
@network_option()
@click.option("--keep-clusters", "keeps_clusters", is_flag=True,
              help="Use the same clusters in all repetitions of a cell, which saves their starts; "
              "hostile drafters are always fresh.")  # fmt: skip
@report_option()
@click.option("--resume", is_flag=True, help="Continue the benchmark recorded in FILE.")
@click.pass_context
def command(
    context: click.Context, ballast: int, repeats: int, names: tuple[str, ...],
    policies: tuple[str, ...], requests: int | None, max_tokens: int, rates: tuple[float, float],
    drafters: tuple[str, ...], network: NetworkKind, report: Path | None,
    *, quick: bool, resume: bool, keeps_clusters: bool,
) -> None:  # fmt: skip
    """Run benchmarks. Without a subcommand: compare EdgeCoSine with all baselines.

    A cell is a load under network conditions. Each repetition of a cell starts fresh clusters
    (unless they are kept), on which all policies run one after another, in balanced order; each
    run has prompts of its own, and begins with a warm-up on other prompts. Figures, runs and
    environment are written to FILE after every run, so that an interrupted benchmark can be
    resumed.
    """
    if context.invoked_subcommand is not None:
        return
    if resume and report is None:
        raise click.UsageError("--resume needs the FILE of --json")
    from edgecosine.lab.bench.environments import environments, possible
    from edgecosine.lab.bench.report import BenchReport
    from edgecosine.lab.bench.runner import BenchSettings
    from edgecosine.lab.bench.schedule import run_bench
    from edgecosine.lab.zoo.fresh_prompts import fresh_prompts

    log_to_stderr("warning")
    target_cores, drafter_cores = split_cores()
    settings = BenchSettings(
        ballast=ballast, requests=requests or (4 if quick else 8), max_tokens=max_tokens,
        network=network, drafters=drafters, target_cores=target_cores, drafter_cores=drafter_cores,
    )  # fmt: skip
    try:
        cells = all_cells(*rates)
        chosen = only(quick_cells(cells) if quick else cells, names, policies)
        how = {
            "rates_per_s": list(rates), "keeps_clusters": keeps_clusters, "policies": [*policies],
        }  # fmt: skip
        record = BenchReport(report, asdict(settings) | how)
        if resume:
            record.resume()
        steps = schedule(
            possible(chosen, network, click.echo), repeats, settings.requests, len(fresh_prompts())
        )
    except LabError as error:
        raise click.ClickException(str(error)) from error

    async def bench() -> None:
        try:
            await run_bench(
                steps, environments(settings, click.echo), record, click.echo,
                keeps_clusters=keeps_clusters,
            )  # fmt: skip
        finally:
            print_figures(record.figures())

    run_command(bench())


@command.command("parts")
@repeats_option()
@click.option("--prompts", type=click.IntRange(1, 100), default=8, show_default=True,
              help="Prompts for each policy, repetition and temperature; four domains take "
              "turns.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(8, 256), default=64, show_default=True,
              help="Tokens in each answer.")  # fmt: skip
@report_option()
def parts(repeats: int, prompts: int, max_tokens: int, report: Path | None) -> None:
    """Measure the gain of each part of EdgeCoSine on the real model, one request at a time.

    Every prompt is used once; the target generates as many prompts as are needed. The default sizes
    take a quarter of an hour on two cores.
    """
    from edgecosine.lab.bench.run_parts import PartsSettings, parts_figures, run_parts

    log_to_stderr("warning")
    target_cores, drafter_cores = split_cores()
    settings = PartsSettings(repeats, prompts, max_tokens, target_cores, drafter_cores)

    async def measure() -> None:
        keep = keeping(report, network="loopback", settings=asdict(settings))
        print_figures(parts_figures(await run_parts(settings, click.echo, keep)))

    run_command(measure())


@command.command("engine")
@ballast_option()
@repeats_option()
@click.option("--model", metavar="MODEL",
              help="Compare with llama.cpp on this GGUF model instead, in all forms of weights."
              )  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True,
              help="Threads and cores of both sides; with --model.")  # fmt: skip
@report_option()
def engine(
    ballast: int, repeats: int, model: str | None, threads: int, report: Path | None
) -> None:
    """Compare the engine with transformers on the same weights, with one thread on one core.

    With --model: compare forward passes with llama.cpp's on the same file, in all forms of weights,
    which takes minutes. llama.cpp is built as for `bench peers`.
    """
    from edgecosine.lab.bench.passes.run_passes import run_passes
    from edgecosine.lab.bench.run_engine import run_engine_bench

    log_to_stderr("warning")
    cores = sorted(os.sched_getaffinity(0))
    if threads > (len(cores) if model is not None else 1):
        raise click.UsageError(
            f"--threads needs --model and as many cores; this machine has {len(cores)}"
        )
    os.sched_setaffinity(0, cores[:threads])
    if model is not None:

        async def measure() -> None:
            keep = keeping(report, network="none", threads=threads)
            for line in await run_passes(model, repeats, threads, click.echo, keep):
                click.echo(line)

        run_command(measure())
        return
    keep = keeping(report, network="none", ballast=ballast)
    print_figures(run_engine_bench(ballast, repeats, click.echo, keep))


@command.command("grammar")
@repeats_option()
@click.option("--model", default=DEFAULT_TARGET, show_default=True, metavar="MODEL",
              help="The target's model.")  # fmt: skip
@report_option()
def grammar(repeats: int, model: str, report: Path | None) -> None:
    """Measure the cost of a response format, with one thread on one core, and check that drafts
    do not change answers that have one.
    """
    from edgecosine.lab.bench.run_grammar import run_grammar_bench

    log_to_stderr("warning")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    keep = keeping(report, network="none", model=model)
    print_figures(run_grammar_bench(model, repeats, click.echo, keep))


@command.command("cache")
@repeats_option()
@click.option("--model", default=DEFAULT_TARGET, show_default=True, metavar="MODEL",
              help="The target's model.")  # fmt: skip
@report_option()
def cache(repeats: int, model: str, report: Path | None) -> None:
    """Measure the cost of a system prompt of 512 tokens that another request has read, and the
    effects of each number format of the KV cache, with one thread on one core.
    """
    from edgecosine.lab.bench.run_cache import run_cache_bench

    log_to_stderr("warning")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    keep = keeping(report, network="none", model=model)
    print_figures(run_cache_bench(model, repeats, click.echo, keep))


@command.command("exactness")
@click.option("--answers", type=click.IntRange(6, 100_000), default=1000, show_default=True,
              help="Answers to check, over all models.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(8, 128), default=128, show_default=True,
              help="Tokens in each answer.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True,
              help="Seed of the random drafts and events.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, …")
@click.option("--weights", type=click.Choice(["bfloat16", "int8", "int4"]), default="bfloat16",
              show_default=True, help="Form of linear layers; int8 and int4 need a CPU."
              )  # fmt: skip
@click.option("--kv-dtype", type=click.Choice(["auto", "float32", "bfloat16", "int8"]),
              default="auto", show_default=True, help="Number format of the KV cache.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Check about 40 answers, in about a minute.")
@report_option()
def exactness(
    answers: int, max_tokens: int, seed: int, device: str, weights: WeightForm, kv_dtype: KvDtype,
    quick: bool, report: Path | None,
) -> None:  # fmt: skip
    """Compare answers under random speculation with plain decoding by the same engine.

    Drafts are good, bad and adversarial; sessions share forward passes, start, end and lose their
    slots; engines are replaced. Fails when an answer diverges although the policy is bitwise.
    """
    from edgecosine.lab.exactness.run_exactness import ExactnessSettings, run_exactness_bench

    log_to_stderr("warning")
    settings = ExactnessSettings(
        40 if quick else answers, max_tokens, seed, device, weights, kv_dtype
    )
    how = {"weights": weights, "kv_dtype": kv_dtype}
    keep = keeping(report, network="none", device=device, seed=seed, **how)
    found = run_exactness_bench(settings, click.echo, keep)
    print_figures(found.figures)
    if found.broken:
        raise click.ClickException(f"not exact to the bit: {', '.join(found.broken)}")


@command.command("gpu")
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, …")
@click.option("--repeats", type=click.IntRange(1, 1000), default=20, show_default=True,
              help="Forward passes of each kind.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Tiny shapes, to test the command on any device.")
@report_option()
def gpu(device: str, repeats: int, report: Path | None, *, quick: bool) -> None:
    """Measure a GPU: decoding and verification relative to its memory bandwidth, quantised
    drafters, and how often rounding changes an answer. Needs 20 GiB of GPU memory and no network.
    """
    from edgecosine.lab.bench.run_gpu import GpuSettings, run_gpu_bench, toy_settings

    log_to_stderr("warning")
    settings = toy_settings(device) if quick else GpuSettings(device=device, repeats=repeats)
    try:
        figures = run_gpu_bench(
            settings, click.echo, keeping(report, network="none", device=device)
        )
    except LabError as error:
        raise click.ClickException(str(error)) from error
    print_figures(figures)


command.add_command(chaos)
command.add_command(fuzz)
command.add_command(soak)
command.add_command(faults)
command.add_command(peers)
command.add_command(http)
command.add_command(rounds)
command.add_command(routing)
command.add_command(committee)
command.add_command(map_bench)
command.add_command(map_validation)
command.add_command(simulation)
command.add_command(plot)
command.add_command(table)
