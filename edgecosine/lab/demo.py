"""The demo: runs a cluster on this machine, sends held-out prompts and measures the speed-up.

Each prompt is answered twice in a row, by the target alone and with its drafters, in an order that
alternates within each domain, so that both are affected equally by drifts of the machine's speed
and by the target's cache, which holds the prompt of the second answer. No prompt is used again at
another temperature or without drafters, since the target learns from its answers.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edgecosine.client.client import Client
from edgecosine.lab.demo_models import Scene
from edgecosine.lab.figures import Figure, interval, write_report
from edgecosine.lab.harness import fresh_plan
from edgecosine.lab.load_generator import GREEDY, ask
from edgecosine.lab.measured_requests import MeasuredAnswer
from edgecosine.local.cluster import LocalCluster
from edgecosine.protocol.api.request import Sampling

ALONE, WITH_DRAFTERS = "target-alone", "edgecosine"
SAMPLED = Sampling(temperature=0.8, seed=1)


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Models, devices and number of prompts. The prompts are held out from training."""

    scene: Scene
    prompts_per_domain: int
    max_tokens: int
    target_cores: str
    drafter_cores: str
    target_device: str = "auto"
    drafter_devices: tuple[str, ...] = ("auto",)
    """Assigned to drafters in turn."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt, answered by the target alone and with drafters."""

    alone: MeasuredAnswer
    together: MeasuredAnswer

    @property
    def speedup(self) -> float:
        """Tokens per second with drafters, over those of the target alone."""
        return self.together.tokens_per_s / self.alone.tokens_per_s

    @property
    def is_identical(self) -> bool:
        """Whether both texts are the same."""
        return self.together.text == self.alone.text


async def run_demo(settings: DemoSettings, console: Console, report: Path | None) -> bool:
    """Run the demo; returns False when a text differs although the target is bitwise exact."""
    scene = settings.scene
    plan = fresh_plan(
        "demo", scene.target, scene.drafters, ballast=scene.ballast,
        target_cores=settings.target_cores, drafter_cores=settings.drafter_cores,
        target_device=settings.target_device, drafter_devices=settings.drafter_devices,
    )  # fmt: skip
    if scene.ballast > 1:
        console.print(
            f"Ballast: the target is widened {scene.ballast} times, so that it costs as much as a "
            "larger model. Its texts are unchanged."
        )
    async with (
        LocalCluster(plan, lambda text: console.print(f"[dim]{text}[/dim]")) as cluster,
        Client(cluster.broker_url, plan.cluster) as client,
    ):
        state = (await client.nodes())[plan.target.node_id].state
        demo = _Demo(client, settings, console)
        await demo.warm_up()
        pairs = await demo.ask_all()
        console.print("[dim]other prompts at temperature 0.8[/dim]")
        count = settings.prompts_per_domain
        sampled = await demo.ask_others(SAMPLED, count, first=count)
        console.print("[dim]stopping all drafters; the target continues alone[/dim]")
        for member in plan.drafters:
            await cluster.stop(member.node_id)
        await cluster.wait_until_linked(0)
        orphaned = await demo.ask_others(GREEDY, 1, first=2 * count)
    figures = _figures(pairs, sampled, orphaned)
    console.print(_table(pairs), _drafter_table(pairs))
    _summary(console, figures)
    if report is not None:
        runs = [
            measured.record() for pair in [*pairs, *sampled, *orphaned] for measured in _both(pair)
        ]
        write_report(
            report, figures, runs, network="loopback", ballast=scene.ballast,
            exactness=state["exactness"], target_device=settings.target_device,
            drafter_devices=settings.drafter_devices,
        )  # fmt: skip
        console.print(f"written: {report}")
    return figures["identical_share"].value == 1.0 or state["exactness"] != "bitwise"


