"""Valid inputs of all kinds. Fuzzing starts from them."""

from __future__ import annotations

from edgecosine.discovery.peer import Advert, to_txt
from edgecosine.errors import Overloaded
from edgecosine.protocol.api.answers import StreamPart, render_error, render_final, render_piece
from edgecosine.protocol.api.openai import render_body
from edgecosine.protocol.api.request import ChatMessage, Request, Sampling
from edgecosine.protocol.api.result import Answer, Choice
from edgecosine.protocol.api.retained_topics import (
    info_notice,
    node_state_notice,
    node_status_notice,
)
from edgecosine.protocol.api.topics import Topics
from edgecosine.protocol.wire.codec import encode
from edgecosine.protocol.wire.framing import frame
from edgecosine.protocol.wire.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Draft,
    DraftRequest,
    Hello,
    Judgement,
    JudgeRequest,
    Leave,
    OutOfStep,
    Ping,
    Pong,
    Refuse,
    Release,
    Reveal,
    SharedNoise,
    pack_tokens,
)
from edgecosine.security.enrolment import (
    Certificate,
    Denial,
    Introduce,
    Join,
    Renew,
    TrustList,
    WatchTrust,
    write_line,
)
from edgecosine.security.join_token import JoinToken, write_token

HOME = Topics("home")
TARGET = Hello(PROTOCOL_VERSION, "home", "target-1", 1000, "target", "toy", "none", b"")
DRAFTER = Hello(PROTOCOL_VERSION, "home", "drafter-1", 1000, "drafter", "toy", "none", bytes(16))
MEMBER = Hello(PROTOCOL_VERSION, "home", "member-1", 1000, "member", "toy", "none", bytes(16))
TOKENS = pack_tokens([1, 2, 3])
MESSAGES: tuple[AnyMessage, ...] = (
    TARGET,
    DRAFTER,
    Refuse("no", 1, [b"word", b""]),
    Ping(1),
    Pong(1),
    DraftRequest("cli/1", 1, 9, 7, TOKENS, 4, 2, SharedNoise(0.7, 40, 0.9, 0.1, b"12345678")),
    DraftRequest("cli/1", 1, 9, 7, b"", 4, 1, SharedNoise(), True, TOKENS, b"\0\1\1", b"\xff" * 3),
    Release("cli/1"),
    Draft("cli/1", 1, TOKENS, b"\xff\x80\x00", b"\0\1\1", 900),
    OutOfStep("cli/1", 1, 5),
    Leave(),
    JudgeRequest("cli/1", 1, 9, 7, TOKENS, TOKENS, b"\0\1\1", SharedNoise(), 16, 4, TOKENS),
    Reveal("cli/1", 1, -1, TOKENS, 64, 0, False),
    Judgement("cli/1", 1, bytes(8), TOKENS[:8], bytes(8), bytes(8), b"", bytes(16), 900),
)
_REQUEST = Request(
    "cli", "1", "chat", (ChatMessage("system", "Be brief."), ChatMessage("user", "Why?")),
    max_tokens=64, stop=("\n\n",), stream=True, model="toy", deadline_s=30.0, top_logprobs=3, n=2,
    priority=-1, trace=True,
    sampling=Sampling(0.7, 40, 0.9, 0.1, 3, 0.5, -0.5, 1.1, ((5, -100.0), (7, 2.5)), 4, (2,)),
)  # fmt: skip
_ANSWER = Answer((Choice("To be.", (1, 2), "stop"),), 5, 3, "toy")
_TRUST = TrustList(3, "-----BEGIN CERTIFICATE-----", "", "home 1")
_ADVERT = Advert(
    "drafter-1", 1000, "home", PROTOCOL_VERSION, "drafter", "große Fabel", "0" * 16, ("10.0.0.5",),
    7000,
)  # fmt: skip
TOKEN = JoinToken("home", bytes(32), b"0123456789abcdef", ["10.0.0.5:7443", "[fe80::1]:7443"])


def frames() -> list[bytes]:
    """Streams of frames; the first byte is the size of the pieces in which they arrive."""
    stream = _stream(*MESSAGES)
    return [
        b"\x03" + stream[:90], b"\x40" + stream, b"\x40" + frame(b""), b"\x02" + frame(bytes(200)),
    ]  # fmt: skip


def _stream(*messages: AnyMessage) -> bytes:
    return b"".join(frame(encode(message)) for message in messages)


def messages() -> list[bytes]:
    """A message of each kind."""
    return [encode(message) for message in MESSAGES]


