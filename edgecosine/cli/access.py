"""How commands come to credentials: options for files and names. Passwords come from a file or from
the environment, never from the command line, which everybody on the machine can read.
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
        "help": "Whose certificates to believe at mqtts://; `system`: the system's.  [default: the "
        "cluster's authority where there are credentials, else the system's]",
    },
    "--broker-certificate": {
        "type": click.Path(exists=True, dir_okay=False, path_type=Path),
        "help": "Our certificate and key for mqtts://, PEM.  [default: the node's credentials]",
    },
    "--broker-username": {"metavar": "NAME", "default": "", "help": "Who we are to the broker."},
    "--broker-password-file": {
        "type": click.Path(exists=True, dir_okay=False, path_type=Path),
        "help": f"Its first line is the password; or set {PASSWORD_VARIABLE}.",
    },
}
CREDENTIALS_OPTION: Final[dict[str, Any]] = {
    "metavar": "DIR",
    "help": "What `edgecosine cluster join` wrote; `none`: use none.  [default: the configuration "
    "directory's, if there are any]",
}


def no_password(ctx: click.Context, parameter: click.Parameter, url: str | None) -> str | None:
    """Refuse a broker's URL with a password in it where others can read it."""
    assert parameter.name is not None
    is_open = ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    if url and is_open and holds_password(url):
        raise click.BadParameter(
            f"{without_password(url)} has a password, and everybody on this machine can read the "
            f"command line: write {without_password(url, '')} and set {PASSWORD_VARIABLE}, or give "
            "--broker-password-file", ctx, parameter,
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
    """What `BrokerAddress.parse` takes beside the URL.

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
    """A broker with what the environment says of the way in, as nodes read it, too.

    Raises ConfigError.
    """
    told = {name: os.environ.get(environment_variable(name)) for name in BROKER_OPTIONS}
    certificate, password = told["--broker-certificate"], told["--broker-password-file"]
    access = broker_access(
        broker, None, broker_ca=told["--broker-ca"] or None,
        broker_certificate=Path(certificate) if certificate else None,
        broker_username=told["--broker-username"] or "",
        broker_password_file=Path(password) if password else None,
    )  # fmt: skip
    return BrokerAddress.parse(broker, **access)


def environment_variable(name: str) -> str:
    """Where an option can be set in the environment."""
    return "EDGECOSINE_" + name.removeprefix("--").replace("-", "_").upper()


def node_credentials(given: str | None, cluster: str) -> Path | None:
    """Where a node's credentials lie, if there are any.

    Raises ConfigError when there are none where they were said to be, and for a cluster's name that
    is none.
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
