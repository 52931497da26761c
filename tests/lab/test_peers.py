"""The comparison with peers: messages of their processes, and figures of the runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgecosine import zoo
from edgecosine.errors import BrokerLost, LabError
from edgecosine.lab import line_process as line_processes
from edgecosine.lab.bench.cells import ALONE, OURS
from edgecosine.lab.bench.peers import run_peers as peers_bench
from edgecosine.lab.bench.peers import transformers_worker as stock
from edgecosine.lab.bench.peers.environment import llamacpp_python
from edgecosine.lab.bench.peers.figures import (
    LLAMACPP,
    LLAMACPP_DRAFTED,
    TRANSFORMERS,
    peer_figures,
)
from edgecosine.lab.bench.peers.inputs import PeerSettings, PeersRecord, held_out
from edgecosine.lab.bench.peers.messages import Kind, PeerOrder, Setup
from edgecosine.lab.bench.peers.server import PeerPrompt, PeerServer, peer_process, record
from edgecosine.lab.figures import keeping
from edgecosine.lab.measured_requests import Load
from edgecosine.lab.paired_runs import balanced_order
from tests.support.mqtt import run_patiently

SETUP = Setup("target.gguf", None, (2,), ((1, 5),), 4, 2, 64, 8)
PROMPTS = [PeerPrompt("code", "a", (1, 5, 6)), PeerPrompt("facts", "b", (1, 7))]
KINDS: dict[int, Kind] = {1: "plain", 8: "batched"}

CHILD = """
import json, sys
setup = json.loads(sys.stdin.readline())
print(json.dumps({"settings": {"plain": {"flash_attn": True}}, "refused": {"drafted": "no draft"},
    "trials_s": {"plain": 0.5}, "failed": {}, "versions": {"threads": str(setup["threads"])}}),
    flush=True)
for line in sys.stdin:
    order = json.loads(line)
    %s
    answers = [{"tokens": p[::-1], "first_token_s": 0.1, "elapsed_s": 0.5}
               for p in order["prompts"]]
    print(json.dumps({"answers": answers, "elapsed_s": 1.5}), flush=True)
