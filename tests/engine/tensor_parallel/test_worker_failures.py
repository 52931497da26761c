"""Ranks that end, stop or cannot load: rank 0 names them, and no process hangs or remains."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.loading.load_ranks import load_over_ranks
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.tensor_parallel.messages import StartWorker, WorkerReady, WorkerStarted
from edgecosine.engine.tensor_parallel.model import ParallelModel
from edgecosine.engine.tensor_parallel.workers import WorkerProcess
from edgecosine.errors import EngineError, ModelUnavailable
from tests.engine.models import build, save

PATIENCE_S = 60.0


def _options(model: str) -> LoadOptions:
    return LoadOptions(model, device="cpu", threads=1, slots=1, tensor_parallel=2)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(build("llama"), tmp_path_factory.mktemp("models"))


def _one_row(model: ParallelModel) -> torch.Tensor:
    rows = RowBuilder()
    rows.add_sequence(0, 0, [5])
    return model.forward(rows.build(), [0])


def test_killed_rank_is_named_and_nothing_hangs(llama: str) -> None:
    model, _, _ = load_over_ranks(_options(llama))
    [pid] = model.pids
    _one_row(model)
    os.kill(pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(EngineError, match=rf"rank 1 \(process {pid}\) ended by SIGKILL"):
            _one_row(model)


def test_stopped_rank_is_ended(llama: str) -> None:
    model, _, _ = load_over_ranks(_options(llama), forward_timeout_s=5.0)
    [pid] = model.pids
    handle = os.pidfd_open(pid)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match="no answer from the ranks"):
        _one_row(model)
    assert select.select([handle], [], [], PATIENCE_S)[0], "the rank is still there"
    os.close(handle)


_PARENT = """
import sys
from edgecosine.engine.options import LoadOptions
from edgecosine.engine.tensor_parallel.messages import StartWorker, WorkerStarted
from edgecosine.engine.tensor_parallel.workers import WorkerProcess

rank = WorkerProcess(StartWorker(LoadOptions("m", device="cpu"), 1, 2, int(sys.argv[1]), 3600.0))
rank.expect(WorkerStarted, 60.0)
print(rank.process.pid, flush=True)
sys.stdin.read()
"""


def test_rank_ends_when_rank_0_is_killed() -> None:
    # It waits for a second rank that never comes, as it would wait in a broken pass.
    store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    command = [sys.executable, "-c", _PARENT, str(store.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        handle = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert select.select([handle], [], [], PATIENCE_S)[0], "the rank outlives rank 0"
    os.close(handle)


def test_failure_to_load_on_a_rank_reaches_rank_0() -> None:
    store = TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    options = LoadOptions("/nowhere", device="cpu", threads=1)
    rank = WorkerProcess(StartWorker(options, 0, 1, store.port, PATIENCE_S))
    try:
        rank.expect(WorkerStarted, PATIENCE_S)
        with pytest.raises(EngineError, match="rank 0 failed: ModelUnavailable: cannot load"):
            rank.expect(WorkerReady, PATIENCE_S)
    finally:
        rank.close()


def test_damaged_weights_are_refused_as_in_one_process(llama: str, tmp_path: Path) -> None:
    for file in Path(llama).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelUnavailable, match="cannot load"):
        load_over_ranks(_options(str(tmp_path)))
    assert not torch.distributed.is_initialized()
