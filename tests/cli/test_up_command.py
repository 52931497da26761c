"""`edgecosine up` refuses settings before it starts anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecosine.cli.up import check_exposure
from edgecosine.errors import ConfigError
from edgecosine.security.api_keys import ApiKeys

ANYWHERE = "0.0.0.0:8080"


def test_http_beyond_this_machine_needs_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys.json"
    monkeypatch.setenv("EDGECOSINE_HTTP_KEYS", str(keys))
    check_exposure("127.0.0.1:8080", "home")
    with pytest.raises(ConfigError, match="edgecosine key create") as refusal:
        check_exposure(ANYWHERE, "home")
    assert "--insecure" not in str(refusal.value)  # an option of `edgecosine node`
    ApiKeys(keys).create("kitchen", "2026-01-01")
    check_exposure(ANYWHERE, "home")
