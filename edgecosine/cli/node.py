"""`edgecosine node`: one node in the foreground."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgecosine.cli.access import (
    BROKER_OPTIONS,
    CREDENTIALS_OPTION,
    broker_access,
    no_password,
    node_credentials,
)
from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.running import host_name, run_command
from edgecosine.cli.state import default_state, lasting_name, lasting_place
from edgecosine.config import (
    DRAIN_TIMEOUT_S,
    KEEPALIVE_S,
    STALL_TIMEOUT_S,
    NodeConfig,
    Quantize,
    Role,
    parse_cores,
    read_file,
)
from edgecosine.errors import ConfigError
from edgecosine.local.cluster import node_name
from edgecosine.node.node import run_node
from edgecosine.node.runtime.drain import Drain
from edgecosine.security.credentials import Credentials

Command = TypeVar("Command", bound=Callable[..., Any] | click.Command)


def _from_file(ctx: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        known = {p.name for p in ctx.command.params if p.name and p.name != "config"}
        try:
            ctx.default_map = read_file(path, known)
        except ConfigError as error:
            raise click.UsageError(str(error), ctx) from error
    return path


def _option(name: str, **settings: Any) -> Callable[[Command], Command]:
    env = "EDGECOSINE_" + name.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    return click.option(
        name, envvar=env, show_envvar=True, **{"show_default": True, **settings},
    )  # fmt: skip


@click.command("node")
@_option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), is_eager=True,
    callback=_from_file, help="TOML file with these options as keys.",
)  # fmt: skip
@_option(
    "--role",
    type=click.Choice(["target", "drafter"]),
    required=True,
    help="What it does.",
)
@_option(
    "--model",
    required=True,
    help="A name of the zoo or of `edgecosine model list`, a directory, a GGUF file, a hub id; "
    "`ngram` drafts too.",
)
@_option(
    "--gguf", default="", show_default=False, metavar="NAME",
    help="GGUF file in the directory or hub model that --model names; of a split model the first.",
)  # fmt: skip
@_option("--cluster", default="home", help="Nodes of other clusters are left alone.")
@_option(
    "--broker",
    default="mqtt://127.0.0.1:1883",
    metavar="URL",
    callback=no_password,
    help="MQTT broker: mqtt://[user@]host[:port], mqtts:// for TLS, or none.",
)
@_option("--broker-ca", **BROKER_OPTIONS["--broker-ca"])
@_option("--broker-certificate", **BROKER_OPTIONS["--broker-certificate"])
@_option("--broker-username", **BROKER_OPTIONS["--broker-username"])
@_option("--broker-password-file", **BROKER_OPTIONS["--broker-password-file"])
@_option("--credentials", **CREDENTIALS_OPTION)
@_option(
    "--insecure", is_flag=True,
    help="Without credentials, link with everybody who reaches this node, unencrypted.",
)  # fmt: skip
@_option(
    "--listen",
    default="",
    show_default=False,
    metavar="HOST:PORT",
    help="Where links come in; port 0: any.  [default: any port, of all interfaces with "
    "credentials, of this machine without]",
)
@_option(
    "--peer",
    multiple=True,
    metavar="HOST:PORT",
    help="Dial this node; may be repeated.",
)
@_option("--mdns/--no-mdns", default=True, help="Find and be found by multicast.")
@_option(
    "--node-id",
    metavar="ID",
    help="Default: the name in the credentials; without any host, role and a random tail, which "
    "lasts.",
    show_default=False,
)
@_option(
    "--quantize", type=click.Choice(["none", "nf4", "int8"]), default="none",
    help="Quantise a drafter by bitsandbytes.",
)  # fmt: skip
@_option("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
@_option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto",
    help="auto: bfloat16 on a GPU and where a CPU multiplies it, else float32. The weights of a "
    "quantised GGUF file are rounded to bfloat16 by auto, and kept exactly by float32.",
)  # fmt: skip
@_option(
    "--weights", type=click.Choice(["auto", "bfloat16", "int8"]), default="auto",
    help="How linear layers are held on a CPU. int8: in blocks of 8 bits with a scale each, their "
    "inputs rounded to 8 bits, too: half the memory, and the quickest. bfloat16: as the model has "
    "them. auto: int8 for a quantised GGUF file where the processor multiplies bytes (VNNI), else "
    "bfloat16.",
)  # fmt: skip
@_option(
    "--exactness", type=click.Choice(["auto", "bitwise", "rounding"]), default="auto",
    help="What a target promises. bitwise: company, drafts and restarts never change an answer; "
    "needs a CPU, float32 or bfloat16, and a C++ compiler. rounding: greedy texts may part where "
    "two tokens are nearly tied. auto: bitwise where it can be had.",
)  # fmt: skip
@_option(
    "--threads",
    type=click.IntRange(0, 1024),
    default=0,
    help="CPU threads of each process; 0: all.",
)
@_option(
    "--cores",
    default="",
    metavar="LIST",
    help="Run on these processors only, as in 0,2-3.",
)
@_option("--slots", type=click.IntRange(1, 1024), default=8, help="Sequences in the cache.")
@_option(
    "--context",
    type=click.IntRange(0, 1 << 20),
    default=0,
    help="Tokens a sequence may have.",
)
@_option(
    "--ballast",
    type=click.IntRange(1, 256),
    default=1,
    help="Widen the target for testbeds.",
)
@_option(
    "--tensor-parallel",
    type=click.IntRange(1, 64),
    default=1,
    help="Processes (on GPUs: devices) that share the target.",
)
@_option(
    "--max-sessions",
    type=click.IntRange(1, 1024),
    default=8,
    help="Requests at one time.",
)
@_option(
    "--drain-timeout", type=click.FloatRange(0, 24 * 3600), default=DRAIN_TIMEOUT_S,
    metavar="SECONDS",
    help="After SIGTERM, how long what is at work may take to end; a second one stops now.",
)  # fmt: skip
@_option(
    "--stall-timeout", type=click.FloatRange(0.1, 24 * 3600), default=STALL_TIMEOUT_S,
    metavar="SECONDS", help="A target whose engine ends no pass for so long is unavailable.",
)  # fmt: skip
@_option(
    "--broker-keepalive", type=click.IntRange(1, 3600), default=KEEPALIVE_S, metavar="SECONDS",
    help="Silent for one and a half times this, a node is lost to its broker.",
)  # fmt: skip
@_option(
    "--state-dir", type=click.Path(file_okay=False, path_type=Path), show_default=False,
    metavar="DIR", help="Where a node keeps its name, the secret that names it to the broker and, "
    "of a target, the journal of its requests.  [default: of the cluster and the node, in the "
    "user's state directory]",
)  # fmt: skip
@_option(
    "--journal/--no-journal", default=True,
    help="Whether accepted requests outlive this process; prompts and answers are on disk then.",
)  # fmt: skip
@_option(
    "--keep-answers", type=click.IntRange(1, 30 * 86400), default=3600, metavar="SECONDS",
    help="How long answers are kept for those who ask again, and requests while we are away.",
)  # fmt: skip
@_option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info",
    help="How much to say.",
)  # fmt: skip
def command(config: Path | None, log_level: str, **options: Any) -> None:
    """Run one node until interrupted. SIGTERM lets it finish what is at work.

    A target serves --model and takes requests from the broker; its gateway lives in the same
    process. A drafter guesses ahead for the targets of its cluster that have the same vocabulary.
    """
    del config
    log_to_stderr(log_level)
    try:
        settings = node_config(**options)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    drain = Drain(settings.drain_timeout_s)
    run_command(run_node(settings, drain), drain.request)


def node_config(
    *, role: Role, node_id: str | None, peer: tuple[str, ...], cores: str, quantize: Quantize,
    max_sessions: int, slots: int, cluster: str, broker: str, credentials: str | None,
    insecure: bool, broker_ca: str | None, broker_certificate: Path | None, broker_username: str,
    broker_password_file: Path | None, drain_timeout: float, stall_timeout: float,
    state_dir: Path | None, journal: bool, **rest: Any,
) -> NodeConfig:  # fmt: skip
    """The command line's options as settings.

    Raises ConfigError.
    """
    ours = node_credentials(credentials, cluster)
    if node_id is None:
        node_id = Credentials.load(ours).identity.node_id if ours else None
    node_id, place = _who_and_where(
        role, str(rest["model"]), cluster, node_id, state_dir, has_journal=journal
    )
    access = broker_access(
        broker, ours, broker_ca=broker_ca, broker_certificate=broker_certificate,
        broker_username=broker_username, broker_password_file=broker_password_file,
    )  # fmt: skip
    return NodeConfig(
        role=role,
        node_id=node_id,
        cluster=cluster,
        broker=broker,
        broker_ca=access["ca_file"],
        broker_certificate=access["certificate_file"],
        broker_username=access["username"],
        broker_password=access["password"],
        credentials=ours,
        insecure=insecure,
        peers=tuple(peer),
        cores=parse_cores(cores),
        quantize=quantize,
        slots=slots,
        max_sessions=min(max_sessions, slots),
        drain_timeout_s=drain_timeout,
        stall_timeout_s=stall_timeout,
        state_dir=place if journal and role == "target" else None,
        identity_dir=place,
        **rest,
    )


def _who_and_where(
    role: Role, model: str, cluster: str, node_id: str | None, state_dir: Path | None, *,
    has_journal: bool,
) -> tuple[str, Path | None]:  # fmt: skip
    """A node's name, and the directory in which it keeps its state.

    Raises ConfigError.
    """
    drawn = _drawn_name(role)
    if role == "target" and has_journal:
        state_dir = state_dir or default_state(cluster, node_id or role)
        return node_id or lasting_name(state_dir, drawn), state_dir
    try:
        base = state_dir or default_state(cluster, node_id or "")
    except ConfigError:  # this user has no place for it
        return node_id or drawn, None
    if node_id is not None:
        return node_id, base
    place, name = lasting_place(base, f"{role}-{node_name(model)}", drawn)
    return name, place


def _drawn_name(role: Role) -> str:
    return f"{host_name()}-{role}-{secrets.token_hex(2)}"
