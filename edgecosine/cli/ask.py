"""`edgecosine ask`: send a prompt to a cluster and print the answer as it is generated."""

from __future__ import annotations

import contextlib
import secrets

import click
import msgspec

from edgecosine.cli.exit_status import input_text, standard_input
from edgecosine.cli.running import broker_options, run_command
from edgecosine.client.client import Client
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.protocol.api.answers import FinalMessage
from edgecosine.protocol.api.mqtt_message import MAX_PAYLOAD_BYTES
from edgecosine.protocol.api.openai import DEFAULT_MAX_TOKENS
from edgecosine.protocol.api.request import MAX_SEED, ChatMessage, Request, Sampling
from edgecosine.protocol.api.result import Delta


@click.command("ask")
@click.argument("prompt")
@click.option("--chat", is_flag=True, help="Send the prompt as a chat message.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Maximum number of generated tokens.  "
    f"[default: {DEFAULT_MAX_TOKENS}, or as many as the context allows]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0.0, 2.0),
    default=0.0,
    show_default=True,
    metavar="T",
    help="Sampling temperature; 0: always the most probable token.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="P",
    help="Sample from the most probable tokens up to this probability mass.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=None,
    metavar="N",
    help="Seed of the sampling, for a reproducible answer; random by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the final message as JSON.")
@broker_options
def command(
    prompt: str,
    chat: bool,
    max_tokens: int | None,
    temperature: float,
    top_p: float,
    seed: int | None,
    as_json: bool,
    broker: BrokerAddress,
    cluster: str,
) -> None:
    """Send PROMPT to the cluster and print the answer; - reads the prompt from standard input."""
    text = _read_prompt() if prompt == "-" else prompt
    if not text:
        raise click.BadParameter("the prompt is empty", param_hint="PROMPT")
    request = Request(
        client_id="",
        request_id=secrets.token_hex(8),
        kind="chat" if chat else "completion",
        prompt=(ChatMessage("user", text),) if chat else text,
        max_tokens=max_tokens or DEFAULT_MAX_TOKENS,
        is_default_length=max_tokens is None,
        sampling=Sampling(
            temperature=temperature,
            top_p=top_p,
            seed=secrets.randbits(64) if seed is None else seed,
        ),
        stream=not as_json,
    )
    run_command(_ask(broker, cluster, request))


def _read_prompt() -> str:
    """All text of standard input.

    Raises UsageError when it is closed or not text.
    """
    content = standard_input().read(MAX_PAYLOAD_BYTES + 1)
    if len(content) > MAX_PAYLOAD_BYTES:
        # The cluster refuses it, with the limit in the error.
        return content.decode(errors="replace")
    return input_text(content)


async def _ask(broker: BrokerAddress, cluster: str, request: Request) -> None:
    async with (
        Client(broker, cluster, on_standstill=_print_standstill) as client,
        contextlib.aclosing(client.ask(request)) as steps,
    ):
        async for step in steps:
            match step:
                case Delta(_, text):
                    click.echo(text, nl=False)
                case FinalMessage() if not request.stream:
                    click.echo(msgspec.json.encode(step.body))
                case FinalMessage():
                    click.echo()


def _print_standstill(standstill: str | None) -> None:
    click.echo("resumed" if standstill is None else f"waiting: {standstill}", err=True)
