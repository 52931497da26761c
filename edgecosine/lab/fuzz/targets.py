"""The entry points of untrusted bytes, and the properties that must hold for all inputs.

Each target passes bytes to the code that a node uses and expects only documented errors; any other
error is a crash. An accepted input must be the same after it is encoded and decoded again.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from edgecosine.client.cluster_view import ClusterView
from edgecosine.client.health import concerns, counted
from edgecosine.discovery.peer import MAX_MODEL_BYTES, HostileAdvert, from_txt, to_txt
from edgecosine.errors import ConfigError, EnrolmentError, RemoteProtocolError, RequestError
from edgecosine.lab.fuzz import seeds
from edgecosine.lab.fuzz.mutations import (
    Mutation,
    mutate_bytes,
    mutate_frames,
    mutate_json,
    mutate_msgpack,
)
from edgecosine.protocol.api.answers import parse_final, parse_piece, render_error, render_piece
from edgecosine.protocol.api.mqtt_message import Incoming
from edgecosine.protocol.api.openai import RequestLimits, render_body
from edgecosine.protocol.api.parse_request import RequestParser
from edgecosine.protocol.api.request import Request
from edgecosine.protocol.api.request_record import RequestRecord
from edgecosine.protocol.api.retained_topics import view_nodes
from edgecosine.protocol.api.topics import REQUEST_KINDS, InfoTopic, can_publish_to
from edgecosine.protocol.wire.codec import decode, encode
from edgecosine.protocol.wire.framing import HEADER_BYTES, FrameBuffer, frame
from edgecosine.protocol.wire.handshake import Handshake, HandshakeState
from edgecosine.protocol.wire.messages import (
    MAX_REASON_CHARACTERS,
    Draft,
    DraftRequest,
    Refuse,
    read_tree,
)
from edgecosine.protocol.wire.vocabulary import ANY_VOCABULARY, Vocabulary
from edgecosine.security.enrolment import read_answer, read_request, write_line
from edgecosine.security.identity import NodeIdentity
from edgecosine.security.join_token import PREFIX, read_token, write_token

_MAX_FRAME_BYTES: Final = 512
_MAX_PIECES: Final = 64
_VOCABULARY: Final = Vocabulary.of([f"word{number}" for number in range(300)])
_PARSER: Final = RequestParser(
    seeds.HOME, max_request_bytes=1 << 16, draw_id=lambda: "drawn", draw_seed=lambda: 7
)
_LIMITS: Final = RequestLimits(frozenset({"toy"}), max_tokens=512)


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of input.

    attempt    processes an input; returns whether it was accepted; raises undocumented errors
    mutate     mutates an input within its format, except for its first `num_head` bytes
    max_bytes  maximum length of an input; the node refuses longer ones before this code
    """

    seeds: Callable[[], list[bytes]]
    attempt: Callable[[bytes], bool]
    mutate: Mutation = mutate_bytes
    num_head: int = 0
    max_bytes: int = 4096


