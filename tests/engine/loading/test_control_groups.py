"""Memory limits of control groups, of both versions, nested, and seen from within a container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecosine.engine.loading import device
from edgecosine.engine.loading.control_groups import group_memory

V1 = "31 25 0:27 {mounted} /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
V2 = "31 25 0:27 {mounted} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
OTHERS = (
    "22 1 8:1 / / rw - ext4 /dev/sda rw\n"
    "32 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
)
MIB = 1 << 20


def _proc(root: Path, mount: str, groups: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(OTHERS + mount)
    (root / "proc/self/cgroup").write_text(groups)


def _group(path: Path, files: dict[str, str]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text)


def _v2(path: Path, limit: str, used: int, inactive: int = 0, high: str = "max") -> None:
    stat = f"anon 1\ninactive_file {inactive}\n"
    _group(
        path,
        {
            "memory.max": f"{limit}\n",
            "memory.high": f"{high}\n",
            "memory.current": str(used),
            "memory.stat": stat,
        },
    )


def test_lowest_limit_of_all_parent_groups_applies(tmp_path: Path) -> None:
    _proc(tmp_path, V2.format(mounted="/"), "0::/user.slice/node.scope\n")
    top = tmp_path / "sys/fs/cgroup"
    _group(top, {})
    _v2(top / "user.slice", str(100 * MIB), 70 * MIB, inactive=10 * MIB)
    _v2(top / "user.slice/node.scope", "max", 20 * MIB)
    assert group_memory(tmp_path) == 40 * MIB
    _v2(top / "user.slice/node.scope", str(50 * MIB), 20 * MIB)
    assert group_memory(tmp_path) == 30 * MIB
    _v2(top / "user.slice/node.scope", "max", 20 * MIB, high=str(25 * MIB))
    assert group_memory(tmp_path) == 5 * MIB


def test_version_1_with_a_host_path_inside_a_container(tmp_path: Path) -> None:
    groups = "4:cpu,cpuacct:/\n3:memory:/docker/abc\n0::/\n"
    _proc(tmp_path, V1.format(mounted="/docker/abc"), groups)
    files = {
        "memory.limit_in_bytes": str(900 * MIB),
        "memory.usage_in_bytes": str(300 * MIB),
        "memory.stat": f"inactive_file 0\ntotal_inactive_file {100 * MIB}\n",
    }
    _group(tmp_path / "sys/fs/cgroup/memory", files)
    assert group_memory(tmp_path) == 700 * MIB


def test_path_outside_the_mount_means_the_mount(tmp_path: Path) -> None:
    _proc(tmp_path, V2.format(mounted="/docker/abc"), "0::/../../other\n")
    _v2(tmp_path / "sys/fs/cgroup", str(64 * MIB), 0)
    assert group_memory(tmp_path) == 64 * MIB


@pytest.mark.parametrize("limit", ["max", str((1 << 63) - 4096)])
def test_no_limit_is_none(tmp_path: Path, limit: str) -> None:
    _proc(tmp_path, V2.format(mounted="/"), "0::/\n")
    _v2(tmp_path / "sys/fs/cgroup", limit, 5)
    assert group_memory(tmp_path) is None


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert group_memory(tmp_path) is None


def test_full_group_leaves_no_memory(tmp_path: Path) -> None:
    _proc(tmp_path, V2.format(mounted="/"), "0::/\n")
    _v2(tmp_path / "sys/fs/cgroup", str(MIB), 2 * MIB)
    assert group_memory(tmp_path) == 0


def test_memory_of_the_processor_is_what_the_group_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "group_memory", lambda: 5 * MIB)
    assert device.available_memory("cpu") == 5 * MIB
    monkeypatch.setattr(device, "group_memory", lambda: None)
    assert device.available_memory("cpu") > 5 * MIB


def test_real_limit_is_read() -> None:
    v1 = Path("/sys/fs/cgroup/memory")
    top = v1 if v1.is_dir() else Path("/sys/fs/cgroup")
    group = top / f"edgecosine-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("control groups cannot be made here")
    try:
        name = "memory.limit_in_bytes" if v1.is_dir() else "memory.max"
        if not (group / name).exists():
            pytest.skip("control groups do not count memory here")
        (group / name).write_text(str(512 * MIB))
        program = (
            f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n"
            "from edgecosine.engine.loading.control_groups import group_memory\n"
            "print(group_memory())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert 400 * MIB < int(done.stdout) <= 512 * MIB, done.stderr
    finally:
        group.rmdir()
