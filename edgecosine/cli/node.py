"""`edgecosine node`: runs one node in the foreground.

The default of an option, and the choices of a Literal, are taken from the setting that it sets.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from edgecosine.cli.access import (
    BROKER_OPTIONS,
    CREDENTIALS_OPTION,
    broker_access,
    environment_variable,
    no_password,
    node_credentials,
)
from edgecosine.cli.key import default_keys
from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.running import host_name, run_command
from edgecosine.cli.state import default_state, stored_name, unused_directory
from edgecosine.config import (
    DEFAULT_BROKER,
    CommitteeOptions,
    HttpOptions,
    LinkOptions,
    NodeConfig,
    NodeRole,
    StateOptions,
    parse_cores,
    read_file,
)
from edgecosine.engine.dialect import TOOL_FORMATS
from edgecosine.engine.options import LoadOptions
from edgecosine.errors import ConfigError
from edgecosine.local.cluster_plan import node_name
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.node import run_node
from edgecosine.node.runtime.drain import Drain
from edgecosine.protocol.wire.messages import MAX_LISTED
from edgecosine.security.credentials import Credentials

Command = TypeVar("Command", bound=Callable[..., Any] | click.Command)

_DAY_S: Final = 24 * 3600
_NONE: Final = "none"


def _from_file(ctx: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        known = {p.name for p in ctx.command.params if p.name and p.name != "config"}
        try:
            ctx.default_map = read_file(path, known)
        except ConfigError as error:
            raise click.UsageError(str(error), ctx) from error
    return path


def _option(name: str, **settings: Any) -> Callable[[Command], Command]:
    variable = environment_variable(name.partition("/")[0])
    settings = {"show_default": True, **settings}
    return click.option(name, envvar=variable, show_envvar=True, **settings)


def _setting(
    owner: type, field: str, help_text: str, name: str = "", **settings: Any
) -> Callable[[Command], Command]:
    """An option for the field of the settings class `owner`; its name is the field's by default."""
    default = next(one.default for one in fields(owner) if one.name == field)
    if "default" not in settings:
        settings |= {"required": True} if default is MISSING else {"default": default}
    choices = sorted(_literals(get_type_hints(owner)[field]), key=lambda value: value != "auto")
    if choices:
        settings["type"] = click.Choice(choices)
    return _option(name or f"--{field.replace('_', '-')}", help=help_text, **settings)


def _literals(hint: Any) -> Iterator[str]:
    """The values that a Literal, or a union of them, allows."""
    for part in get_args(hint):
        yield from [part] if get_origin(hint) is Literal else _literals(part)


