"""Workers of a benchmark do not outlive it."""

from __future__ import annotations

import signal
import subprocess
import sys

PROGRAM = """
import os, signal
from edgecosine.lab.worker_pool import worker_pool

def work():
    os.write(1, f"{os.getpid()}\\n".encode())
    signal.pause()

if __name__ == "__main__":
    with worker_pool(1) as pool:
        pool.submit(work).result()
"""


def test_workers_end_when_the_benchmark_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as benchmark:
        assert benchmark.stdout is not None
        worker = int(benchmark.stdout.readline())
        assert worker != benchmark.pid
        benchmark.send_signal(signal.SIGKILL)
        assert benchmark.stdout.read() == b"", "the pipe ends with the last process that has it"
