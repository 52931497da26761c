"""Options for a broker and for credentials.

Passwords come from a file or from the environment, never from the command line, which every user of
the machine can read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from edgecosine.errors import ConfigError
from edgecosine.mqtt.broker_address import BrokerAddress, holds_password, without_password
from edgecosine.protocol.api.topics import Topics
from edgecosine.security.credentials import Credentials
from edgecosine.security.files import default_credentials

PASSWORD_VARIABLE: Final = "EDGECOSINE_BROKER_PASSWORD"  # noqa: S105 -- a variable's name
NO_CREDENTIALS: Final = "none"
SYSTEM: Final = "system"
MAX_PASSWORD_BYTES: Final = 4096

BROKER_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "--broker-ca": {
        "metavar": "FILE",
        "help": "Trusted CA certificates for mqtts://; `system`: the system's.  [default: the "
        "cluster's authority with credentials, else the system's]",
    },
    "--broker-certificate": {
        "type": click.Path(exists=True, dir_okay=False, path_type=Path),
        "help": "Client certificate and key for mqtts://, PEM.  [default: the node's credentials]",
    },
    "--broker-username": {"metavar": "NAME", "default": "", "help": "Username at the broker."},
    "--broker-password-file": {
        "type": click.Path(exists=True, dir_okay=False, path_type=Path),
        "help": f"File with the password in its first line; or set {PASSWORD_VARIABLE}.",
    },
}
CREDENTIALS_OPTION: Final[dict[str, Any]] = {
    "metavar": "DIR",
    "help": "Directory written by `edgecosine cluster join`; `none`: no credentials.  [default: in "
    "the configuration directory, if there are any]",
}


def no_password(ctx: click.Context, parameter: click.Parameter, url: str | None) -> str | None:
    """Refuse a URL with a password on the command line, where other users can read it."""
    assert parameter.name is not None
    is_open = ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    if url and is_open and holds_password(url):
        has_file = any("--broker-password-file" in one.opts for one in ctx.command.params)
        raise click.BadParameter(
            f"{without_password(url)} contains a password, and every user of this machine can read "
            f"the command line: write {without_password(url, '')} and set {PASSWORD_VARIABLE}"
            + ", or use --broker-password-file" * has_file, ctx, parameter,
        )  # fmt: skip
    return url


def broker_access(
    broker: str,
    credentials: Path | None,
    *,
    broker_ca: str | None,
    broker_certificate: Path | None,
    broker_username: str,
    broker_password_file: Path | None,
) -> dict[str, Any]:
    """Arguments of `BrokerAddress.parse` besides the URL.

    Raises ConfigError.
    """
    ca_file = None if broker_ca in (None, SYSTEM) else Path(str(broker_ca))
    certificate_file = broker_certificate
    if broker.startswith("mqtts:") and credentials is not None and broker_ca is None:
        known = Credentials.load(credentials)
        ca_file = known.authorities_file
        certificate_file = broker_certificate or known.node_file
    return {
        "username": broker_username,
        "password": _password(broker_password_file),
        "ca_file": ca_file,
        "certificate_file": certificate_file,
    }


def environment_access(broker: str) -> BrokerAddress:
    """The address of a broker; its access options are read from the environment, as in nodes.

    Raises ConfigError.
    """
    given = {name: os.environ.get(environment_variable(name)) for name in BROKER_OPTIONS}
    certificate, password = given["--broker-certificate"], given["--broker-password-file"]
    access = broker_access(
        broker, None, broker_ca=given["--broker-ca"] or None,
        broker_certificate=Path(certificate) if certificate else None,
        broker_username=given["--broker-username"] or "",
        broker_password_file=Path(password) if password else None,
    )  # fmt: skip
    return BrokerAddress.parse(broker, **access)


def environment_variable(name: str) -> str:
    """Name of an option's environment variable."""
    return "EDGECOSINE_" + name.removeprefix("--").replace("-", "_").upper()


def node_credentials(given: str | None, cluster: str) -> Path | None:
    """The directory of a node's credentials; None without credentials.

    Raises ConfigError when the directory `given` has none, and for an invalid cluster name.
    """
    Topics(cluster)
    if given == NO_CREDENTIALS:
        return None
    directory = Path(given) if given else default_credentials(cluster)
    if directory is not None and Credentials.are_in(directory):
        return directory
    if given:
        raise ConfigError("credentials", given, "a directory that `edgecosine cluster join` wrote")
    return None


def _password(file: Path | None) -> str:
    if file is None:
        return os.environ.get(PASSWORD_VARIABLE, "")
    try:
        with file.open(encoding="utf-8") as lines:
            return lines.readline(MAX_PASSWORD_BYTES).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("broker_password_file", str(file), f"a text file ({error})") from error
