"""Checks beyond TLS: the signature of a revocation list, and whether greeting and certificate
name the same node."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edgecosine.errors import EnrolmentError
from edgecosine.security.certificates import Signer, certificate_pem, new_key
from edgecosine.security.trust import read_revoked
from tests.protocol.wire.values import hello
from tests.security.cluster_home import Home

NOW = datetime.now(UTC)
KITCHEN: dict[str, Any] = {"cluster": "lab", "role": "drafter", "node_id": "kitchen"}


def test_revocation_list_signed_by_another_key_is_refused() -> None:
    signer = Signer.new("lab", NOW)
    authorities = certificate_pem(signer.certificate)
    assert read_revoked(authorities, signer.revocation_list([7], 1, NOW)) == {7}
    forger = replace(signer, key=new_key())
    with pytest.raises(EnrolmentError, match="not signed"):
        read_revoked(authorities, forger.revocation_list([], 2, NOW))


@pytest.mark.parametrize("change", [{"role": "target"}, {"node_id": "attic"}, {"cluster": "away"}])
def test_greeting_must_agree_with_the_certificate(change: dict[str, Any], tmp_path: Path) -> None:
    home = Home(tmp_path)
    trust = home.admit("attic", "target").trust()
    peercert = {
        "serialNumber": "07",
        "issuer": ((("commonName", "an authority"),),),
        "subjectAltName": (("URI", "urn:edgecosine:node:lab:drafter:kitchen"),),
    }
    assert trust.objection(peercert, hello(**KITCHEN)) is None
    reason = trust.objection(peercert, hello(**(KITCHEN | change)))
    assert reason is not None
    assert "its certificate is that of drafter kitchen of cluster lab" in reason