def take_frames(data: bytes) -> bool:
    """A stream; the first byte is the size of pieces in which it must decode as in one piece."""
    stream = data[1:]
    size = max(data[0] if data else 1, len(stream) // _MAX_PIECES, 1)
    whole, pieces = FrameBuffer(_MAX_FRAME_BYTES), FrameBuffer(_MAX_FRAME_BYTES)
    whole.feed(stream)
    expected, is_sound = _drain(whole)
    found: list[bytes] = []
    was_refused = False
    for start in range(0, len(stream), size):
        pieces.feed(stream[start : start + size])
        more, is_in_order = _drain(pieces)
        found += more
        was_refused |= not is_in_order
        _require(
            len(pieces) < HEADER_BYTES + _MAX_FRAME_BYTES, "a buffer holds more than one frame"
        )
    _require(found == expected and was_refused is not is_sound, "pieces change the frames")
    _require(stream.startswith(b"".join(map(frame, found))), "frames that are not in the stream")
    return is_sound


def take_message(data: bytes) -> bool:
    """The payload of one frame."""
    try:
        message = decode(data)
    except RemoteProtocolError as error:
        _require_refusable(error)
        return False
    _require(decode(encode(message)) == message, "a message changes in a round trip")
    if isinstance(message, Draft):
        _require(
            read_tree(message.tokens, message.parents, message.confidences) is None
            or len(message.tokens) == 4 * len(message.confidences),
            "a tree and its draft differ in size",
        )
    elif isinstance(message, DraftRequest):
        read_tree(message.tree_tokens, message.tree_parents, message.tree_confidences)
    return True


def take_conversation(data: bytes) -> bool:
    """All messages of a peer; the first byte selects the receiver."""
    receiver = data[0] % 3 if data else 0
    ours = seeds.DRAFTER if receiver == 1 else seeds.TARGET
    handshake = Handshake(ours, _VOCABULARY if receiver == 2 else ANY_VOCABULARY)
    buffer = FrameBuffer()
    buffer.feed(data[1:])
    try:
        while (
            handshake.state is not HandshakeState.CLOSED
            and (payload := buffer.next_frame()) is not None
        ):
            handshake.receive(decode(payload))
    except RemoteProtocolError as error:
        _require_refusable(error)
        return False
    if handshake.state in (HandshakeState.REFUSING, HandshakeState.CLOSED):
        _require(handshake.ending is not None, "a link ends without a reason")
    if handshake.state is HandshakeState.REFUSING:
        assert handshake.refusal is not None
        frame(encode(handshake.refusal))
    return True


def take_request(data: bytes) -> bool:
    """The payload of a request; the first byte selects its kind."""
    kind = REQUEST_KINDS[data[0] % len(REQUEST_KINDS) if data else 0]
    return _take(Incoming(seeds.HOME.request(kind), data[1:]), kind)


def take_topic(data: bytes) -> bool:
    """A topic, a reply topic with its MQTT properties, and the name in a certificate."""
    text = data.decode("utf-8", "replace")
    identity = NodeIdentity.parse(text)
    _require(identity is None or identity.uri == text, "a name changes in a round trip")
    _take(
        Incoming("", b'{"prompt":"x"}', response_topic=text, correlation=data, client=text[-64:]),
        "completion",
    )
    return seeds.HOME.parse(text) is not None or text.startswith(f"{seeds.HOME.root}/response/")


def take_answer(data: bytes) -> bool:
    """Messages that a client receives on its answer topics."""
    is_read = False
    try:
        piece = parse_piece(data)
        _require(parse_piece(render_piece(piece)) == piece, "a part changes in a round trip")
        is_read = True
    except Broken:
        raise
    except ValueError:
        pass
    try:
        return bool(parse_final(data).texts) or is_read
    except RequestError as error:
        render_error(error, "1")
        return True
    except ValueError:
        return is_read


def take_retained(data: bytes) -> bool:
    """Retained messages of a node or of the cluster."""
    views = view_nodes({"a": {"status": data, "state": data}})
    concerns(is_online=True, is_draining=False, nodes=views)
    counted(views)
    watch = ClusterView()
    watch.take(InfoTopic(), data)
    msgspec.json.encode(watch.info())
    return any(view.status or msgspec.json.encode(view.state) != b"{}" for view in views.values())


def take_line(data: bytes) -> bool:
    """A line between a node and its authority, in either direction."""
    is_read = False
    for read in (read_request, read_answer):
        try:
            line = read(data)
        except EnrolmentError:
            continue
        _require(read(write_line(line)) == line, "a line changes in a round trip")
        is_read = True
    return is_read


def take_advert(data: bytes) -> bool:
    """A TXT record after two bytes of the port."""
    port = int.from_bytes(data[:2], "big")
    try:
        advert = from_txt(dict(_entries(data[2:])), ("10.0.0.5",), port)
    except HostileAdvert as error:
        _require(len(str(error)) < 8 * MAX_MODEL_BYTES, "a reason is too long")
        return False
    txt: dict[bytes, bytes | None] = {
        key.encode(): value.encode() for key, value in to_txt(advert).items()
    }
    _require(from_txt(txt, advert.addresses, port) == advert, "an advert changes in a round trip")
    return True


def take_token(data: bytes) -> bool:
    """An invitation token, and a token of arbitrary content with a valid checksum."""
    payload = hashlib.sha256(data).digest()[:4] + data
    checked = PREFIX + base64.urlsafe_b64encode(payload).decode()
    return _is_token(data.decode("utf-8", "surrogateescape")) | _is_token(checked)


class Broken(AssertionError):
    """A property that must hold is violated."""


def _require(holds: bool, violation: str) -> None:
    if not holds:
        raise Broken(violation)


def _require_refusable(error: RemoteProtocolError) -> None:
    """The reason is sent to the peer, so it must be encodable."""
    decode(encode(Refuse(str(error)[:MAX_REASON_CHARACTERS])))


def _drain(buffer: FrameBuffer) -> tuple[list[bytes], bool]:
    frames = []
    try:
        while (payload := buffer.next_frame()) is not None:
            frames.append(payload)
    except RemoteProtocolError:
        return frames, False
    return frames, True


def _take(message: Incoming, kind: str) -> bool:
    kinds = [each for each in REQUEST_KINDS if each == kind]
    reading = _PARSER.read(kinds[0], message, _LIMITS)
    topic = reading.ticket.reply_topic
    _require(seeds.HOME.check_reply(topic) == topic, "an answer outside of the response topics")
    _require(can_publish_to(topic), "an answer on a topic that brokers refuse")
    own = seeds.HOME.response(reading.ticket.client_id, "")
    _require(topic.startswith(own), "an answer to another client")
    if not isinstance(reading, RequestRecord):
        render_error(reading.error, reading.ticket.request_id)
        return False
    request = reading.request
    if kind != "ask":
        again = _PARSER.read(kinds[0], Incoming("", render_body(request)), _LIMITS)
        _require(isinstance(again, RequestRecord), "a rendered request cannot be read")
        assert isinstance(again, RequestRecord)
        _require(
            _without_deadline(again.request) == _without_deadline(request),
            "a request changes in a round trip",
        )
        _require(
            math.isclose(again.request.deadline_s, request.deadline_s),
            "a deadline changes in a round trip",
        )
    return True


def _without_deadline(request: Request) -> Request:
    """The request without its deadline, which is rounded to milliseconds."""
    return replace(request, deadline_s=0.0)


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    while data:
        entry, data = data[1 : 1 + data[0]], data[1 + data[0] :]
        key, is_there, value = entry.partition(b"=")
        yield key, value if is_there else None


def _is_token(text: str) -> bool:
    try:
        token = read_token(text)
    except ConfigError:
        return False
    _require(read_token(write_token(token)) == token, "a token changes in a round trip")
    return True


TARGETS: Final[dict[str, Target]] = {
    "frames": Target(seeds.frames, take_frames, mutate_frames, num_head=1, max_bytes=1024),
    "messages": Target(seeds.messages, take_message, mutate_msgpack),
    "handshakes": Target(seeds.conversations, take_conversation, mutate_frames, num_head=1),
    "requests": Target(seeds.requests, take_request, mutate_json, num_head=1),
    "topics": Target(seeds.topics, take_topic, max_bytes=512),
    "answers": Target(seeds.answers, take_answer, mutate_json),
    "retained": Target(seeds.retained, take_retained, mutate_json),
    "enrolment": Target(seeds.enrolment, take_line, mutate_json),
    "adverts": Target(seeds.adverts, take_advert, num_head=2, max_bytes=1024),
    "tokens": Target(seeds.tokens, take_token, max_bytes=1024),
}