class _Demo:
    """Sends the prompts of a scene."""

    def __init__(self, client: Client, settings: DemoSettings, console: Console) -> None:
        self._client, self._settings, self._console = client, settings, console
        self._num_pairs = Counter[str]()

    async def warm_up(self) -> None:
        """Warm up caches, allocators and statistics with one short answer per policy."""
        domain, prompts = next(iter(self._settings.scene.prompts.items()))
        await self._pair(domain, prompts[-1], GREEDY, max_tokens=self._settings.max_tokens // 4)

    async def ask_all(self) -> list[Pair]:
        """Send every prompt at temperature 0 and show the answers as they arrive."""
        pairs: list[Pair] = []
        for number, domain, prompt in self._prompts(self._settings.prompts_per_domain):
            self._console.rule(f"{domain}, prompt {number + 1}", align="left")
            is_chat = self._settings.scene.is_chat
            end = "\n\n" if is_chat else ""
            self._console.print(prompt, style="dim", end=end, markup=False, highlight=False)
            pair = await self._pair(domain, prompt, GREEDY, on_text=self._show)
            pairs.append(pair)
            self._console.print(
                f"\n[bold]{pair.together.tokens_per_s:.0f} tokens/s[/bold] with drafters, "
                f"{pair.alone.tokens_per_s:.0f} alone: {pair.speedup:.2f} times"
            )
        return pairs

    async def ask_others(self, sampling: Sampling, per_domain: int, first: int) -> list[Pair]:
        """Send the prompts from number `first` on, without showing the answers."""
        return [
            await self._pair(domain, prompt, sampling)
            for _, domain, prompt in self._prompts(per_domain, first)
        ]

    def _prompts(self, per_domain: int, first: int = 0) -> Iterator[tuple[int, str, str]]:
        for number in range(first, first + per_domain):
            for domain, prompts in self._settings.scene.prompts.items():
                yield number, domain, prompts[number % len(prompts)]

    async def _pair(
        self,
        domain: str,
        prompt: str,
        sampling: Sampling,
        *,
        on_text: Callable[[str], None] = lambda _: None,
        max_tokens: int = 0,
    ) -> Pair:
        """Request both answers, both as streams, so that they have the same costs.

        The order alternates within each domain, since the second answer finds the prompt in the
        target's cache.
        """
        answers: dict[str, MeasuredAnswer] = {}
        number = self._num_pairs[domain]
        self._num_pairs[domain] += 1
        order = (ALONE, WITH_DRAFTERS) if number % 2 else (WITH_DRAFTERS, ALONE)
        for policy in order:
            answers[policy] = await ask(
                self._client,
                prompt,
                domain=domain,
                policy=policy,
                max_tokens=max_tokens or self._settings.max_tokens,
                sampling=sampling,
                on_text=on_text if policy == WITH_DRAFTERS else lambda _: None,
                is_chat=self._settings.scene.is_chat,
            )
        return Pair(answers[ALONE], answers[WITH_DRAFTERS])

    def _show(self, text: str) -> None:
        self._console.print(text, end="", markup=False, highlight=False, soft_wrap=True)


def _by_domain(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    domains: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        domains[pair.alone.domain].append(pair)
    return domains


def _figures(
    pairs: Sequence[Pair], sampled: Sequence[Pair], orphaned: Sequence[Pair]
) -> dict[str, Figure]:
    by_domain = _by_domain(pairs).values()
    worst = min(by_domain, key=lambda group: statistics.median(p.speedup for p in group))
    everything = [*pairs, *sampled, *orphaned]
    return {
        "speedup_median": interval([p.speedup for p in pairs]),
        "speedup_worst_domain": interval([p.speedup for p in worst]),
        "speedup_sampled": interval([p.speedup for p in sampled]),
        "speedup_without_drafters": interval([p.speedup for p in orphaned]),
        "identical_share": interval([float(p.is_identical) for p in everything], statistics.mean),
        "acceptance_length_mean": interval(
            [p.together.num_accepted / max(1, p.together.num_rounds) for p in pairs],
            statistics.mean,
            "tokens",
        ),
        "time_to_first_token_s": interval(
            [p.together.first_text_s or p.together.elapsed_s for p in pairs], unit="s"
        ),
    }


def _table(pairs: Sequence[Pair]) -> Table:
    table = Table(title="Speed-up by speculation", title_justify="left")
    headings = ("domain", "tokens", "tokens/s", "alone", "speed-up", "acceptance", "identical")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "domain" else "right")
    for domain, group in _by_domain(pairs).items():
        together = [p.together for p in group]
        rounds = max(1, sum(a.num_rounds for a in together))
        identical = sum(p.is_identical for p in group)
        table.add_row(
            domain,
            str(sum(a.num_tokens for a in together)),
            f"{_rate(together):.1f}",
            f"{_rate([p.alone for p in group]):.1f}",
            f"{statistics.median(p.speedup for p in group):.2f}",
            f"{sum(a.num_accepted for a in together) / rounds:.2f}",
            "yes" if identical == len(group) else f"{identical} of {len(group)}",
        )
    return table


def _rate(answers: Sequence[MeasuredAnswer]) -> float:
    return sum(a.num_tokens for a in answers) / sum(a.elapsed_s for a in answers)


def _drafter_table(pairs: Sequence[Pair]) -> Table:
    """Verified draft tokens of each drafter, and the share of them that was accepted."""
    by_domain = _by_domain(pairs)
    table = Table(title="Draft tokens verified, and accepted", title_justify="left")
    table.add_column("drafter")
    for domain in by_domain:
        table.add_column(domain, justify="right")
    shares = {domain: _shares([p.together for p in group]) for domain, group in by_domain.items()}
    for name in sorted(set(chain.from_iterable(shares.values()))):
        cells = (shares[domain].get(name, (0, 0)) for domain in by_domain)
        table.add_row(name, *(f"{n}, {k / n:.0%}" if n else "–" for n, k in cells))
    return table


def _shares(answers: Sequence[MeasuredAnswer]) -> dict[str, tuple[int, int]]:
    """Proposed and accepted tokens by drafter, whose node id loses its random suffix."""
    shares: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for answer in answers:
        for node_id, share in answer.drafters.items():
            name = node_id.rsplit("-", 1)[0]
            proposed, accepted = shares[name]
            shares[name] = (proposed + share["proposed"], accepted + share["accepted"])
    return shares


def _summary(console: Console, figures: dict[str, Figure]) -> None:
    for name, figure in figures.items():
        console.print(f"{name.replace('_', ' ')}: [bold]{figure}[/bold]")


def _both(pair: Pair) -> tuple[MeasuredAnswer, MeasuredAnswer]:
    return pair.alone, pair.together