def conversations() -> list[bytes]:
    """Messages of a peer, beginning with its greeting; the first byte selects the receiver."""
    greeting: tuple[AnyMessage, ...] = (Ping(0), Pong(0), Ping(1))
    drafter, target = (DRAFTER, *greeting, *MESSAGES[8:11]), (TARGET, *greeting, *MESSAGES[5:8])
    member = MEMBER, *greeting, *MESSAGES[9:11], MESSAGES[13]
    refusal = Refuse("other", 0, [b"word0", b"word2"])
    return [
        b"\0" + _stream(*drafter, Refuse("going")),
        b"\1" + _stream(*target),
        b"\0" + _stream(*member),
        b"\2" + _stream(DRAFTER, Ping(0), refusal),
        b"\0" + _stream(refusal),
    ]


def requests() -> list[bytes]:
    """Bodies of requests; the first byte selects the kind."""
    completion = Request("cli", "1", "completion", "To be, or", stop=("\n",), top_logprobs=2)
    parts = b'{"messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}],"seed":-1}'
    limits = (
        b'{"prompt":["x"],"max_completion_tokens":9,"client":"a",'
        b'"reply_to":"edgecosine/home/response/a/b"}'
    )
    levels = (
        b'{"prompt":"x","client":"a","reply_to":"edgecosine/home/response/a/' + 195 * b"/" + b'"}'
    )
    points = (
        '{"prompt":"x","client":"a","reply_to":"edgecosine/home/response/a/\ufdcf\U0001fffd"}'
    ).encode()
    tiny = (
        b'{"prompt":"x","temperature":1e-46,"top_p":5e-324,"min_p":1e-45,"repetition_penalty":0.01,'
        b'"logit_bias":{"4096":1e-40},"stop_token_ids":[4096],"min_tokens":3}'
    )
    bodies = (
        (0, render_body(_REQUEST)), (1, render_body(completion)), (2, b"To be, or"), (0, parts),
        (1, limits), (1, levels), (1, points), (1, tiny),
    )  # fmt: skip
    return [bytes((kind,)) + body for kind, body in bodies]


def topics() -> list[bytes]:
    """Topics of all kinds."""
    names = (
        HOME.request("chat"), HOME.job_cancel("1"), HOME.status, HOME.info, HOME.node_status("a"),
        HOME.node_state("a"), HOME.client_status("cli"), HOME.response("cli", "1"),
        HOME.stream("cli", "1"), f"{HOME.response('cli', '1')}/more",
    )  # fmt: skip
    return [name.encode() for name in names]


def answers() -> list[bytes]:
    """Final messages, errors and parts of answers."""
    return [
        render_final(_REQUEST, _ANSWER, created_s=1),
        render_error(Overloaded(2.5), "1"),
        render_piece(StreamPart(0, "To be", is_last=False, choice=1)),
        render_piece(StreamPart(1, "", is_last=True)),
    ]


def retained() -> list[bytes]:
    """Retained messages of a cluster."""
    state = {
        "role": "target", "model": "toy", "drafters": {"drafter-1": {"rtt_ms": 1.5}}, "queued": 3,
        "is_full": True, "is_congested": False, "not_linked": ["a: no answer"],
        "counters": {"refused": {"overloaded": 3}, "restarts": 1},
    }  # fmt: skip
    notices = (
        node_status_notice(HOME, "a", "unavailable", session="s", now_s=5.0, reason="silent"),
        node_state_notice(HOME, "a", state),
        info_notice(HOME, version="1", info={"models": ["toy"], "max_tokens": 64}, limits={"n": 1}),
    )
    return [notice.payload for notice in notices]


def enrolment() -> list[bytes]:
    """Lines sent to an authority and by it."""
    lines = (
        Introduce(), Join(b"0123456789abcdef", "kitchen", "-----BEGIN"), Renew("-----BEGIN"),
        WatchTrust(3), _TRUST, Certificate("-----BEGIN", "drafter", _TRUST), Denial("no"),
    )  # fmt: skip
    return [write_line(line) for line in lines]


def adverts() -> list[bytes]:
    """TXT records in wire format, after two bytes of the port."""
    entries = [f"{key}={value}".encode() for key, value in to_txt(_ADVERT).items()]
    return [_ADVERT.port.to_bytes(2, "big") + b"".join(bytes((len(e),)) + e for e in entries)]


def tokens() -> list[bytes]:
    """Invitation tokens."""
    return [write_token(TOKEN).encode()]
