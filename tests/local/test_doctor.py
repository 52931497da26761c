"""Each check returns ok or advice, on simulated machines."""

from __future__ import annotations

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path

import pytest

from edgecosine.discovery.interfaces import Interface
from edgecosine.local.doctor import (
    check_broker,
    check_compiler,
    check_credentials,
    check_engine,
    check_interfaces,
    check_memory,
    check_models,
    check_multicast,
    check_processor,
    check_python,
    examine,
)
from edgecosine.mqtt.broker_address import BrokerAddress
from tests.node.links.wire_fixtures import run
from tests.security.cluster_home import Home


def file_with(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_python_must_be_new_enough() -> None:
    assert check_python().is_ok
    assert check_python((3, 10, 12)).advice == "install Python 3.11 or newer"


def test_any_compiler_is_accepted() -> None:
    assert check_compiler(lambda name: "/bin/c++" if name == "c++" else None).finding == "/bin/c++"
    assert check_compiler(lambda _: None).advice.startswith("install g++")


def test_too_little_memory_is_reported(tmp_path: Path) -> None:
    plenty = file_with(tmp_path / "plenty", "MemTotal: 9 kB\nMemAvailable: 8388608 kB\n")
    little = file_with(tmp_path / "little", "MemAvailable: 1048576 kB\n")
    assert (check_memory(plenty).finding, check_memory(plenty).is_ok) == ("8.0 GiB available", True)
    assert (check_memory(little).finding, check_memory(little).is_ok) == (
        "1.0 GiB available",
        False,
    )


@pytest.mark.parametrize("text", [None, "", "MemTotal: 9 kB\n", "MemAvailable: much\n", "x\n"])
def test_memory_is_found_without_a_readable_meminfo(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "meminfo"
    if text is not None:
        path.write_text(text)
    assert check_memory(path).finding.endswith("GiB in total")


@pytest.mark.parametrize(
    ("text", "finding", "is_ok"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_int8\n",
         "avx2, avx512f, avx512_bf16, amx_bf16, amx_int8", True),
        ("Features\t: fp asimd bf16\n", "asimd, bf16", True),
        ("flags : fpu sse2\n", "no vector features", False),
    ],
)  # fmt: skip
def test_processor_features_are_listed(
    tmp_path: Path, text: str, finding: str, is_ok: bool
) -> None:
    check = check_processor(file_with(tmp_path / "cpuinfo", text))
    assert check.finding.endswith(f": {finding}")
    assert check.is_ok == is_ok


def test_missing_cpuinfo_is_no_fault(tmp_path: Path) -> None:
    assert check_processor(tmp_path / "nothing").is_ok


def test_missing_engine_is_reported() -> None:
    (check,) = check_engine(module="edgecosine.engine.no_such_module")
    assert check.finding.startswith("not installed")
    assert not check.is_ok


def test_interfaces_are_listed() -> None:
    lo, eth0 = Interface("lo", ("127.0.0.1", "::1")), Interface("eth0", ("10.0.0.5",))
    assert check_interfaces([lo, eth0]).finding == "lo 127.0.0.1, ::1; eth0 10.0.0.5"
    assert "only nodes on this machine" in check_interfaces([lo]).finding
    assert not check_interfaces([]).is_ok


def test_models_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    zoo = tmp_path / "zoo"
    assert check_models(None, zoo)[0].advice.startswith("run scripts/train_zoo")
    assert check_models("ngram", zoo)[0].is_ok
    assert check_models("owner/model", zoo)[0].is_ok
    assert not check_models("nothing here", zoo)[0].is_ok
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not check_models("owner/model", zoo)[0].is_ok
    (zoo / "half").mkdir(parents=True)
    (zoo / "half" / "config.json").write_text("{}")
    (check,) = check_models(None, zoo)
    assert check.name == "model half"
    assert "no .safetensors file" in check.finding


def test_listening_broker_is_ok_and_passwords_are_not_shown() -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        url = f"mqtt://me:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        there = await check_broker(BrokerAddress.parse(url))
        server.close()
        await server.wait_closed()
        gone = await check_broker(BrokerAddress.parse(url))
        assert (there.is_ok, gone.is_ok) == (True, False)
        assert "edgecosine broker" in gone.advice
        assert "secret" not in there.finding + gone.finding

    run(main())


def test_broker_with_an_untrusted_certificate_is_reported(tmp_path: Path) -> None:
    home = Home(tmp_path)
    key, chain = home.authority.issue_broker(["127.0.0.1"], home.now)
    (tmp_path / "broker.pem").write_text(key + chain)
    (tmp_path / "ca.pem").write_text(home.authority.trust_list(home.now).authorities)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "broker.pem")

    async def main() -> None:
        server = await asyncio.start_server(
            lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context
        )
        url = f"mqtts://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        good = await check_broker(BrokerAddress.parse(url, ca_file=tmp_path / "ca.pem"))
        untrusted = await check_broker(BrokerAddress.parse(url))
        missing = await check_broker(BrokerAddress.parse(url, ca_file=tmp_path / "none.pem"))
        server.close()
        assert "accepts encrypted connections" in good.finding
        assert "its certificate is not accepted" in untrusted.finding
        assert "none.pem cannot be used" in missing.finding
        assert [check.is_ok for check in (good, untrusted, missing)] == [True, False, False]

    run(main())


def test_credentials_are_reported_with_their_expiry(tmp_path: Path) -> None:
    assert check_credentials(None).is_ok
    home = Home(tmp_path)
    good = check_credentials(home.admit("kitchen").directory)
    assert good.is_ok
    assert "drafter kitchen of cluster lab, valid until" in good.finding
    home.now -= timedelta(days=40)
    old = check_credentials(home.admit("cellar").directory)
    assert "expired" in old.finding
    assert "join again" in old.advice
    home.place("kitchen").joinpath("node.pem").write_text("")
    assert not check_credentials(home.place("kitchen")).is_ok


def test_installed_broker_is_named_where_none_is_given() -> None:
    check = run(check_broker(None))
    assert check.is_ok == ("will start" in check.finding)


def test_broken_multicast_is_reported_with_advice() -> None:
    check = run(check_multicast(["203.0.113.77"]))
    assert "--peer HOST:PORT" in check.advice


def test_examination_has_all_checks(tmp_path: Path) -> None:
    checks = run(examine(model="ngram", broker=None, zoo=tmp_path, used=["203.0.113.77"]))
    names = {check.name for check in checks}
    assert names >= {
        "python", "compiler", "memory", "processor", "engine", "model ngram", "interfaces",
        "multicast", "broker",
    }  # fmt: skip