"""


async def ask_child(then: str = "pass", at_once: int = 1) -> Load:
    command = (sys.executable, "-c", CHILD % then)
    async with peer_process("the peer", command, SETUP, "") as (process, ready):
        assert ready.refused == {"drafted": "no draft"}
        assert ready.versions == {"threads": "2"}
        return await PeerServer(process, KINDS, str).answer(PROMPTS, at_once, 4)


def test_answers_of_a_process_become_a_load() -> None:
    load = run_patiently(ask_child())
    assert [measured.text for measured in load.answers] == ["[6, 5, 1]", "[7, 1]"]
    assert [measured.domain for measured in load.answers] == ["code", "facts"]
    assert (load.num_tokens, load.elapsed_s) == (5, 1.5)
    assert load.answers[0].inter_token_s == pytest.approx(0.2)


def test_kind_of_an_order_depends_on_the_concurrency() -> None:
    check = "assert order['kind'] == 'batched', order"
    assert run_patiently(ask_child(check, at_once=8)).num_tokens == 5


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("sys.exit(3)", "ended with exit code 3"),
        ("print('hello', flush=True)", "invalid reply"),
        ("print('{\"answers\": [], \"elapsed_s\": 0, \"error\": \"no memory\"}', flush=True)",
         "no memory"),
        ("print('{\"answers\": [], \"elapsed_s\": 0}', flush=True)", "missing"),
        ("print('x' * (5 << 20), flush=True)", "over 4194304 bytes"),
    ],
)  # fmt: skip
def test_invalid_reply_is_an_error_with_its_reason(then: str, reason: str) -> None:
    with pytest.raises(LabError, match=reason):
        run_patiently(ask_child(then))


def test_silent_process_is_ended_after_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_processes, "REPLY_TIMEOUT_S", 1.0)
    with pytest.raises(LabError, match="no reply in 1 s"):
        run_patiently(ask_child("import time; time.sleep(60)"))


def a_run(server: str, turn: int, rate: float, cell: str = "single", text: str = "x") -> Any:
    return {
        "server": server, "cell": cell, "turn": turn, "texts": [text], "tokens_per_s": rate,
        "decode_tokens_per_s": 2 * rate,
    }  # fmt: skip


def test_figures_are_medians_of_ratios_within_turns() -> None:
    runs = [
        *(a_run(OURS, turn, rate) for turn, rate in enumerate((30, 40, 90))),
        *(a_run(LLAMACPP, turn, 20) for turn in range(3)),
        a_run(ALONE, 0, 10), a_run(ALONE, 1, 10, text="y"),
        a_run(OURS, 0, 80, "eight"), a_run(LLAMACPP, 0, 20, "eight"),
    ]  # fmt: skip
    figures = peer_figures(runs)
    assert figures["over_llamacpp"].value == 2.0
    assert figures["over_llamacpp_decode"].value == 2.0
    assert figures["over_llamacpp"].n == 3
    assert figures["eight_over_llamacpp_eight"].value == 4.0
    assert figures["identical_share"].value == 0.5
    assert figures["single_tokens_per_s_llamacpp"].value == 20
    assert "over_hf_assisted" not in figures
    assert "over_llamacpp_with_draft" not in figures


def test_failed_peer_has_a_reason_and_no_figures() -> None:
    found = PeersRecord()
    for turn in range(2):
        for server in (OURS, LLAMACPP, LLAMACPP_DRAFTED):
            found.runs.append(a_run(server, turn, 10))
    messages: list[str] = []
    found.refuse(LLAMACPP_DRAFTED, "it ended", messages.append)
    assert "over_llamacpp" in found.figures()
    assert "over_llamacpp_with_draft" not in found.figures()
    assert found.refused == {LLAMACPP_DRAFTED: "it ended"}
    assert messages == ["left out: llamacpp-with-draft: it ended"]


class FakeServer:
    """Answers at once, or fails from a turn on."""

    def __init__(self, name: str, order: list[str], fails_at: int = 1 << 30) -> None:
        self._name, self._order, self._left = name, order, fails_at

    async def answer(self, prompts: Sequence[PeerPrompt], at_once: int, max_tokens: int) -> Load:
        self._order.append(self._name)
        self._left -= 1
        if self._left < 0:
            raise LabError("it ended")
        return Load((), (), 1.0)


def test_turns_are_balanced_and_continue_without_a_failed_server() -> None:
    order, found = list[str](), PeersRecord()
    servers: dict[str, Any] = {
        ALONE: FakeServer(ALONE, order), OURS: FakeServer(OURS, order),
        LLAMACPP: FakeServer(LLAMACPP, order, fails_at=1),
    }  # fmt: skip
    settings = PeerSettings()
    kept: list[int] = []

    def keep(_: object, runs: Sequence[Any], **__: object) -> None:
        kept.append(len(runs))

    run_patiently(peers_bench._measure(settings, servers, PROMPTS * 2, (), found, print, keep))
    assert kept == [3, 5, 7, 9]
    assert order[:3] == list(balanced_order(tuple(servers), 0))
    assert order[3:6] == [LLAMACPP, OURS, ALONE]
    assert order[6:] == [OURS, ALONE, ALONE, OURS]
    assert found.refused == {LLAMACPP: "it ended"}
    assert found.notes["complete_turns"] == {"single": "4 of 4", "eight": "0 of 0"}
    assert [run["turn"] for run in found.runs if run["server"] == OURS] == [0, 1, 2, 3]


class LostCluster:
    """Fails in a way that ends the measurement, in its second answer."""

    def __init__(self) -> None:
        self._num_answers = 0

    async def answer(self, prompts: Sequence[PeerPrompt], at_once: int, max_tokens: int) -> Load:
        self._num_answers += 1
        if self._num_answers > 1:
            raise BrokerLost("ended")
        return Load((), (), 1.0)


def test_interrupted_record_says_how_many_turns_of_each_cell_are_complete() -> None:
    found = PeersRecord()
    servers: dict[str, Any] = {OURS: LostCluster()}
    measuring = peers_bench._measure(
        PeerSettings(), servers, PROMPTS * 2, (), found, print, keeping(None)
    )
    with pytest.raises(BrokerLost):
        run_patiently(measuring)
    assert found.notes["complete_turns"] == {"single": "1 of 4", "eight": "0 of 0"}


def test_slow_peer_answers_in_half_of_the_turns() -> None:
    order, found = list[str](), PeersRecord()
    servers: dict[str, Any] = {name: FakeServer(name, order) for name in (OURS, TRANSFORMERS)}
    prompts = PROMPTS * 4
    run_patiently(
        peers_bench._measure(PeerSettings(), servers, prompts, (), found, print, keeping(None))
    )
    turns = [run["turn"] for run in found.runs if run["server"] == TRANSFORMERS]
    assert turns == [0, 3, 4, 7]


def test_record_of_a_run_has_rates_and_texts() -> None:
    run = record(LLAMACPP, "single", 3, run_patiently(ask_child()))
    assert run["turn"] == 3
    assert run["texts"] == ["[6, 5, 1]", "[7, 1]"]
    assert run["tokens_per_s"] == pytest.approx(5 / 1.5)
    assert run["decode_tokens_per_s"] == pytest.approx(2 / (0.2 + 0.4))


def test_failed_build_reports_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LabError, match="was not built"):
        llamacpp_python(messages.append, tmp_path / "peers" / "llamacpp")
    assert "takes many minutes" in messages[0]


class WordTokenizer:
    def apply_chat_template(self, turns: Any, **_: Any) -> str:
        return f"<user> {turns[0]['content']} <assistant>"

    def encode(self, text: str, **_: Any) -> list[int]:
        return [len(word) for word in text.split()]


def test_prompts_for_settings_are_not_measured() -> None:
    measured, trials = held_out(WordTokenizer(), 14)
    assert [prompt.domain for prompt in measured[:4]] == ["code", "rewriting", "facts", "stories"]
    assert len(measured) == 4 * 14
    assert not {prompt.text for prompt in measured} & {prompt.text for prompt in trials}
    assert measured[0].tokens[0] == len("<user>")
    with pytest.raises(LabError, match="14 prompts"):
        held_out(WordTokenizer(), 15)


def test_transformers_process_answers_with_and_without_a_drafter() -> None:
    setup = Setup(
        str(zoo.DIRECTORY / "target"), str(zoo.DIRECTORY / "generalist"), (0,),
        ((5, 9, 40, 7),), 2, 1, 64, 8,
    )  # fmt: skip
    orders = [PeerOrder(kind, ((5, 9, 40, 7), (8, 3)), 6) for kind in ("plain", "drafted")]
    ready, answer = stock.start(iter([msgspec.json.encode(setup)]))
    assert ready.settings.keys() == {"plain", "drafted"}
    replies = [answer(msgspec.json.encode(order)) for order in orders]
    assert [[len(a.tokens) for a in reply.answers] for reply in replies] == [[6, 6], [6, 6]]