@click.command("node")
@_option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    is_eager=True,
    callback=_from_file,
    help="TOML file with these options as keys.",
)
@_setting(
    NodeConfig,
    "role",
    "A target serves a model; a drafter drafts tokens "
    "for targets; a member gives its model's distributions to a target that leads a committee; a "
    "gateway serves HTTP for the targets of its broker, without a model.",
)
@_setting(
    LoadOptions,
    "model",
    "A name of `edgecosine model list`, a directory, a GGUF file, or a hub id; for a drafter also "
    "`ngram`, which needs no model. None for a gateway.",
    default="",
    show_default=False,
)
@_setting(
    LoadOptions,
    "gguf",
    "GGUF file in the directory or hub model of --model; the first file of a split model.",
    show_default=False,
    metavar="NAME",
)
@_setting(
    CommitteeOptions,
    "committee",
    "A member of the committee that this target leads, and its weight; may be repeated. The "
    "target's own model has the rest of 1.",
    multiple=True,
    show_default=False,
    metavar="NAME=WEIGHT",
)
@_setting(
    CommitteeOptions,
    "on_member_loss",
    "While a member is away: wait for it, or go on with the others; answers then say so.",
)
@_setting(
    CommitteeOptions,
    "listed",
    "Tokens that a member lists of each row at first; it is asked for more where they do not prove "
    "the draw.",
    "--committee-k",
    type=click.IntRange(1, MAX_LISTED),
)
@_setting(
    CommitteeOptions,
    "member",
    "Name of this member, which replicas share.  [default: the node's name]",
    show_default=False,
    metavar="NAME",
)
@_setting(
    CommitteeOptions,
    "weight",
    "Weight of this member, which the target checks; 0: as the target says.",
    type=click.FloatRange(0.0, 1.0),
)
@_setting(NodeConfig, "cluster", "Name of the cluster. Nodes of other clusters are ignored.")
@_option(
    "--broker",
    default=DEFAULT_BROKER,
    metavar="URL",
    callback=no_password,
    help="MQTT broker: mqtt://[user@]host[:port], or mqtts:// for TLS; `none`: a drafter without "
    "a broker.",
)
@_option("--broker-ca", **BROKER_OPTIONS["--broker-ca"])
@_option("--broker-certificate", **BROKER_OPTIONS["--broker-certificate"])
@_option("--broker-username", **BROKER_OPTIONS["--broker-username"])
@_option("--broker-password-file", **BROKER_OPTIONS["--broker-password-file"])
@_option("--credentials", **CREDENTIALS_OPTION)
@_setting(
    LinkOptions,
    "insecure",
    "Without credentials, accept unencrypted links from every machine that reaches this node.",
    is_flag=True,
)
@_setting(
    LinkOptions,
    "listen",
    "Address for incoming links; port 0: any free port.  [default: a free port, on all interfaces "
    "with credentials, on loopback without]",
    show_default=False,
    metavar="HOST:PORT",
)
@_setting(
    LinkOptions, "peers", "Node to connect to; may be repeated.", "--peer", multiple=True,
    metavar="HOST:PORT",
)  # fmt: skip
@_setting(
    LinkOptions, "mdns", "Discover nodes by multicast DNS, and announce this one.",
    "--mdns/--no-mdns",
)  # fmt: skip
@_option(
    "--http",
    default="none",
    metavar="HOST:PORT",
    help="Address of the OpenAI API over HTTP, of a target or gateway; `none`: requests "
    "come over MQTT alone.",
)
@_option(
    "--http-keys",
    type=click.Path(dir_okay=False, path_type=Path),
    show_default=False,
    metavar="FILE",
    help="Keys of clients over HTTP, written by `edgecosine key`; where it has keys, requests need "
    "one.  [default: the cluster's, in the user's configuration directory]",
)
@_option(
    "--http-certificate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Serve HTTPS with this certificate chain and its key, in PEM, as `edgecosine cluster "
    "http-certificate` writes it.",
)
@_option(
    "--http-cors",
    multiple=True,
    metavar="ORIGIN",
    help="Origin of web pages that may ask, for example https://chat.example; may be repeated.",
)
@_option(
    "--node-id",
    metavar="ID",
    help="Name of the node.  [default: the name in the credentials; without credentials host name, "
    "role and a random suffix, stored in --state-dir]",
    show_default=False,
)
@_setting(
    NodeConfig,
    "tool_format",
    "Format of a target's tool calls. auto: as its chat template implies.",
    type=click.Choice(["auto", *TOOL_FORMATS]),
)
@_setting(LoadOptions, "quantize", "Quantise a drafter with bitsandbytes.")
@_setting(LoadOptions, "device", "auto, cpu, cuda, cuda:1, …")
@_setting(
    LoadOptions,
    "dtype",
    "Computation type. auto: bfloat16 on a GPU and on a CPU with bfloat16 instructions, else "
    "float32. The weights of a quantised GGUF file are rounded to bfloat16 by auto, and kept "
    "exactly by float32.",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
)
@_setting(
    LoadOptions,
    "weights",
    "Format of linear layers on a CPU. int8: blocks of 8-bit weights with a scale each, inputs "
    "rounded to 8 bits; half the memory of bfloat16, and faster. int4: the same with 4 bits, and 8 "
    "in the output layer. bfloat16: as in the model. auto: as in a quantised GGUF file (5 and 6 "
    "bits become 8) on a processor with AVX2, else bfloat16.",
)
@_setting(
    LoadOptions,
    "exactness",
    "Guarantee of a target. bitwise: co-batched requests, drafts and restarts never change an "
    "answer; needs a CPU, float32 or bfloat16, and a C++ compiler. rounding: greedy texts may "
    "diverge where two tokens are nearly tied. auto: bitwise if possible.",
)
@_setting(
    LoadOptions, "threads", "CPU threads of each process; 0: all.", type=click.IntRange(0, 1024)
)
@_option(
    "--cores", default="", metavar="LIST", help="Run only on these processors, for example 0,2-3."
)
@_setting(LoadOptions, "slots", "Sequences in the KV cache.", type=click.IntRange(1, 1024))
@_setting(
    LoadOptions,
    "context",
    "Maximum tokens of a sequence; 0: as many as model and memory allow.",
    type=click.IntRange(0, 1 << 20),
)
@_setting(
    LoadOptions,
    "ballast",
    "Widen the target by this factor, for benchmarks.",
    type=click.IntRange(1, 256),
)
@_setting(
    LoadOptions,
    "tensor_parallel",
    "Number of processes (on GPUs: of devices) that share the target's layers.",
    type=click.IntRange(1, 64),
)
@_setting(
    NodeConfig,
    "max_sessions",
    "Maximum concurrent requests; at most --slots.",
    type=click.IntRange(1, 1024),
)
@_setting(
    NodeConfig,
    "max_queued",
    "Requests that wait at a target, half of them of one client; more are refused.",
    type=click.IntRange(1, 65536),
)
@_setting(
    NodeConfig,
    "drain_timeout_s",
    "Time for running requests to finish after SIGTERM; a second SIGTERM stops at once.",
    "--drain-timeout",
    type=click.FloatRange(0, _DAY_S),
    metavar="SECONDS",
)
@_setting(
    NodeConfig,
    "stall_timeout_s",
    "A target is reported unavailable when its engine finishes no forward pass for this long.",
    "--stall-timeout",
    type=click.FloatRange(0.1, _DAY_S),
    metavar="SECONDS",
)
@_setting(
    BrokerAddress,
    "keepalive_s",
    "MQTT keepalive; the broker declares the node offline after 1.5 times this.",
    "--broker-keepalive",
    type=click.IntRange(1, 3600),
    metavar="SECONDS",
)
@_setting(
    NodeConfig,
    "home_assistant",
    "Announce this node, and a target also its cluster, as devices of Home Assistant at the same "
    "broker.",
    "--home-assistant/--no-home-assistant",
)
@_option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    show_default=False,
    metavar="DIR",
    help="Directory of the node's name, the secret for its MQTT client ids and, for a target, the "
    "journal.  [default: one per cluster and node, in the user's state directory]",
)
@_option(
    "--journal/--no-journal",
    default=True,
    help="Keep accepted requests over a restart; the journal contains prompts and answers.",
)
@_setting(
    StateOptions,
    "keep_answers",
    "How long answers are kept for repeated requests, and how long the broker keeps requests for "
    "this node.",
    type=click.IntRange(1, 30 * 86400),
    metavar="SECONDS",
)
@_option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="Lowest level of log lines.",
)
def command(config: Path | None, log_level: str, **options: Any) -> None:
    """Run one node until interrupted. After SIGTERM running requests finish first.

    A target serves --model and receives requests from the broker; its gateway runs in the same
    process. A drafter drafts tokens for the targets of its cluster that have the same vocabulary.
    """
    del config
    log_to_stderr(log_level)
    try:
        settings = node_config(**options)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    drain = Drain(settings.drain_timeout_s)
    run_command(run_node(settings, drain), drain.request)


