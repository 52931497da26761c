"""The journal: a crash keeps a prefix of the records; a failing disk loses no final."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import tempfile
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgecosine.errors import ConfigError
from edgecosine.node.durability.boot_clock import BootTime
from edgecosine.node.durability.interface import MAX_KEPT_ANSWERS, MAX_KEPT_BYTES, FinishedRecord
from edgecosine.node.durability.journal import DiskJournal
from edgecosine.node.durability.recovery import MAX_STARTS, RecoveredState, recover
from edgecosine.node.durability.store import FILE_NAME, JournalStore, Statement
from edgecosine.protocol.api.mqtt_message import Outgoing
from edgecosine.protocol.api.replies import FinalReply, final_message, read_final
from edgecosine.protocol.api.request import Committed, Logprobs, Request, Sampling
from edgecosine.protocol.api.request_record import RequestTicket
from tests.support.mqtt import run, running

MODEL = "tiny"
NOW = BootTime(1000.0, "boot", 50.0)
KEYS = ("a/1", "a/2", "b/1")


def ticket(key: str, reply: str = "reply") -> RequestTicket:
    client_id, _, request_id = key.partition("/")
    return RequestTicket(
        client_id, request_id, "completion", reply, b"c", wants_stream=True, digest=b"d"
    )


def request(key: str) -> Request:
    client_id, _, request_id = key.partition("/")
    how = Sampling(0.8, seed=2**64 - 1, logit_bias=((3, -1.5),), stop_token_ids=(4,))
    return Request(client_id, request_id, "completion", "x", sampling=how, stop=("s",), n=2)


def kept(key: str, payload: bytes = b"final", until: float = 9e9) -> FinishedRecord:
    return FinishedRecord(key, b"d", "done", FinalReply("1", "t", payload), until)


def recovered(journal: DiskJournal, now: BootTime = NOW) -> RecoveredState:
    return recover(journal, MODEL, now)


@dataclass
class JournalModel:
    """What a journal holds, written a second time and simply."""

    requests: dict[str, tuple[RequestTicket, dict[int, list[int]]]] = field(default_factory=dict)
    finals: dict[str, bool] = field(default_factory=dict)


class JournalMachine(RuleBasedStateMachine):
    """Records are made, written in batches, refused by the disk, and lost in crashes."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self._journal = DiskJournal(Path(self._directory.name), now=lambda: NOW)
        self._written = JournalModel()
        self._pending: list[tuple[str, tuple[object, ...], bool]] = []
        self._unwritten: list[tuple[str, tuple[object, ...], bool]] = []
        self._num_tokens: dict[tuple[str, int], int] = {}
        self._active: set[str] = set()

    def teardown(self) -> None:
        self._journal.store.close()
        self._directory.cleanup()

    def _note(self, name: str, *values: object, must_keep: bool = False) -> None:
        self._pending.append((name, values, must_keep))

    @rule(key=st.sampled_from(KEYS))
    def accept(self, key: str) -> None:
        if key in self._active:
            return
        self._active.add(key)
        self._num_tokens |= {(key, 0): 0, (key, 1): 0}
        self._journal.accept(ticket(key), request(key), MODEL, lambda _: None)
        self._note("accept", key)

    @precondition(lambda self: self._active)
    @rule(data=st.data(), choice=st.integers(0, 1), tokens=st.lists(st.integers(0, 99), min_size=1))
    def commit(self, data: st.DataObject, choice: int, tokens: list[int]) -> None:
        key = data.draw(st.sampled_from(sorted(self._active)))
        position = self._num_tokens[key, choice]
        self._num_tokens[key, choice] += len(tokens)
        self._journal.commit(key, choice, position, Committed(tuple(tokens)))
        self._note("commit", key, choice, position, tokens)

    @precondition(lambda self: self._active)
    @rule(data=st.data(), reply=st.sampled_from(["here", "there"]))
    def readdress(self, data: st.DataObject, reply: str) -> None:
        key = data.draw(st.sampled_from(sorted(self._active)))
        self._journal.readdress(ticket(key, reply))
        self._note("readdress", key, reply)

    @precondition(lambda self: self._active)
    @rule(data=st.data(), is_delivered=st.booleans())
    def finish(self, data: st.DataObject, is_delivered: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self._active)))
        self._active.remove(key)
        self._journal.finish(kept(key))
        self._note("finish", key, must_keep=True)
        if is_delivered:
            self._journal.deliver(key)
            self._note("deliver", key, must_keep=True)

    @rule(num_records=st.integers(1, 8), is_refused=st.booleans())
    def write(self, num_records: int, is_refused: bool) -> None:
        """The thread takes some records; the disk takes all of them or none."""
        batch, self._pending = self._pending[:num_records], self._pending[num_records:]
        if not batch:
            return
        handed_over = [self._journal._records.get() for _ in batch]
        with contextlib.ExitStack() as stack:
            if is_refused:
                stack.enter_context(_full_disk(self._journal.store))
            failure = self._journal._write(
                [each for records in handed_over for each in records or ()]
            )
        assert (failure is not None) == is_refused
        if is_refused:
            self._unwritten += [each for each in batch if each[2]]
            return
        for name, values, _ in (*self._unwritten, *batch):
            getattr(self, f"_do_{name}")(*values)
        self._unwritten = []

    @rule()
    def crash(self) -> None:
        """Unwritten records are lost; work continues from the others."""
        self._journal.store.close()
        self._journal = DiskJournal(Path(self._directory.name), now=lambda: NOW)
        self._pending, self._unwritten = [], []
        self._active = set(self._written.requests)
        self._num_tokens = {
            (key, choice): len(said)
            for key, (_, choices) in self._written.requests.items()
            for choice, said in choices.items()
        }

    @invariant()
    def holds_what_was_written(self) -> None:
        now = recovered(self._journal)
        assert {record.key: record.ticket for record in now.requests} == {
            key: address for key, (address, _) in self._written.requests.items()
        }
        for record in now.requests:
            _, choices = self._written.requests[record.key]
            assert record.request == request(record.key)
            for choice in (0, 1):
                said = record.resumed.get(choice, Committed())
                assert list(said.tokens) == choices[choice]
        assert {each.key: each.is_delivered for each in now.finals} == self._written.finals
        assert all(each.final == kept(each.key).final for each in now.finals)

    def _do_accept(self, key: str) -> None:
        self._written.requests[key] = (ticket(key), {0: [], 1: []})

    def _do_commit(self, key: str, choice: int, position: int, tokens: list[int]) -> None:
        if key in self._written.requests and position == len(
            self._written.requests[key][1][choice]
        ):
            self._written.requests[key][1][choice] += tokens

    def _do_readdress(self, key: str, reply: str) -> None:
        if key in self._written.requests:
            self._written.requests[key] = (ticket(key, reply), self._written.requests[key][1])

    def _do_finish(self, key: str) -> None:
        self._written.requests.pop(key, None)
        self._written.finals[key] = False

    def _do_deliver(self, key: str) -> None:
        if key in self._written.finals:
            self._written.finals[key] = True


