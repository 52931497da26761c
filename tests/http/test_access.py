"""Keys, TLS and pages of other origins."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from edgecosine.cli import main
from edgecosine.config import HttpOptions, LinkOptions, NodeConfig
from edgecosine.engine.options import LoadOptions
from edgecosine.errors import ConfigError
from edgecosine.node.roles.http_frontend import open_frontend
from edgecosine.security.api_keys import FILE_NAME, ApiKeys
from edgecosine.security.trust import https_context
from tests.support.http import http_harness
from tests.support.mqtt import run

BODY = {"prompt": "or not"}
COMPLETIONS = "/v1/completions"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directory of this user's files for the cluster `home`."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "edgecosine" / "home"


def command(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, [*words])
    assert result.exit_code == code, result.output
    return result.output.strip()


def test_key_is_shown_once_and_names_the_client(directory: Path) -> None:
    key = command("key", "create", "kitchen")
    text = (directory / FILE_NAME).read_text()
    assert key not in text
    assert "revoke" in command("key", "create", "kitchen", code=2)

    async def scenario() -> None:
        async with http_harness(keys=ApiKeys(directory / FILE_NAME)) as home:
            for headers in ({}, {"authorization": "Bearer ec-wrong"}, {"authorization": key}):
                refused = await home.http.post(COMPLETIONS, json=BODY, headers=headers)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
            assert (await home.http.get("/v1/models")).status_code == 401
            assert (await home.http.get("/health")).status_code == 200
            assert (await home.http.get("/page/page.js")).status_code == 200
            for path in ("/events", "/metrics"):
                assert (await home.http.get(path)).status_code == 401
            async with home.openai(api_key=key) as client:
                assert (await client.completions.create(model="tiny", prompt="or not")).id
            assert home.service.requests[0].client_id == "http:kitchen"
            command("key", "create", "hall")
            assert list(json.loads(command("key", "list", "--json"))) == ["hall", "kitchen"]
            command("key", "revoke", "kitchen")
            answer = await home.http.post(COMPLETIONS, json=BODY, headers={"x-api-key": key})
            assert answer.status_code == 401

    run(scenario())


def test_pages_of_other_origins_are_refused_unless_named() -> None:
    async def asked(home: httpx.AsyncClient, headers: dict[str, str]) -> int:
        return (await home.post(COMPLETIONS, json=BODY, headers=headers)).status_code

    async def scenario() -> None:
        chat = "https://chat.example"
        async with http_harness() as home:
            assert await asked(home.http, {"origin": chat}) == 403
            assert (
                await asked(home.http, {"origin": f"http://127.0.0.1:{home.frontend.port}"}) == 200
            )
            # A name that its owner lets point to this machine.
            for host in (f"chat.example:{home.frontend.port}", "[::1", ""):
                assert await asked(home.http, {"host": host}) == 403
            assert await asked(home.http, {"origin": "http://[::1"}) == 403
        async with http_harness(origins=[chat]) as home:
            reply = await home.http.post(COMPLETIONS, json=BODY, headers={"origin": chat})
            assert reply.headers["access-control-allow-origin"] == chat
            assert await asked(home.http, {"host": "chat.example"}) == 200  # a proxy's
            preflight = {"origin": chat, "access-control-request-method": "POST"}
            assert (await home.http.options(COMPLETIONS, headers=preflight)).status_code == 200
            assert await asked(home.http, {"origin": "https://else.example"}) == 403

    run(scenario())


def test_https_with_a_certificate_of_the_cluster(directory: Path, tmp_path: Path) -> None:
    command("cluster", "init", "--node-id", "big")
    file = tmp_path / "https.pem"
    authorities = command("cluster", "http-certificate", str(file), "--host", "127.0.0.1")
    trusting = ssl.create_default_context(cadata=authorities)

    async def scenario() -> None:
        async with http_harness(tls=https_context(file)) as home:
            url = f"https://127.0.0.1:{home.frontend.port}"
            async with httpx.AsyncClient(base_url=url, verify=trusting, trust_env=False) as client:
                assert await client.post(COMPLETIONS, json=BODY)
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                with pytest.raises(httpx.ConnectError):
                    await client.post(COMPLETIONS, json=BODY)

    run(scenario())
    with pytest.raises(ConfigError, match="http_certificate"):
        https_context(tmp_path)


def test_door_beyond_this_machine_needs_keys(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = directory / FILE_NAME

    def opened(*, insecure: bool = False) -> None:
        config = NodeConfig(
            role="target", node_id="t", engine=LoadOptions(model="m"),
            links=LinkOptions(insecure=insecure), http=HttpOptions("0.0.0.0:0", keys),
        )  # fmt: skip
        frontend = run(open_frontend(config))
        assert frontend is not None
        frontend.close()

    with pytest.raises(ConfigError, match="edgecosine key create"):
        opened()
    opened(insecure=True)
    assert "INSECURE" in caplog.text
    caplog.clear()
    command("key", "create", "kitchen")
    opened()
    assert "INSECURE" not in caplog.text
    assert "UNENCRYPTED" in caplog.text
