"""Real nodes of a model with several faults: a request that meets a fault fails with its message,
and the processes and the other requests' texts are unharmed."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from edgecosine import zoo
from edgecosine.client.client import Client
from edgecosine.errors import RequestError
from edgecosine.local.cluster_plan import ClusterPlan, LocalNode
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.request import ChatMessage, Request, Sampling
from tests.support.forked_nodes import forked_cluster
from tests.support.mqtt import free_port, needs_mosquitto, run_patiently

pytestmark = [needs_mosquitto, pytest.mark.timeout(120)]

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{{ raise_exception('roles alternate') }}"
)
GOOD = "def main():"


def faulty(directory: Path) -> str:
    """A drafter of the zoo whose template rejects every chat, with a token without an embedding, an
    end token without a logit, and an embedding of NaN."""
    shutil.copytree(zoo.DIRECTORY / zoo.drafter_names()[0], directory)
    bad = AutoTokenizer.from_pretrained(directory).encode(" while")[0]
    weights = {name: each.clone() for name, each in _weights(directory).items()}
    # Untied, since the output layer would use the same row.
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][bad] = float("nan")
    num_rows = len(weights["lm_head.weight"])
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    pad = {"id": num_rows, "content": "[PAD]", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(pad | flags)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    _edit(directory / "tokenizer_config.json", chat_template=TEMPLATE)
    _edit(directory / "config.json", tie_word_embeddings=False)
    _edit(directory / "generation_config.json", eos_token_id=[0, num_rows + 900])
    return str(directory)


def _weights(directory: Path) -> Any:
    return load_file(directory / "model.safetensors")


def _edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


async def result_of(client: Client, prompt: Any = GOOD, **how: Any) -> str:
    """The text, or the error's code and message."""
    kind = "completion" if isinstance(prompt, str) else "chat"
    asked = Request(
        "", secrets.token_hex(8), kind, prompt, max_tokens=24, ignore_eos=True,
        sampling=Sampling(**how),
    )  # fmt: skip
    try:
        async with contextlib.aclosing(client.ask(asked)) as steps:
            async for step in steps:
                if isinstance(step, FinalMessage):
                    return step.text
    except RequestError as error:
        return f"{error.code}: {error.message}"
    raise AssertionError("no final message")


def test_request_that_meets_a_model_fault_fails_alone(tmp_path: Path) -> None:
    model = faulty(tmp_path / "faulty")
    plan = ClusterPlan(
        cluster=f"faults-{secrets.token_hex(3)}",
        target=LocalNode("t", ("--role", "target", "--model", model, "--threads", "1")),
        drafters=(LocalNode("d", ("--role", "drafter", "--model", model, "--threads", "1")),),
        broker_port=free_port(),
    )

    async def scenario() -> None:
        async with (
            forked_cluster(plan) as cluster,
            Client(cluster.broker_url, plan.cluster) as client,
        ):
            pids = cluster.pids
            good = await result_of(client)
            assert not good.startswith("internal_error")
            turns = (ChatMessage("user", "one"), ChatMessage("user", "two"))
            assert "roles alternate" in await result_of(client, turns)
            for how in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}):
                answer = await result_of(client, f"{GOOD}\n    while", **how)
                assert answer.startswith("internal_error: the model gave NaN")
            assert "the model has tokens 0 to" in await result_of(client, "def [PAD] main():")
            assert await result_of(client, temperature=1.0, top_p=1e-46) == good
            assert await result_of(client, temperature=1e-45) == good
            assert await result_of(client, min_tokens=9) == good
            assert cluster.pids == pids

    run_patiently(scenario())
