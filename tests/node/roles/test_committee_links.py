"""Which nodes may be members of a committee, and from when on it is known who answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec
import pytest

from edgecosine.config import CommitteeOptions, NodeConfig
from edgecosine.engine.options import Loaded, LoadOptions
from edgecosine.engine.tokenizer import TextCodec
from edgecosine.node.links.link import Link
from edgecosine.node.roles.committee_links import CommitteeLinks
from edgecosine.node.roles.identity import identity_of
from edgecosine.protocol.wire.messages import PROTOCOL_VERSION, Hello

HELLO = Hello(
    PROTOCOL_VERSION, "home", "m1", 1, "member", "law", "none", b"", max_context=100,
    member="legal", weight=0.5, checkpoint="c1", exactness="bitwise",
)  # fmt: skip


@dataclass
class Greeted:
    """What a committee uses of a link."""

    peer: Hello
    is_leaving: bool = False
    reasons: list[str] = field(default_factory=list)

    def close(self, reason: str) -> None:
        self.reasons.append(reason)


class Tokenizer:
    def __len__(self) -> int:
        return 8

    def decode(self, tokens: Sequence[int], **_options: Any) -> str:
        return "".join(map(str, tokens))


def _links() -> CommitteeLinks:
    """A coordinator without a model of its own, for two members."""
    config = NodeConfig(
        "target", "t", LoadOptions("m"),
        committee=CommitteeOptions(committee=("legal=0.5", "python=0.5")),
    )  # fmt: skip
    codec = TextCodec(Tokenizer(), ())
    return CommitteeLinks(config, Loaded("m", "none", codec, 100, "none", 0), None)


def _add(links: CommitteeLinks, **changed: Any) -> Greeted:
    greeted = Greeted(msgspec.structs.replace(HELLO, **changed))
    links.add(cast(Link, greeted))
    return greeted


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"member": "poetry"}, "no member poetry: it has legal, python"),
        ({"weight": 0.4}, "has weight 0.5 here and 0.4 there"),
        ({"max_context": 99}, "--context 99 or less"),
        ({"node_id": "m2", "checkpoint": "c2"}, "was another model before"),
    ],
)
def test_node_that_would_change_the_committee_is_refused(
    changed: dict[str, Any], reason: str
) -> None:
    links = _links()
    assert _add(links).reasons == []
    refused = _add(links, **changed)
    assert reason in refused.reasons[0]
    assert set(links.of("legal")) == {"m1"}


def test_committee_is_known_once_every_member_was_linked() -> None:
    links = _links()
    legal = _add(links)
    assert not links.complete.is_set()
    _add(links, node_id="m2", member="python", checkpoint="c3", exactness="rounding")
    assert links.complete.is_set()
    assert links.checkpoints == [(0.5, "c1"), (0.5, "c3")]
    assert links.exactness == "rounding"
    links.remove(cast(Link, legal))
    assert links.complete.is_set()
    assert links.committee.away == ["legal"]
    assert links.checkpoints == [(0.5, "c1"), (0.5, "c3")]


def test_committees_of_other_models_weights_or_order_have_another_identity() -> None:
    config = NodeConfig("target", "t", LoadOptions("m"))
    loaded = Loaded("m", "none", None, 100, "none", 0)
    members = [(0.5, "c1"), (0.3, "c2"), (0.2, "c3")]
    others = [
        [], members[:2], members[::-1], [(0.5, "c1"), (0.3, "c2"), (0.2, "c4")],
        [(0.4, "c1"), (0.4, "c2"), (0.2, "c3")],
    ]  # fmt: skip
    identities = [identity_of(config, loaded, each) for each in (members, *others)]
    assert len(set(identities)) == len(identities)
    elsewhere = replace(config, node_id="u", cluster="other")
    assert identity_of(elsewhere, loaded, members) == identities[0]
