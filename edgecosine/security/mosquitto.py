"""A Mosquitto configuration with minimal rights for each user.

Two listeners: clients have a password each, nodes the certificate of the cluster's authority.
Rights by topic:

client   sends and cancels requests, reads its own answers and the cluster's public topics
drafter  publishes its own status and state
target   all topics of its cluster, since its gateway answers all clients
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import pwd
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgecosine.errors import ConfigError
from edgecosine.protocol.api import home_assistant
from edgecosine.protocol.api.topics import REQUEST_KINDS, Topics, is_identifier
from edgecosine.security.certificates import ENROLMENT_NAME
from edgecosine.security.files import check_unshared, make_private_directory, write_private

CLIENT_PORT: Final = 8883
NODE_PORT: Final = 8884
_HOST: Final = re.compile(r"[A-Za-z0-9_.:-]{1,253}", re.ASCII)
_MAIN: Final = "mosquitto.conf"
_PASSWORDS: Final = "passwords"
_ITERATIONS: Final = 101
"""Mosquitto's default; it suffices for random passwords of 128 bits."""
_MARK: Final = "# Made by `edgecosine cluster broker-config`"
_ACCOUNTS: Final = ("mosquitto", "nobody")
"""Users to which Mosquitto switches when root starts it: the first that exists."""
_CONFIGURATION: Final = (
    _MARK
    + """, which may be run again to add clients or targets, to
# renew the broker's certificate and its list of revoked certificates.
# Start: mosquitto -c {directory}/mosquitto.conf
# The user that Mosquitto runs as must be able to read this directory and to write into it, and
# nobody else should be.
per_listener_settings true
max_packet_size 1048576
max_queued_messages 10000
# Requests that come while the target restarts wait for it, also when this broker restarts.
persistence true
persistence_location {directory}/
autosave_interval 60
persistent_client_expiration 1d

# People and tools, each with a password of its own.
listener {client_port}
certfile {directory}/broker.pem
keyfile {directory}/broker.key
tls_version tlsv1.3
allow_anonymous false
password_file {directory}/passwords
acl_file {directory}/clients.acl

# Nodes, each with its certificate, whose common name is the node's name.
listener {node_port}
certfile {directory}/broker.pem
keyfile {directory}/broker.key
cafile {directory}/authorities.pem
crlfile {directory}/revoked.pem
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file {directory}/nodes.acl
"""
)


@dataclass(frozen=True, slots=True)
class BrokerFiles:
    """The inputs of a configuration; PEM texts.

    targets  node ids
    clients  client ids
    """

    topics: Topics
    key: str
    chain: str
    authorities: str
    revoked: str
    targets: Sequence[str]
    clients: Sequence[str]
    client_port: int = CLIENT_PORT
    node_port: int = NODE_PORT


def check_host(host: str) -> str:
    """Return `host` if a broker's certificate may name it.

    Raises ConfigError.
    """
    if not _HOST.fullmatch(host) or host == ENROLMENT_NAME:
        raise ConfigError("host", host, "a host name or a numeric address of the broker")
    return host


def write_configuration(directory: Path, files: BrokerFiles) -> dict[str, str]:
    """Write the configuration; returns the passwords of new clients, by name.

    Existing clients keep their passwords. Files that root writes belong to Mosquitto's user. Raises
    ConfigError for a client's name that cannot be a level of a topic, and for a directory with
    foreign files.
    """
    for name in files.clients:
        if not is_identifier(name):
            raise ConfigError("client", name, "1 to 64 letters, digits, '_', '.' or '-'")
    _check_ours(directory)
    account = broker_account()
    owner = (account.pw_uid, account.pw_gid) if account else None
    make_private_directory(directory, owner)
    known = _read_passwords(directory / _PASSWORDS)
    new = {name: secrets.token_urlsafe(16) for name in files.clients if name not in known}
    known |= {name: hash_password(password) for name, password in new.items()}
    contents = {
        # Written first, since it marks the directory as ours.
        _MAIN: _CONFIGURATION.format(
            directory=directory.absolute(),
            client_port=files.client_port,
            node_port=files.node_port,
        ),
        "broker.key": files.key,
        "broker.pem": files.chain,
        "authorities.pem": files.authorities,
        "revoked.pem": files.revoked,
        _PASSWORDS: "".join(f"{n}:{h}\n" for n, h in known.items()),
        "clients.acl": client_rules(files.topics, list(known)),
        "nodes.acl": node_rules(files.topics, files.targets),
    }
    for name, text in contents.items():
        write_private(directory / name, text, owner)
    return new


def broker_account() -> pwd.struct_passwd | None:
    """The user to which Mosquitto switches; None if it keeps the current one."""
    if os.geteuid() != 0:
        return None
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return None


def closed_to(account: pwd.struct_passwd, directory: Path) -> Path | None:
    """The first directory on the path whose mode denies the user access; None if there is none."""
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    for place in (*reversed(directory.absolute().parents), directory):
        status = place.stat()
        shift = 6 if status.st_uid == account.pw_uid else 3 if status.st_gid in groups else 0
        wanted = os.X_OK | os.W_OK if place == directory else os.X_OK
        if (status.st_mode >> shift) & wanted != wanted:
            return place
    return None


def _check_ours(directory: Path) -> None:
    if not directory.is_dir() or _is_marked(directory / _MAIN):
        return
    check_unshared(directory, "directory")
    if foreign := next(directory.iterdir(), None):
        raise ConfigError(
            "directory", str(directory), "one that this command wrote, an empty or a new one; "
            f"{foreign.name} is not from here, and was left as it is",
        )  # fmt: skip


def _is_marked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_MARK)) == _MARK.encode()
    except FileNotFoundError:
        return False


def client_rules(topics: Topics, clients: Sequence[str]) -> str:
    """What each client may read and write, as an ACL file.

    States of requests are excluded, since they contain ids of other clients' requests.
    """
    return "\n".join(_client_rules(topics, name) for name in clients)


def node_rules(topics: Topics, targets: Sequence[str]) -> str:
    """What nodes may read and write, as an ACL file: targets by name, drafters by pattern.

    A node may announce itself to Home Assistant, and a target may announce and clear all devices of
    its cluster.
    """
    rules = [
        f"pattern readwrite {topics.root}/node/%u/#\n"
        f"pattern readwrite {home_assistant.node_topic(topics, '%u')}\n"
        f"pattern read {home_assistant.STATUS_TOPIC}\n"
    ]
    rules += [
        f"user {name}\ntopic readwrite {topics.root}/#\n"
        f"topic readwrite {home_assistant.root(topics)}/#\n"
        for name in targets
    ]
    return "\n".join(rules)


def hash_password(password: str) -> str:
    """A password in Mosquitto's file format: PBKDF2 with SHA-512 and a salt, format 7."""
    salt = secrets.token_bytes(12)
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


def _client_rules(topics: Topics, name: str) -> str:
    lines = [f"user {name}"]
    lines += [f"topic write {topics.request(kind)}" for kind in REQUEST_KINDS]
    lines += [f"topic write {topics.cancels}", f"topic write {topics.client_status(name)}"]
    lines += [
        f"topic read {topic}"
        for topic in (
            topics.status,
            topics.info,
            topics.node_status("+"),
            topics.node_state("+"),
            topics.stream(name, "+"),
        )
    ]
    # A client sends itself a message, which arrives after all retained ones.
    lines += [f"topic readwrite {topics.response(name, '#')}"]
    return "\n".join(lines) + "\n"


def _read_passwords(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    pairs = (line.partition(":") for line in path.read_text().splitlines() if ":" in line)
    return {name: known for name, _, known in pairs}
