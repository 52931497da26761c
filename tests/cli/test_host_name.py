"""A host name with any letters becomes a valid node name."""

from __future__ import annotations

import socket

import pytest

from edgecosine.cli.running import host_name
from edgecosine.security.identity import NodeIdentity


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("desk-7.example.org", "desk-7"),
        ("küche", "kuche"),
        ("Ďáblice_2", "Dablice-2"),
        ("café-書斎", "cafe"),
        ("a" * 63, "a" * 32),
        ("--", "host-"),
        ("書斎", "host-"),
        ("бойлер", "host-"),
        ("\udce9tage", "tage"),
        ("", "host-"),
    ],
)
def test_node_name_has_the_ascii_letters_of_the_host_name(
    machine: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: machine)
    given = host_name()
    assert given.startswith(name)
    assert name.endswith("-") or given == name
    assert NodeIdentity("home", "drafter", f"{given}-drafter-1234").node_id


def test_host_names_without_ascii_letters_give_different_node_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = set()
    for machine in ("書斎", "台所", "бойлер"):
        monkeypatch.setattr(socket, "gethostname", lambda machine=machine: machine)
        names.add(host_name())
    assert len(names) == 3
