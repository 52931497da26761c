"""Topics: every name that is made can be read again, and no reply leaves the response tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecosine.errors import ConfigError, RequestError
from edgecosine.protocol.api.topics import (
    CancelTopic,
    ClaimTopic,
    ClientStatusTopic,
    InboxTopic,
    InfoTopic,
    MembershipTopic,
    NodeStateTopic,
    NodeStatusTopic,
    RequestTopic,
    ResponseTopic,
    StatusTopic,
    StreamTopic,
    Topics,
    can_publish_to,
    is_identifier,
)

HOME = Topics("home")
identifiers = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)


def test_names_begin_with_prefix_and_cluster() -> None:
    assert HOME.status == "edgecosine/home/status"
    assert HOME.response("cli7", "42") == "edgecosine/home/response/cli7/42"
    assert HOME.requests == "edgecosine/home/request/+"
    assert HOME.cancels == "edgecosine/home/job/+/cancel"


@pytest.mark.parametrize("cluster", ["", "a/b", "+", "#", "$SYS", "a b", "a\n", "x" * 65])
def test_invalid_cluster_name_is_refused(cluster: str) -> None:
    with pytest.raises(ConfigError, match="cluster"):
        Topics(cluster)


@given(client=identifiers, request=identifiers)
def test_every_topic_round_trips(client: str, request: str) -> None:
    assert HOME.parse(HOME.request("chat")) == RequestTopic("chat")
    assert HOME.parse(HOME.request("ask")) == RequestTopic("ask")
    assert HOME.parse(HOME.job_cancel(request)) == CancelTopic(request)
    assert HOME.parse(HOME.response(client, request)) == ResponseTopic(client, request)
    assert HOME.parse(HOME.stream(client, request)) == StreamTopic(client, request)
    assert HOME.parse(HOME.node_status(client)) == NodeStatusTopic(client)
    assert HOME.parse(HOME.node_state(client)) == NodeStateTopic(client)
    assert HOME.parse(HOME.client_status(client)) == ClientStatusTopic(client)
    assert HOME.parse(HOME.work(client, request)) == ClaimTopic(client, request)
    assert HOME.parse(HOME.membership(client)) == MembershipTopic(client)
    assert HOME.parse(HOME.inbox(client)) == InboxTopic(client)
    assert HOME.parse(HOME.status) == StatusTopic()
    assert HOME.parse(HOME.info) == InfoTopic()


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "edgecosine/away/request/chat",
        "edgecosine/home/request/sing",
        "edgecosine/home/request/chat/more",
        "edgecosine/home/job/a b/cancel",
        "edgecosine/home/job//cancel",
        "edgecosine/home",
        "edgecosine/homely/status",
    ],
)
def test_foreign_topics_are_not_parsed(topic: str) -> None:
    assert HOME.parse(topic) is None


@pytest.mark.parametrize(
    "topic",
    [
        "zigbee2mqtt/lock/set",
        "edgecosine/home/status",
        "edgecosine/home/response",
        "edgecosine/home/response/",
        "edgecosine/away/response/cli/1",
        "edgecosine/home/response/+/1",
        "edgecosine/home/response/#",
        "edgecosine/home/response/$share/1",
        "edgecosine/home/response/a\x00b",
        "edgecosine/home/response/a\nb",
        "edgecosine/home/response/\ud800",
        "edgecosine/home/response/\x7f",
        "edgecosine/home/response/a\x85",
        "edgecosine/home/response/a\ufdd0",
        "edgecosine/home/response/a\ufdef",
        "edgecosine/home/response/a\uffff",
        "edgecosine/home/response/a\U0010fffe",
        "edgecosine/home/response/" + 198 * "/",
        "edgecosine/home/response/" + "x" * 256,
        "edgecosine/home/response/" + "ä" * 120,
        "$SYS/edgecosine/home/response/a/1",
    ],
)
def test_reply_topic_outside_the_response_tree_is_refused(topic: str) -> None:
    with pytest.raises(RequestError) as refusal:
        HOME.check_reply(topic)
    assert refusal.value.code == "reply_topic_refused"
    assert refusal.value.parameter == "reply_to"


@given(st.text())
def test_no_text_escapes_the_response_tree(text: str) -> None:
    for topic in (text, "edgecosine/home/response/" + text):
        try:
            accepted = HOME.check_reply(topic)
        except RequestError:
            continue
        assert accepted.startswith("edgecosine/home/response/")
        assert not set(accepted) & set("+#$\0")


@pytest.mark.parametrize("tail", ["my/own/topic", "a\ufdcf", "a\ufffd", "a\U0001f600", 190 * "/"])
def test_reply_topic_may_have_further_levels(tail: str) -> None:
    assert HOME.check_reply(f"edgecosine/home/response/{tail}")


@pytest.mark.parametrize(
    ("topic", "is_one"),
    [
        ("", False),
        ("a", True),
        ("/", True),
        (199 * "/", True),
        (200 * "/", False),
        (65_535 * "x", True),
        (65_536 * "x", False),
        (40_000 * "ä", False),
        ("a#", False),
        ("$SYS", True),
    ],
)
def test_valid_topics_are_those_of_the_broker(topic: str, is_one: bool) -> None:
    assert can_publish_to(topic) is is_one


@pytest.mark.parametrize("name", ["", "a/b", "ä", "a\n", "x" * 65, "a b", "+"])
def test_invalid_identifiers_are_refused(name: str) -> None:
    assert not is_identifier(name)
