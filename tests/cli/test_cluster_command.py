"""`edgecosine cluster`, and the effect of its credentials on `edgecosine node`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgecosine.cli import main
from edgecosine.config import NodeConfig
from edgecosine.errors import ConfigError
from edgecosine.mqtt.broker_address import BrokerAddress
from edgecosine.node.credentials.membership import Membership
from edgecosine.security.credentials import Credentials
from edgecosine.security.join_token import read_token
from tests.cli.test_node_command import settings

WANTED = ["--role", "drafter", "--model", "ngram"]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directory of this user's credentials for the cluster `home`."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "edgecosine" / "home"


def cluster(*words: str, env: Mapping[str, str] | None = None) -> str:
    result = CliRunner(env=dict(env or {})).invoke(main, ["cluster", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*words: str) -> str:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def test_init_makes_this_machine_the_first_member(directory: Path) -> None:
    cluster("init", "--node-id", "big")
    assert Credentials.load(directory).identity.uri == "urn:edgecosine:node:home:target:big"
    [member] = json.loads(cluster("list", "--json"))
    assert (member["node"], member["role"], member["is"]) == ("big", "target", "in")
    assert "left as they are" in refusal("cluster", "init")


def test_invitation_contains_fingerprint_and_addresses_of_the_authority() -> None:
    cluster("init")
    token = read_token(cluster("invite", "--address", "big.lan:7412", "--ttl", "90s"))
    assert token.addresses == ["big.lan:7412"]
    assert token.cluster == "home"
    own = read_token(cluster("invite"))
    assert own.fingerprint == token.fingerprint
    assert own.secret != token.secret
    assert own.addresses
    assert all(address.endswith(":7412") for address in own.addresses)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("invite",), "edgecosine cluster init"),
        (("revoke", "kitchen"), "edgecosine cluster init"),
        (("join", "ecs1-xyz"), "edgecosine cluster invite"),
        (("join", "hello"), "edgecosine cluster invite"),
        (("renew",), "edgecosine cluster join"),
        (("--cluster", "a/b", "init"), "cluster = 'a/b'"),
        (("--credentials", "none", "init"), "the directory that this command manages"),
        (("init", "--listen", "here"), "HOST:PORT"),
        (("init", "--node-id", "a b"), "node_id = 'a b'"),
    ],
)
def test_mistake_is_reported_with_advice(
    words: tuple[str, ...], error: str, directory: Path
) -> None:
    assert error in refusal("cluster", *words)
    assert not directory.exists()


@pytest.mark.parametrize("ttl", ["", "15", "m", "8d", "0s", "-1m", "1.5h"])
def test_wrong_duration_is_refused(ttl: str) -> None:
    cluster("init")
    assert "ttl" in refusal("cluster", "invite", f"--ttl={ttl}")


def test_second_join_on_one_machine_is_refused() -> None:
    cluster("init")
    token = cluster("invite").strip()
    assert "joined already" in refusal("cluster", "join", token)


def test_broker_configuration_lists_targets_and_prints_new_passwords(tmp_path: Path) -> None:
    cluster("init", "--node-id", "big")
    words = ("broker-config", str(tmp_path / "b"), "--host", "broker.lan")
    printed = cluster(*words, "--client", "alice")
    assert printed.startswith("alice\t")
    assert "user big" in (tmp_path / "b" / "nodes.acl").read_text()
    assert printed.split()[1] not in (tmp_path / "b" / "passwords").read_text()
    assert cluster(*words, "--client", "alice") == ""
    assert "host" in refusal("cluster", *words[:2], "--host", "enrolment.edgecosine")


def access_of(config: NodeConfig) -> BrokerAddress:
    assert config.broker is not None
    return config.broker


def test_credentials_give_the_node_its_name(directory: Path) -> None:
    cluster("init", "--node-id", "small", "--role", "drafter")
    found = settings(WANTED)
    assert (found.node_id, found.links.credentials) == ("small", directory)
    membership = Membership(found)
    assert [str(address) for address in membership.listen] == [":0"]
    assert membership.guard.trust is not None
    assert settings([*WANTED, "--credentials", "none"]).links.credentials is None


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--role", "target", "--model", "m"], "these belong to drafter small of cluster home"),
        ([*WANTED, "--node-id", "other"], "these belong to drafter small of cluster home"),
        ([*WANTED, "--insecure"], "there are credentials"),
    ],
)
def test_credentials_of_another_node_are_refused(args: list[str], error: str) -> None:
    cluster("init", "--node-id", "small", "--role", "drafter")
    with pytest.raises(ConfigError, match=error):
        Membership(settings(args))


def test_without_credentials_links_stay_on_this_machine() -> None:
    membership = Membership(settings(WANTED))
    assert [address.host for address in membership.listen] == ["127.0.0.1"]
    for words in (["--listen", ":7411"], ["--listen", "192.0.2.1:1"], ["--peer", "big.lan:7411"]):
        with pytest.raises(ConfigError, match=r"edgecosine cluster init.*--insecure"):
            Membership(settings([*WANTED, *words]))
    near = settings([*WANTED, "--listen", "[::1]:0", "--peer", "127.0.0.1:7411"])
    assert [address.host for address in Membership(near).listen] == ["::1"]
    wide = Membership(settings([*WANTED, "--insecure", "--peer", "big.lan:7411"]))
    assert [str(address) for address in wide.listen] == [":0"]


def test_passwords_are_read_from_file_or_environment_only(tmp_path: Path) -> None:
    url = "mqtt://me:secret@broker.lan"
    for words in (["node", *WANTED], ["ask", "x"], ["status"], ["doctor"], ["up"]):
        error = refusal(*words, "--broker", url)
        assert "EDGECOSINE_BROKER_PASSWORD" in error
        assert "secret" not in error
    assert settings(WANTED, {"EDGECOSINE_BROKER": url}).broker == BrokerAddress.parse(url)
    file = tmp_path / "password"
    file.write_text("from file\nand not this")
    found = settings([*WANTED, "--broker-password-file", str(file), "--broker-username", "me"])
    assert (access_of(found).username, access_of(found).password) == ("me", "from file")
    found = settings(WANTED, {"EDGECOSINE_BROKER_PASSWORD": "from env"})
    assert access_of(found).password == "from env"
    assert "from env" not in repr(found)
    assert "secret" not in repr(settings(WANTED, {"EDGECOSINE_BROKER": url}))


def test_broker_is_verified_by_the_clusters_authority_with_credentials(directory: Path) -> None:
    mqtts = [*WANTED, "--broker", "mqtts://broker.lan"]
    assert access_of(settings(mqtts)).ca_file is None
    cluster("init", "--node-id", "small", "--role", "drafter")
    found = settings(mqtts)
    assert access_of(found).ca_file == directory / "authorities.pem"
    assert access_of(found).certificate_file == directory / "node.pem"
    assert access_of(settings([*mqtts, "--broker-ca", "system"])).ca_file is None
    assert access_of(settings([*WANTED, "--broker", "mqtt://127.0.0.1"])).ca_file is None


def test_broker_for_a_network_needs_the_insecure_option() -> None:
    error = refusal("broker", "--listen", "0.0.0.0:1883")
    assert "cluster broker-config" in error
    assert "--insecure" in error
