"""Reads the processor time of a lab's processes and threads (Linux)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgecosine.errors import LabError
from edgecosine.lab.cluster import TARGET, LabCluster

_PROC = Path("/proc")
_RAN, _WAITED = 0, 1
"""Indices of the fields of a thread's schedstat, which are in nanoseconds."""


@dataclass(frozen=True, slots=True)
class ProcessorTimes:
    """Processor seconds since the processes started."""

    target_loop_s: float
    drafter_loops_s: float
    traffic_s: float
    """Processes that carry the traffic of links and MQTT."""
    delivery_s: float
    """Broker and client processes."""
    target_waited_s: float
    """Time in which the target's threads were ready but waited for the processor."""

    def since(self, former: ProcessorTimes) -> ProcessorTimes:
        """The times since a former reading."""
        return ProcessorTimes(
            self.target_loop_s - former.target_loop_s,
            self.drafter_loops_s - former.drafter_loops_s,
            self.traffic_s - former.traffic_s,
            self.delivery_s - former.delivery_s,
            self.target_waited_s - former.target_waited_s,
        )


def read_processor_times(cluster: LabCluster) -> ProcessorTimes:
    """Read the processor times of a cluster so far.

    Raises LabError when the kernel does not provide it.
    """
    nodes = {cluster.local.pid(node_id): node_id for node_id in (TARGET, *cluster.drafters)}
    traffic_s = delivery_s = 0.0
    for pid, command in _descendants(os.getpid()).items():
        if pid in nodes:
            continue
        if (
            "edgecosine.lab.network.netns.hub" in command
            or "edgecosine.lab.network.tcp_relay.relay" in command
        ):
            traffic_s += _process_s(pid)
        else:
            delivery_s += _process_s(pid)
    loops = {node_id: loop_s(pid) for pid, node_id in nodes.items()}
    return ProcessorTimes(
        target_loop_s=loops.pop(TARGET),
        drafter_loops_s=sum(loops.values()),
        traffic_s=traffic_s,
        delivery_s=delivery_s + _process_s(os.getpid()),
        target_waited_s=_process_s(cluster.local.pid(TARGET), _WAITED),
    )


def loop_s(pid: int) -> float:
    """Processor seconds of a process's event loop, which runs on its first thread.

    Raises LabError when the kernel does not provide it.
    """
    return _thread_s(pid, pid)


def _descendants(pid: int) -> Mapping[int, str]:
    found: dict[int, str] = {}
    for task in (_PROC / str(pid) / "task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found[child] = (_PROC / str(child) / "cmdline").read_text().replace("\0", " ")
            found |= _descendants(child)
    return found


def _process_s(pid: int, field: int = _RAN) -> float:
    tasks = (_PROC / str(pid) / "task").iterdir()
    return sum(_thread_s(pid, int(task.name), field) for task in tasks)


def _thread_s(pid: int, thread: int, field: int = _RAN) -> float:
    """Seconds of one thread; a process's first thread has its id."""
    try:
        stat = (_PROC / str(pid) / "task" / str(thread) / "schedstat").read_text()
    except FileNotFoundError as error:
        raise LabError("this kernel does not provide the processor time of threads") from error
    return int(stat.split()[field]) / 1e9
