"""The options of `edgecosine node`, in the groups that its help shows."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from edgecosine.cli.access import BROKER_OPTIONS, CREDENTIALS_OPTION, no_password
from edgecosine.cli.options import option, setting
from edgecosine.config import (
    DEFAULT_BROKER,
    CommitteeOptions,
    LinkOptions,
    NodeConfig,
    StateOptions,
    read_file,
)
from edgecosine.engine.dialect import TOOL_FORMATS
from edgecosine.engine.options import LoadOptions
from edgecosine.errors import ConfigError
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.protocol.wire.messages import MAX_LISTED

_DAY_S: Final = 24 * 3600


def _from_file(ctx: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    if path is not None:
        known = {p.name for p in ctx.command.params if p.name and p.name != "config"}
        try:
            ctx.default_map = read_file(path, known)
        except ConfigError as error:
            raise click.UsageError(str(error), ctx) from error
    return path


_NODE: Final = [
    setting(
        NodeConfig,
        "role",
        "A target serves a model; a drafter drafts tokens for targets; a member gives its model's "
        "distributions to a target that leads a committee; a gateway serves HTTP for the targets "
        "of its broker, without a model.",
    ),
    setting(NodeConfig, "cluster", "Name of the cluster. Nodes of other clusters are ignored."),
    option(
        "--node-id",
        metavar="ID",
        help="Name of the node.  [default: the name in the credentials; without credentials host "
        "name, role and a random suffix, stored in --state-dir]",
        show_default=False,
    ),
    option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        callback=_from_file,
        help="TOML file with these options as keys.",
    ),
    option(
        "--state-dir",
        type=click.Path(file_okay=False, path_type=Path),
        show_default=False,
        metavar="DIR",
        help="Directory of the node's name, the secret for its MQTT client ids and, for a target, "
        "the journal.  [default: one per cluster and node, in the user's state directory]",
    ),
    option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        help="Lowest level of log lines.",
    ),
    setting(
        NodeConfig,
        "drain_timeout_s",
        "Time for running requests to finish after SIGTERM; a second SIGTERM stops at once.",
        "--drain-timeout",
        type=click.FloatRange(0, _DAY_S),
        metavar="SECONDS",
    ),
    setting(
        NodeConfig,
        "stall_timeout_s",
        "A target is reported unavailable when its engine finishes no forward pass for this long.",
        "--stall-timeout",
        type=click.FloatRange(0.1, _DAY_S),
        metavar="SECONDS",
    ),
    setting(
        NodeConfig,
        "home_assistant",
        "Announce this node, and a target also its cluster, as devices of Home Assistant at the "
        "same broker.",
        "--home-assistant/--no-home-assistant",
    ),
]
_MODEL: Final = [
    setting(
        LoadOptions,
        "model",
        "A name of `edgecosine model list`, a directory, a GGUF file, or a hub id; for a drafter "
        "also `ngram`, which needs no model. None for a gateway.",
        default="",
        show_default=False,
    ),
    setting(
        LoadOptions,
        "gguf",
        "GGUF file in the directory or hub model of --model; the first file of a split model.",
        show_default=False,
        metavar="NAME",
    ),
    setting(LoadOptions, "quantize", "Quantise a drafter with bitsandbytes."),
    setting(LoadOptions, "device", "auto, cpu, cuda, cuda:1, …"),
    setting(
        LoadOptions,
        "dtype",
        "Computation type. auto: bfloat16 on a GPU and on a CPU with bfloat16 instructions, else "
        "float32. The weights of a quantised GGUF file are rounded to bfloat16 by auto, and kept "
        "exactly by float32.",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    ),
    setting(
        LoadOptions,
        "weights",
        "Format of linear layers on a CPU. int8: blocks of 8-bit weights with a scale each, inputs "
        "rounded to 8 bits; half the memory of bfloat16, and faster. int4: the same with 4 bits, "
        "and 8 in the output layer. bfloat16: as in the model. auto: as in a quantised GGUF file "
        "(5 and 6 bits become 8) on a processor with AVX2, else bfloat16.",
    ),
    setting(
        LoadOptions,
        "kv_dtype",
        "Number format of the KV cache. int8: integers of 8 bits with a scale for each token and "
        "head, about a quarter of float32; a target's text is then that of a model with this "
        "cache. auto: float32 for families that run as one call on a CPU, else the computation "
        "type.",
    ),
    setting(
        LoadOptions,
        "exactness",
        "Guarantee of a target. bitwise: co-batched requests, drafts and restarts never change an "
        "answer; needs a CPU, float32 or bfloat16, and a C++ compiler. rounding: greedy texts may "
        "diverge where two tokens are nearly tied. auto: bitwise if possible.",
    ),
    setting(LoadOptions, "slots", "Sequences in the KV cache.", type=click.IntRange(1, 1024)),
    setting(
        LoadOptions,
        "context",
        "Maximum tokens of a sequence; 0: as many as model and memory allow.",
        type=click.IntRange(0, 1 << 20),
    ),
    setting(
        LoadOptions,
        "ballast",
        "Widen the target by this factor, for benchmarks.",
        type=click.IntRange(1, 256),
    ),
    setting(
        LoadOptions,
        "tensor_parallel",
        "Number of processes (on GPUs: of devices) that share the target's layers.",
        type=click.IntRange(1, 64),
    ),
    setting(
        NodeConfig,
        "tool_format",
        "Format of a target's tool calls. auto: as its chat template implies.",
        type=click.Choice(["auto", *TOOL_FORMATS]),
    ),
]
_PROCESSORS: Final = [
    setting(
        LoadOptions, "threads", "CPU threads of each process; 0: all.", type=click.IntRange(0, 1024)
    ),
    option(
        "--cores",
        default="",
        metavar="LIST",
        help="Run only on these processors, for example 0,2-3.",
    ),
]
_BROKER: Final = [
    option(
        "--broker",
        default=DEFAULT_BROKER,
        metavar="URL",
        callback=no_password,
        help="MQTT broker: mqtt://[user@]host[:port], or mqtts:// for TLS; `none`: a drafter "
        "without a broker.",
    ),
    option("--broker-ca", **BROKER_OPTIONS["--broker-ca"]),
    option("--broker-certificate", **BROKER_OPTIONS["--broker-certificate"]),
    option("--broker-username", **BROKER_OPTIONS["--broker-username"]),
    option("--broker-password-file", **BROKER_OPTIONS["--broker-password-file"]),
    setting(
        BrokerAddress,
        "keepalive_s",
        "MQTT keepalive; the broker declares the node offline after 1.5 times this.",
        "--broker-keepalive",
        type=click.IntRange(1, 3600),
        metavar="SECONDS",
    ),
    option("--credentials", **CREDENTIALS_OPTION),
]
_LINKS: Final = [
    setting(
        LinkOptions,
        "insecure",
        "Without credentials, accept unencrypted links from every machine that reaches this node.",
        is_flag=True,
    ),
    setting(
        LinkOptions,
        "listen",
        "Address for incoming links; port 0: any free port.  [default: a free port, on all "
        "interfaces with credentials, on loopback without]",
        show_default=False,
        metavar="HOST:PORT",
    ),
    setting(
        LinkOptions,
        "peers",
        "Node to connect to; may be repeated.",
        "--peer",
        multiple=True,
        metavar="HOST:PORT",
    ),
    setting(
        LinkOptions,
        "mdns",
        "Discover nodes by multicast DNS, and announce this one.",
        "--mdns/--no-mdns",
    ),
]
_REQUESTS: Final = [
    setting(
        NodeConfig,
        "max_sessions",
        "Maximum concurrent requests; at most --slots.",
        type=click.IntRange(1, 1024),
    ),
    setting(
        NodeConfig,
        "max_queued",
        "Requests that wait at a target, half of them of one client; more are refused.",
        type=click.IntRange(1, 65536),
    ),
    option(
        "--journal/--no-journal",
        default=True,
        help="Keep accepted requests over a restart; the journal contains prompts and answers.",
    ),
    setting(
        StateOptions,
        "keep_answers",
        "How long answers are kept for repeated requests, and how long the broker keeps requests "
        "for this node.",
        type=click.IntRange(1, 30 * 86400),
        metavar="SECONDS",
    ),
]
_HTTP: Final = [
    option(
        "--http",
        default="none",
        metavar="HOST:PORT",
        help="Address of the OpenAI API over HTTP, of a target or gateway; `none`: requests come "
        "over MQTT alone.",
    ),
    option(
        "--http-keys",
        type=click.Path(dir_okay=False, path_type=Path),
        show_default=False,
        metavar="FILE",
        help="Keys of clients over HTTP, written by `edgecosine key`; where it has keys, requests "
        "need one.  [default: the cluster's, in the user's configuration directory]",
    ),
    option(
        "--http-certificate",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Serve HTTPS with this certificate chain and its key, in PEM, as `edgecosine cluster "
        "http-certificate` writes it.",
    ),
    option(
        "--http-cors",
        multiple=True,
        metavar="ORIGIN",
        help="Origin of web pages that may send requests, for example https://chat.example; may be "
        "repeated.",
    ),
]
_COMMITTEE: Final = [
    setting(
        CommitteeOptions,
        "committee",
        "A member of the committee that this target leads, and its weight; may be repeated. The "
        "target's own model has the rest of 1. Where there is no rest, the target needs no memory "
        "for weights: of --model it loads the tokenizer and the chat template.",
        multiple=True,
        show_default=False,
        metavar="NAME=WEIGHT",
    ),
    setting(
        CommitteeOptions,
        "on_member_loss",
        "While a member is away: wait for it, or go on with the others; answers then say so.",
    ),
    setting(
        CommitteeOptions,
        "listed",
        "Tokens that a member lists of each row at first; it is asked for more where they do not "
        "prove the draw.",
        "--committee-k",
        type=click.IntRange(1, MAX_LISTED),
    ),
    setting(
        CommitteeOptions,
        "member",
        "Name of this member, which replicas share.  [default: the node's name]",
        show_default=False,
        metavar="NAME",
    ),
    setting(
        CommitteeOptions,
        "weight",
        "Weight of this member, which the target checks; 0: as the target says.",
        type=click.FloatRange(0.0, 1.0),
    ),
]
NODE_OPTIONS: Final = {
    "Node": _NODE,
    "Model": _MODEL,
    "Processors": _PROCESSORS,
    "Broker and credentials": _BROKER,
    "Links to other nodes": _LINKS,
    "Requests": _REQUESTS,
    "HTTP": _HTTP,
    "Committee": _COMMITTEE,
}