def node_config(**options: Any) -> NodeConfig:
    """The settings of the command line's options, which are given by parameter name.

    Raises ConfigError.
    """
    role: NodeRole = options["role"]
    credentials = node_credentials(options["credentials"], options["cluster"])
    given_id = options["node_id"]
    if given_id is None and credentials is not None:
        given_id = Credentials.load(credentials).identity.node_id
    node_id, directory = _name_and_directory(given_id, options)
    cores = parse_cores(options["cores"])
    engine = LoadOptions(**{one.name: options[one.name] for one in fields(LoadOptions)})
    return NodeConfig(
        role=role,
        node_id=node_id,
        engine=replace(engine, threads=engine.threads or len(cores)),
        cluster=options["cluster"],
        broker=_broker_address(credentials, options),
        links=LinkOptions(
            listen=options["listen"],
            credentials=credentials,
            insecure=options["insecure"],
            peers=tuple(options["peer"]),
            mdns=options["mdns"],
        ),
        state=StateOptions(
            journal_dir=directory if options["journal"] and role == "target" else None,
            identity_dir=directory,
            keep_answers=options["keep_answers"],
        ),
        committee=CommitteeOptions(
            committee=tuple(options["committee"]),
            on_member_loss=options["on_member_loss"],
            listed=options["committee_k"],
            member=options["member"] or (node_id if role == "member" else ""),
            weight=options["weight"],
        ),
        http=_http_options(options),
        cores=cores,
        home_assistant=options["home_assistant"],
        max_sessions=min(options["max_sessions"], engine.slots),
        max_queued=options["max_queued"],
        drain_timeout_s=options["drain_timeout"],
        stall_timeout_s=options["stall_timeout"],
        tool_format=options["tool_format"],
    )


def _http_options(options: dict[str, Any]) -> HttpOptions:
    if options["http"] == _NONE:
        return HttpOptions()
    return HttpOptions(
        listen=options["http"],
        keys=options["http_keys"] or default_keys(options["cluster"]),
        certificate=options["http_certificate"],
        cors=tuple(options["http_cors"]),
    )


def _broker_address(credentials: Path | None, options: dict[str, Any]) -> BrokerAddress | None:
    url = options["broker"]
    if url == _NONE:
        return None
    access = broker_access(
        url,
        credentials,
        broker_ca=options["broker_ca"],
        broker_certificate=options["broker_certificate"],
        broker_username=options["broker_username"],
        broker_password_file=options["broker_password_file"],
    )
    return BrokerAddress.parse(url, keepalive_s=options["broker_keepalive"], **access)


def _name_and_directory(node_id: str | None, options: dict[str, Any]) -> tuple[str, Path | None]:
    """The node's name, and its state directory; None when no directory can be used.

    Raises ConfigError.
    """
    kind = f"{options['role']}-{node_name(options['model'])}" if options["model"] else "gateway"
    role, cluster, state_dir = options["role"], options["cluster"], options["state_dir"]
    fresh = f"{host_name()}-{role}-{secrets.token_hex(2)}"
    if role == "target" and options["journal"]:
        state_dir = state_dir or default_state(cluster, node_id or role)
        return node_id or stored_name(state_dir, fresh), state_dir
    try:
        base = state_dir or default_state(cluster, node_id or "")
    except ConfigError:
        return node_id or fresh, None
    if node_id is not None:
        return node_id, base
    directory, name = unused_directory(base, kind, fresh)
    return name, directory
