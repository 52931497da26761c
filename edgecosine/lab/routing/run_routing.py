"""Measures routing on fresh prompts: EdgeCoSine's on simulated clusters, other rules on the same
recorded texts.

Every repetition has prompts of its own. `cold` are the first requests of a fresh cluster, `warm`
those after a hundred requests with other prompts. The value of a drafter in a domain is measured on
the texts of the repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgecosine.errors import LabError
from edgecosine.lab.figures import Figure, Keep, Notify, interval
from edgecosine.lab.routing.rules import (
    GAMMA,
    Bandit,
    Hedge,
    Led,
    Lengths,
    PromptScoreRule,
    Rule,
    accepted_lengths,
    count_led,
    leaders,
    worth,
)
from edgecosine.lab.routing_regret import routing
from edgecosine.lab.simulation.cluster import Scenario, SimulatedLoad, simulate
from edgecosine.lab.simulation.costs import Costs
from edgecosine.lab.simulation.engines import LOOK_AHEAD
from edgecosine.lab.simulation.texts import Texts
from edgecosine.lab.zoo.fresh_prompts import fresh_prompts

OURS, ON_ONE_MACHINE = "edgecosine", "edgecosine-on-one-machine"
_RATES: Mapping[str, tuple[float, ...]] = {"hedge": (0.3, 1.0, 3.0), "bandit": (0.02, 0.1, 0.5)}
_MAKE: Mapping[str, Callable[[int, float], Rule]] = {"hedge": Hedge, "bandit": Bandit}


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """Numbers of requests, each of another prompt; multiples of the number of domains."""

    repeats: int = 5
    warm_up: int = 100
    measured: int = 60
    cold: int = 20
    max_tokens: int = 64

    @property
    def num_prompts(self) -> int:
        """Prompts of all repetitions, and of one block more. The warm-up of a repetition uses the
        prompts of the next block; the last block also tunes the rules."""
        return (self.repeats + 1) * max(self.warm_up, self.measured, self.cold)

    @property
    def num_recorded(self) -> int:
        """Tokens of each recorded answer."""
        return self.max_tokens + max(GAMMA, LOOK_AHEAD)


@dataclass(frozen=True, slots=True)
class _Block:
    """The texts of one repetition, by their numbers."""

    warm_up: Sequence[int]
    measured: Sequence[int]


class RoutingBench:
    """The recorded texts, cut into repetitions."""

    def __init__(self, settings: RoutingSettings, texts: Texts, costs: Costs) -> None:
        self._settings, self._texts, self._costs = settings, texts, costs
        self._lengths: Lengths = accepted_lengths(texts, settings.max_tokens)

    def run(self, notify: Notify, keep: Keep) -> list[dict[str, Any]]:
        """Measure; returns a record for each repetition, rule and state (cold or warm).

        The records are saved after each repetition.
        """
        rates = {name: self._tuned(name) for name in _RATES}
        runs: list[dict[str, Any]] = []
        for repeat in range(self._settings.repeats):
            runs += self._repetition(repeat, rates)
            keep(routing_figures(runs), runs, chosen_rates=rates)
            notify(f"repetition {repeat + 1} of {self._settings.repeats}")
        return runs

    def _repetition(self, repeat: int, rates: Mapping[str, float]) -> Iterator[dict[str, Any]]:
        block = self._block(repeat)
        cold = _Block((), block.measured[: self._settings.cold])
        makes: dict[str, Callable[[], Rule]] = {
            "prompt-score": PromptScoreRule,
            **{name: partial(self._make, name, rate) for name, rate in rates.items()},
        }
        for state, here in (("cold", cold), ("warm", block)):
            for name, make in makes.items():
                yield self._record(repeat, name, state, here, self._by_rule(make(), here))
            for name in (OURS, ON_ONE_MACHINE):
                led, speed = self._simulated(here, "one" if name == ON_ONE_MACHINE else "")
                record = self._record(repeat, name, state, here, led)
                yield {**record, "tokens_per_s": speed}

    def _block(self, repeat: int) -> _Block:
        size = self._settings.num_prompts // (self._settings.repeats + 1)
        start, after = (size * place for place in (repeat, repeat + 1))
        return _Block(
            range(after, after + self._settings.warm_up),
            range(start, start + self._settings.measured),
        )

    def _make(self, name: str, rate: float) -> Rule:
        return _MAKE[name](len(self._texts.drafters), rate)

    def _tuned(self, name: str) -> float:
        """The rate with the least regret on the prompts of a block that no repetition measures."""
        last = self._block(self._settings.repeats - 1).warm_up

        def regret(rate: float) -> float:
            block = _Block((), last)
            led = self._by_rule(self._make(name, rate), block)
            return float(self._record(0, name, "", block, led)["regret"])

        return min(_RATES[name], key=regret)

    def _by_rule(self, rule: Rule, block: _Block) -> Led:
        leaders(rule, self._texts, self._lengths, block.warm_up)
        return leaders(rule, self._texts, self._lengths, block.measured)

    def _simulated(self, block: _Block, host: str) -> tuple[Led, float]:
        """Rounds led by each drafter of a fresh simulated cluster that serves one request at a
        time, and its tokens per second."""
        numbers = [*block.warm_up, *block.measured]
        texts, tokens = self._texts.only(numbers), self._settings.max_tokens
        parts = ((0, len(block.warm_up)), (len(block.warm_up), len(block.measured)))
        loads = [SimulatedLoad(OURS, 1, count, tokens, first) for first, count in parts if count]
        scenario = Scenario(texts.drafters, is_core_shared=bool(host), host=host)
        outcome = simulate(scenario, loads, self._costs, texts)[-1]
        led: Led = {}
        for number, drafters in outcome.drafters.items():
            domain = self._texts.domains[block.measured[number]]
            for node_id, share in drafters.items():
                count_led(led, node_id, domain, share.led, share.first)
        return led, outcome.tokens_per_s

    def _record(
        self, repeat: int, name: str, state: str, block: _Block, led: Led
    ) -> dict[str, Any]:
        matrix = worth(self._texts, self._lengths, block.measured)
        nodes = {node if node[-1].isdigit() else f"{node}-0": row for node, row in led.items()}
        found = routing({"drafters": nodes}, matrix)
        assert found is not None, "every request has rounds"
        return {
            "repeat": repeat, "rule": name, "state": state, "regret": found.regret,
            "first_right": found.first_right, "to_best": dict(found.to_best),
            "first_prompt": block.measured[0], "prompts": len(block.measured),
        }  # fmt: skip


def run_routing(
    settings: RoutingSettings, costs: Costs, notify: Notify, keep: Keep
) -> list[dict[str, Any]]:
    """Record texts and route on them; returns a record for each repetition, rule and state.

    Raises LabError when there are too few fresh prompts.
    """
    from edgecosine.lab.routing.fresh_texts import (
        record_texts,
    )  # imports torch, which takes seconds

    prompts = fresh_prompts()[: settings.num_prompts]
    if len(prompts) < settings.num_prompts:
        raise LabError(f"there are {len(prompts)} fresh prompts: choose fewer --repeats")
    notify(f"recording {len(prompts)} texts")
    texts = record_texts(prompts, settings.num_recorded)
    return RoutingBench(settings, texts, costs).run(notify, keep)


def routing_figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Regret of each rule, cold and warm, and the share of requests whose first round the best
    drafter led. `routing_regret_fresh` and `routed_first_right_fresh` are EdgeCoSine's, warm."""
    figures: dict[str, Figure] = {}
    for rule, state in dict.fromkeys((run["rule"], run["state"]) for run in runs):
        there = [run for run in runs if (run["rule"], run["state"]) == (rule, state)]
        for name, field in (("routing_regret", "regret"), ("routed_first_right", "first_right")):
            is_ours = (rule, state) == (OURS, "warm")
            full = f"{name}_fresh" if is_ours else f"{name}_{rule.replace('-', '_')}_{state}"
            figures[full] = interval([run[field] for run in there])
    return figures
