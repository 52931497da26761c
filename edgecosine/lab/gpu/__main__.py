"""Measure and train on a machine with an NVIDIA GPU and no network: `scripts/gpu`.

Parts run one after another in separate processes, within a common time limit; each writes a log
and JSON to a folder. Parts with missing packages are left out and reported. On a machine with a
network, `--pack` collects the missing packages in a folder.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from edgecosine import models
from edgecosine.errors import EdgecosineError, LabError
from edgecosine.lab.gpu.bundle import join, pack, unpack
from edgecosine.lab.gpu.parts import PARTS, GpuPlan, absent_options
from edgecosine.lab.gpu.run_parts import run_parts, table

_BUNDLE = Path(".train/gpu-bundle")


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    listed = "\n".join(f"{part.name:8} {part.description}" for part in PARTS.values())
    parser.add_argument("--part", action="append", choices=list(PARTS), dest="parts",
                        help=f"run only this part; may be repeated [all]:\n{listed}")  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto",
                        help="cpu: tests the script with toy models [auto]")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), metavar="DIR",
                        help="folder for the results [gpu-results]")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=9.0, metavar="N",
                        help="time limit for all parts together [9]")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="toy models, to test the parts")
    parser.add_argument("--target", default=models.DEFAULT_TARGET,
                        help="model to train drafters for "
                        f"[{models.DEFAULT_TARGET}]")  # fmt: skip
    parser.add_argument("--scratch", type=Path, default=Path(".train/gpu"), metavar="DIR",
                        help="folder of checkpoints, from which an interrupted training resumes "
                        "[.train/gpu]")  # fmt: skip
    parser.add_argument("--unpack", type=Path, default=_BUNDLE, metavar="DIR",
                        help=f"folder made by --pack, if it exists [{_BUNDLE}]")  # fmt: skip
    parser.add_argument("--pack", type=Path, nargs="?", const=_BUNDLE, metavar="DIR",
                        help="only collect wheels and the target's file for a machine without a\n"
                        f"network [{_BUNDLE}]")  # fmt: skip
    parser.add_argument("--piece-mib", type=int, default=20, metavar="N",
                        help="maximum size of a piece of the target's file, in MiB "
                        "[20]")  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `scripts/gpu`; returns 1 when a part failed."""
    chosen = _arguments(arguments)
    try:
        if chosen.pack is not None:
            for path in pack(chosen.pack, chosen.piece_mib << 20):
                print(f"{Path(path).stat().st_size / (1 << 20):6.1f} MiB  {path}")
            return 0
        return _run(chosen)
    except EdgecosineError as error:
        print(f"scripts/gpu: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/gpu: stopped", file=sys.stderr)
        return 130


def _run(chosen: argparse.Namespace) -> int:
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if (site := unpack(chosen.unpack)) is not None:
        sys.path.insert(0, str(site.resolve()))
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(site.resolve()), os.environ.get("PYTHONPATH")))
        )
    if _unpack_target(chosen.unpack):
        environment["EDGECOSINE_MODELS"] = str((chosen.unpack / "models").resolve())
        os.environ |= environment
    device = _device(chosen.device)
    plan = GpuPlan(
        device=device,
        out=chosen.out.resolve(),
        scratch=chosen.scratch.resolve(),
        is_quick=chosen.quick or device == "cpu",
        target=chosen.target,
        has_target=Path(chosen.target).is_file() or _is_here(chosen.target),
    )
    for folder in (plan.out, plan.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    for name in absent_options():
        print(f"not installed (optional): {name}")
    parts = [part for name, part in PARTS.items() if name in (chosen.parts or PARTS)]
    endings = asyncio.run(run_parts(parts, plan, chosen.minutes, environment, _notify))
    print(table(endings))
    return int(any(one.is_fault for one in endings))


def _unpack_target(folder: Path) -> bool:
    entry = models.CATALOGUE[models.DEFAULT_TARGET]
    whole = folder / "models" / entry.name / entry.file
    return join(folder / "model", whole, entry.num_bytes, entry.sha256)


def _is_here(name: str) -> bool:
    return models.is_known(name) and models.find(name) is not None


def _device(wanted: str) -> str:
    """The device in torch's spelling.

    Raises LabError when there is no GPU.
    """
    if wanted == "cpu":
        return wanted
    import torch

    cuda: Any = torch.cuda
    if cuda.is_available():
        return "cuda:0"
    if wanted == "cuda":
        raise LabError("no CUDA device was found, or torch was built without CUDA")
    return "cpu"


def _notify(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