@contextlib.contextmanager
def _full_disk(store: JournalStore) -> Iterator[None]:
    """The file may not grow by a page, as SQLite sees a full disk."""
    database, store._database = store._database, _FullDisk()  # type: ignore[assignment]
    try:
        yield
    finally:
        store._database = database


class _FullDisk:
    in_transaction = False

    def execute(self, sql: str, values: object = ()) -> None:
        if sql.startswith(("INSERT", "UPDATE", "DELETE", "BEGIN")):
            raise sqlite3.OperationalError("database or disk is full")


JournalMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestJournalMachine = JournalMachine.TestCase


def hold(directory: Path, *key: str) -> None:
    """Write a journal with some accepted requests."""
    journal = DiskJournal(directory, now=lambda: NOW)
    for each in key:
        journal.accept(ticket(each), request(each), MODEL, lambda _: None)
    _write_all(journal)
    journal.store.close()


def _write_all(journal: DiskJournal) -> None:
    while not journal._records.empty():
        batch = journal._take()
        assert batch is not None
        assert journal._write(batch) is None


def test_kept_finals_are_bounded_in_number_bytes_and_time(tmp_path: Path) -> None:
    journal = DiskJournal(tmp_path, now=lambda: NOW)
    journal.finish(kept("a/old", until=NOW.wall_s + 5))
    for number in range(MAX_KEPT_ANSWERS + 3):
        journal.finish(kept(f"a/{number}"))
    _write_all(journal)
    finals = recovered(journal).finals
    assert len(finals) == MAX_KEPT_ANSWERS
    assert finals[0].key == "a/3"
    journal.finish(kept("a/soon", until=NOW.wall_s + 5))
    _write_all(journal)
    assert recovered(journal).finals[-1].key == "a/soon"
    later = replace(NOW, boot_s=NOW.boot_s + 6)
    assert recovered(journal, later).finals[-1].key != "a/soon"
    for number in range(3):
        journal.finish(kept(f"b/{number}", bytes(MAX_KEPT_BYTES // 2 - 200)))
    _write_all(journal)
    assert [each.key for each in recovered(journal).finals] == ["b/1", "b/2"]
    journal.store.close()


@pytest.mark.parametrize("step_s", [-7200.0, 7200.0])
def test_step_of_the_wall_clock_changes_no_retention(step_s: float, tmp_path: Path) -> None:
    def after(boot_s: float) -> BootTime:
        return replace(NOW, wall_s=NOW.wall_s + step_s, boot_s=NOW.boot_s + boot_s)

    now = NOW
    journal = DiskJournal(tmp_path, now=lambda: now)
    journal.finish(kept("a/before", until=journal.wall_s() + 60))
    _write_all(journal)
    now = after(1)
    journal.finish(kept("a/after", until=journal.wall_s() + 60))
    _write_all(journal)
    journal.store.close()
    again = DiskJournal(tmp_path, now=lambda: now)
    for boot_s, keys in ((2, ["a/before", "a/after"]), (60.5, ["a/after"]), (62, [])):
        assert [each.key for each in recovered(again, after(boot_s)).finals] == keys
    again.store.close()


def test_time_across_boots_is_taken_from_the_wall_clock(tmp_path: Path) -> None:
    journal = DiskJournal(tmp_path, now=lambda: NOW)
    journal.finish(kept("a/1", until=journal.wall_s() + 60))
    _write_all(journal)
    journal.store.close()
    booted = BootTime(NOW.wall_s + 50, "other", 1.0)
    again = DiskJournal(tmp_path, now=lambda: booted)
    assert [each.key for each in recovered(again, booted).finals] == ["a/1"]
    assert recovered(again, replace(booted, boot_s=12.0)).finals == ()
    again.store.close()


def test_log_probabilities_are_recovered(tmp_path: Path) -> None:
    journal = DiskJournal(tmp_path, now=lambda: NOW)
    journal.accept(ticket("a/1"), request("a/1"), MODEL, lambda _: None)
    said = Committed((5, 7), (Logprobs(-0.1, ((5, -0.1), (3, -2.5))), Logprobs(float("-inf"))))
    journal.commit("a/1", 1, 0, said)
    _write_all(journal)
    [record] = recovered(journal).requests
    assert record.resumed == {1: said}
    journal.store.close()


def test_second_node_cannot_use_the_directory(tmp_path: Path) -> None:
    journal = DiskJournal(tmp_path)
    with pytest.raises(ConfigError, match="another node uses this one"):
        DiskJournal(tmp_path)
    journal.store.close()
    DiskJournal(tmp_path).store.close()


def test_unusable_directory_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="state_dir"):
        DiskJournal(tmp_path / "file" / "state")


def test_journal_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    DiskJournal(tmp_path / "state").store.close()
    assert (tmp_path / "state").stat().st_mode & 0o77 == 0
    assert (tmp_path / "state" / FILE_NAME).stat().st_mode & 0o77 == 0


def test_newer_journal_is_refused_unchanged(tmp_path: Path) -> None:
    hold(tmp_path, "a/1")
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="schema 99"):
        DiskJournal(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        assert database.execute("SELECT count(*) FROM jobs").fetchone() == (1,)


@pytest.mark.parametrize("damage", ["overwritten", "cut", "nonsense"])
def test_damaged_journal_is_set_aside(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hold(tmp_path, *(f"a/{number}" for number in range(200)))
    file = tmp_path / FILE_NAME
    content = bytearray(file.read_bytes())
    match damage:
        case "overwritten":
            content[4096:] = os.urandom(len(content) - 4096)
        case "cut":
            del content[len(content) // 2 :]
        case "nonsense":
            content[:] = b"no database" * 100
    file.write_bytes(content)
    journal = DiskJournal(tmp_path, now=lambda: NOW)
    assert recovered(journal) == RecoveredState()
    assert journal.store.damage is not None
    assert journal.store.damage.read_bytes() == content
    assert "damaged" in caplog.text
    journal.accept(ticket("a/1"), request("a/1"), MODEL, lambda _: None)
    _write_all(journal)
    assert len(recovered(journal).requests) == 1
    journal.store.close()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_torn_log_keeps_earlier_records(share: float, tmp_path: Path) -> None:
    """A machine that lost power may leave a part of the write-ahead log."""
    journal = DiskJournal(tmp_path / "whole", now=lambda: NOW)
    keys = [f"a/{number}" for number in range(30)]
    for key in keys:
        journal.accept(ticket(key), request(key), MODEL, lambda _: None)
        _write_all(journal)
    (tmp_path / "torn").mkdir()
    for suffix in ("", "-wal"):
        content = (tmp_path / "whole" / (FILE_NAME + suffix)).read_bytes()
        size = int(len(content) * share) if suffix else len(content)
        (tmp_path / "torn" / (FILE_NAME + suffix)).write_bytes(content[:size])
    journal.store.close()
    torn = DiskJournal(tmp_path / "torn", now=lambda: NOW)
    assert torn.store.damage is None
    found = [record.key for record in recovered(torn).requests]
    assert found == keys[: len(found)]
    assert (len(found) > 0) == (share > 0.0)
    torn.store.close()


def test_request_of_another_model_or_with_crashes_is_not_run(tmp_path: Path) -> None:
    journal = DiskJournal(tmp_path, now=lambda: NOW)
    journal.accept(ticket("a/1"), request("a/1"), "other", lambda _: None)
    for key in ("a/2", "b/1"):
        journal.accept(ticket(key), request(key), MODEL, lambda _: None)
    for number in range(MAX_STARTS + 2):
        journal.begin("a/2")
        journal.begin("b/1")
        journal.commit("b/1", 0, number, Committed((number,)))
    _write_all(journal)
    faults = [record.fault.code if record.fault else None for record in recovered(journal).requests]
    assert faults == ["model_changed", "internal_error", None]
    journal.store.close()


def test_age_is_taken_from_the_boot_clock() -> None:
    then = BootTime(1000.0, "boot", 50.0)
    assert BootTime(9999.0, "boot", 53.0).since(then) == 3.0
    assert BootTime(10.0, "boot", 53.0).since(then) == 3.0
    assert BootTime(1010.0, "other", 7.0).since(then) == 10.0
    assert BootTime(900.0, "other", 7.0).since(then) == 0.0
    assert BootTime(1010.0, "", 7.0).since(replace(then, boot="")) == 10.0
    first, second = BootTime.now(), BootTime.now()
    assert 0.0 <= second.since(first) < 60.0


@contextlib.asynccontextmanager
async def writing(journal: DiskJournal) -> AsyncIterator[DiskJournal]:
    async with running(journal.run()):
        yield journal


def test_full_disk_refuses_requests_and_delays_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = DiskJournal(tmp_path, now=lambda: NOW)
        async with writing(journal):
            outcomes: list[bool] = []
            journal.accept(ticket("a/1"), request("a/1"), MODEL, outcomes.append)
            await journal.settled()
            with _full_disk(journal.store):
                journal.accept(ticket("a/2"), request("a/2"), MODEL, outcomes.append)
                journal.finish(kept("a/1"))
                await journal.settled()
                assert journal.failure is not None
                assert "full" in journal.failure
            journal.accept(ticket("b/1"), request("b/1"), MODEL, outcomes.append)
            await journal.settled()
            assert journal.failure is None
        assert outcomes == [True, False, True]
        again = DiskJournal(tmp_path, now=lambda: NOW)
        assert [record.key for record in recovered(again).requests] == ["b/1"]
        assert [each.key for each in recovered(again).finals] == ["a/1"]
        again.store.close()

    run(scenario())


def test_unwritten_ends_are_retried_without_a_new_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecosine.node.durability.journal._CHECK_S", 0.01)

    async def scenario() -> None:
        journal = DiskJournal(tmp_path, now=lambda: NOW)
        async with writing(journal):
            with _full_disk(journal.store):
                journal.finish(kept("a/1"))
                await journal.settled()
                assert journal.failure is not None
            while journal.failure is not None:  # noqa: ASYNC110 -- there is no event for that
                await asyncio.sleep(0.001)
            assert [each.key for each in recovered(journal).finals] == ["a/1"]

    run(scenario())


def test_unwritten_ends_are_written_before_the_journal_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = DiskJournal(tmp_path, now=lambda: NOW)
        async with writing(journal):
            with _full_disk(journal.store):
                journal.finish(kept("a/1"))
                await journal.settled()
        again = DiskJournal(tmp_path, now=lambda: NOW)
        assert [each.key for each in recovered(again).finals] == ["a/1"]
        again.store.close()

    run(scenario())


def test_once_kept_waits_for_the_disk_up_to_a_limit(tmp_path: Path) -> None:
    """In order, behind an end that the disk refused; in the end without it."""

    async def scenario() -> None:
        journal = DiskJournal(tmp_path, now=lambda: NOW, hold_s=0.3)
        called: list[str] = []
        is_late = asyncio.Event()
        async with writing(journal):
            journal.once_kept(lambda: called.append("at once"))
            assert called == ["at once"]
            with _full_disk(journal.store):
                journal.finish(kept("a/1"))
                journal.once_kept(lambda: called.append("a/1"))
                await journal.settled()
                assert called == ["at once"]
            journal.finish(kept("a/2"))
            journal.once_kept(lambda: called.append("a/2"))
            await journal.settled()
            await asyncio.sleep(0)
            assert called == ["at once", "a/1", "a/2"]
            with _full_disk(journal.store):
                journal.finish(kept("b/1"))
                journal.once_kept(is_late.set)
                await journal.settled()
                assert not is_late.is_set()
                await is_late.wait()

    run(scenario())


def test_hanging_disk_blocks_no_callback(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = DiskJournal(tmp_path, stuck_s=0.2)
        is_answering = threading.Event()
        write = journal.store.write

        def hang(statements: Iterable[Statement], *, is_lasting: bool) -> None:
            is_answering.wait(20)
            write(statements, is_lasting=is_lasting)

        journal.store.write = hang  # type: ignore[method-assign]
        async with writing(journal):
            outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            journal.accept(ticket("a/1"), request("a/1"), MODEL, outcome.set_result)
            assert not await outcome
            journal.forget("a/1")
            await journal.settled()
            assert journal.failure is not None
            is_answering.set()
        again = DiskJournal(tmp_path)
        assert recovered(again) == RecoveredState()
        again.store.close()

    run(scenario())


def test_callbacks_keep_the_order_of_records(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = DiskJournal(tmp_path)
        heard: list[int] = []
        async with writing(journal):
            for number in range(300):
                if number % 3 == 0:
                    journal.commit("a/1", 0, number, Committed((1,)))
                journal.then(lambda number=number: heard.append(number))  # type: ignore[misc]
            await journal.settled()
        assert heard == list(range(300))

    run(scenario())


def test_failing_callback_does_not_block_the_next_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        called: list[str] = []

        def fail(_: bool) -> None:
            called.append("first")
            raise ValueError("bug")

        async with writing(DiskJournal(tmp_path)) as journal:
            journal.accept(ticket("a/1"), request("a/1"), MODEL, fail)
            journal.then(lambda: called.append("second"))
            await journal.settled()
        assert called == ["first", "second"]

    run(scenario())
    assert "ValueError: bug" in caplog.text


def test_final_is_stored_as_its_publication(tmp_path: Path) -> None:
    """Both earlier and later versions read it."""
    stored = msgspec.msgpack.encode(
        Outgoing(
            "reply", b"{}", correlation=b"c", content_type="application/json",
            user=(("status", "404"), ("id", "1")),
        )
    )  # fmt: skip
    final = FinalReply("1", "reply", b"{}", status="404", correlation=b"c")
    assert msgspec.msgpack.encode(final_message(final)) == stored
    assert read_final(msgspec.msgpack.decode(stored, type=Outgoing)) == final
