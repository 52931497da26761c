"""`edgecosine node`: runs one node in the foreground."""

from __future__ import annotations

import secrets
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import click

from edgecosine.cli.access import (
    broker_access,
    node_credentials,
)
from edgecosine.cli.key import default_keys
from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.node_options import NODE_OPTIONS
from edgecosine.cli.options import GroupedCommand
from edgecosine.cli.running import host_name, run_command
from edgecosine.cli.state import default_state, stored_name, unused_directory
from edgecosine.config import (
    CommitteeOptions,
    HttpOptions,
    LinkOptions,
    NodeConfig,
    NodeRole,
    StateOptions,
    parse_cores,
)
from edgecosine.engine.options import LoadOptions
from edgecosine.errors import ConfigError
from edgecosine.local.cluster_plan import node_name
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.node import run_node
from edgecosine.node.runtime.drain import Drain
from edgecosine.security.credentials import Credentials

_NONE: Final = "none"


@click.command("node", cls=GroupedCommand, groups=NODE_OPTIONS)
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
