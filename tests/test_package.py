"""The package's own names: the client's classes, imported on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edgecosine


def test_package_gives_client_and_request() -> None:
    from edgecosine import Client, Request
    from edgecosine.client.client import Client as DefinedClient
    from edgecosine.protocol.api.request import Request as DefinedRequest

    assert (Client, Request) == (DefinedClient, DefinedRequest)


def test_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        _ = edgecosine.Server  # type: ignore[attr-defined]


def test_import_of_the_package_loads_no_other_module_of_it() -> None:
    code = "import sys, edgecosine; print([m for m in sys.modules if m.startswith('edgecosine.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_client_loads_no_models() -> None:
    code = "import sys; from edgecosine import Client; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
