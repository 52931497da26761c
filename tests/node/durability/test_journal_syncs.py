"""Only the acceptance of a request must survive a loss of power."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from edgecosine.node.durability import journal as journal_module
from edgecosine.node.durability.journal import DiskJournal
from edgecosine.node.durability.store import Statement
from edgecosine.protocol.api.request import Committed
from tests.node.durability.test_journal import MODEL, kept, request, ticket
from tests.support.mqtt import run, running


def test_only_acceptance_is_synced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MAX_BATCH", 1)
    journal = DiskJournal(tmp_path)
    written: list[tuple[str, bool]] = []
    write = journal.store.write

    def note(statements: Iterable[Statement], *, is_lasting: bool) -> None:
        batch = list(statements)
        written.append((batch[-1][0], is_lasting))
        write(batch, is_lasting=is_lasting)

    monkeypatch.setattr(journal.store, "write", note)

    async def scenario() -> None:
        async with running(journal.run()):
            journal.accept(ticket("a/1"), request("a/1"), MODEL, lambda _: None)
            journal.readdress(ticket("a/1", "elsewhere"))
            journal.begin("a/1")
            journal.commit("a/1", 0, 0, Committed((1, 2)))
            journal.leave("a/1")
            journal.finish(kept("a/1"))
            journal.deliver("a/1")
            journal.forget("a/1")
            await journal.settled()

    run(scenario())
    synced = [sql for sql, is_lasting in written if is_lasting]
    assert len(synced) == 1
    assert synced[0].startswith("INSERT OR REPLACE INTO jobs")
    assert len(written) == 8


def test_lasting_record_syncs_the_file(tmp_path: Path) -> None:
    """2 is FULL: each transaction is on the disk when it ends; 1, NORMAL, is not."""
    journal = DiskJournal(tmp_path)
    for is_lasting, mode in ((True, 2), (False, 1), (True, 2)):
        journal.store.write([], is_lasting=is_lasting)
        assert journal.store.read("PRAGMA synchronous") == [(mode,)]
    journal.store.close()
