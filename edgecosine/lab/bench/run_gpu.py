"""Compares decoding and verification on a GPU with its memory bandwidth, and counts the answers
that rounding changes.

A pass that generates few tokens reads every weight once and computes little, so its duration is at
least the weights' bytes over the bandwidth. Weights are random, since they do not affect durations.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgecosine import zoo
from edgecosine.engine.base import DraftWork, TargetEngine, VerifyWork
from edgecosine.engine.cuda.graphs import Capture, capture_for, use_own_stream
from edgecosine.engine.cuda.padded_model import RUNS_TO_REPLAY, PaddedModel
from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.options import LoadOptions, Quantize
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.errors import LabError, ModelUnavailable, ModelUnsupported
from edgecosine.lab.engine_calls import forked_tree, prefill
from edgecosine.lab.exactness.divergence import count_diverging
from edgecosine.lab.figures import Figure, Keep, Notify, counted, interval
from edgecosine.lab.load_generator import prompts_in_turn
from edgecosine.protocol.api.request import Sampling
from edgecosine.protocol.wire.messages import SharedNoise
from edgecosine.protocol.wire.tree import EMPTY_TREE

_LLAMA = {"model_type": "llama", "vocab_size": 128_256, "num_key_value_heads": 8}
TARGETS: Mapping[str, Mapping[str, Any]] = {
    "1b": {
        **_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "head_dim": 64, "tie_word_embeddings": True,
    },
    "8b": {
        **_LLAMA, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "head_dim": 128,
    },
}  # fmt: skip
DRAFTER: Mapping[str, Any] = {
    **_LLAMA, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
PASSES = {"decode_1x1": (1, 0), "verify_1x8": (1, 8), "verify_8x4": (8, 4), "verify_8x8": (8, 8)}
"""Number of sessions, and nodes of each session's tree, by the name of the pass."""
_DRAFT_STEPS = 8


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """Shapes and sizes of the measurement; tests use small ones."""

    device: str = "cuda"
    repeats: int = 20
    targets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: TARGETS)
    drafter: Mapping[str, Any] = field(default_factory=lambda: DRAFTER)
    context: int = 512
    copied_bytes: int = 1 << 30
    prompts: int = 64
    new_tokens: int = 128


_TINY: Mapping[str, Any] = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def toy_settings(device: str) -> GpuSettings:
    """Small settings that test the measurement on any device."""
    return GpuSettings(
        device=device, repeats=2, targets={"tiny": _TINY}, drafter=_TINY, context=96,
        copied_bytes=1 << 16, prompts=4, new_tokens=12,
    )  # fmt: skip


def run_gpu_bench(settings: GpuSettings, notify: Notify, keep: Keep) -> dict[str, Figure]:
    """Measure bandwidth, passes and rounding; returns the figures.

    Figures and the seconds of every pass are saved after each model.

    Raises LabError when there is no such device.
    """
    device = torch.device(settings.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LabError("there is no CUDA device here, or this torch is not built for one")
    use_own_stream(device)
    figures: dict[str, Figure] = {}
    runs: list[dict[str, Any]] = []
    bandwidth = measure_bandwidth(device, settings.copied_bytes, settings.repeats)
    figures["bandwidth_gb_s"] = _scaled(bandwidth, 1e-9, "GB/s")
    notify(f"memory bandwidth {figures['bandwidth_gb_s'].value:.0f} GB/s")
    for name, shape in settings.targets.items():
        found = _target_figures(name, shape, device, settings, bandwidth.value, runs)
        figures |= found
        keep(figures, runs)
        notify(
            ", ".join(f"{key} {figure.value:.2f} {figure.unit}" for key, figure in found.items())
        )
    for quantize, step in _drafter_steps(settings, runs, notify):
        figures[f"drafter_{quantize}_step_ms"] = step
        keep(figures, runs)
    checked, diverging = _divergence(settings)
    figures["answers_checked"] = counted(checked, "answers")
    figures["answers_diverging"] = counted(diverging, "answers")
    keep(figures, runs)
    return figures


def measure_bandwidth(device: torch.device, size: int, repeats: int) -> Figure:
    """Bytes per second, read and written together, of a copy within the device's memory."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates = []
    for _ in range(repeats + 1):
        _wait(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        rates.append(2 * size / (time.perf_counter() - started))
    return interval(rates[1:], unit="B/s")


def _target_figures(
    name: str,
    shape: Mapping[str, Any],
    device: torch.device,
    settings: GpuSettings,
    bandwidth: float,
    runs: list[dict[str, Any]],
) -> dict[str, Figure]:
    """Milliseconds of each pass with and without CUDA graphs, and its time over the limit of the
    bandwidth."""
    figures: dict[str, Figure] = {}
    model = random_model(shape, device)
    modes: dict[str, Capture | None] = {"": capture_for(device), "eager_": None}
    for mode, capture in modes.items():
        static = PaddedModel(model, slots=8, slot_size=settings.context + 64, capture=capture)
        floor_s = _read_bytes(model) / bandwidth
        engine = TransformerTarget(static, slots=8, max_context=settings.context)
        for kind, (sessions, nodes) in PASSES.items():
            times = _pass_times(engine, sessions, nodes, settings)
            runs.append({"target": name, "pass": mode + kind, "seconds": times})
            milliseconds = interval([1e3 * t for t in times], unit="ms")
            figures[f"{name}_{mode}{kind}_ms"] = milliseconds
            if not mode:
                figures[f"{name}_{kind}_over_floor"] = interval([t / floor_s for t in times])
        del static, engine
        _free(device)
    return figures


def random_model(shape: Mapping[str, Any], device: torch.device) -> Any:
    """A bfloat16 model of a shape, initialised on the device."""
    settings = dict(shape)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with device:
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="eager"
        )  # type: ignore[no-untyped-call]
    return model.eval()


def _read_bytes(model: Any) -> int:
    """Bytes of weights that a pass reads: all except an embedding that is not the output layer."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    embedding = model.get_input_embeddings().weight
    is_tied = embedding is model.get_output_embeddings().weight
    return int(total if is_tied else total - embedding.numel() * embedding.element_size())


def _pass_times(
    engine: TargetEngine, sessions: int, nodes: int, settings: GpuSettings
) -> list[float]:
    """Seconds of whole rounds: pass, sampling, walk and compaction."""
    prompt = tuple(3 + i % 50 for i in range(settings.context // 2))
    half = nodes // 2
    tree = forked_tree(range(1, half + 1), range(half + 1, nodes + 1)) if nodes else EMPTY_TREE
    works = [
        VerifyWork(f"{sessions}-{nodes}-{key}", (*prompt, key), len(prompt), tree, Sampling())
        for key in range(sessions)
    ]
    prefill(engine, works)
    times = []
    for _ in range(RUNS_TO_REPLAY + settings.repeats):
        started = time.perf_counter()
        engine.step(works)
        times.append(time.perf_counter() - started)
    for work in works:
        engine.release(work.key)
    return times[RUNS_TO_REPLAY:]


def _drafter_steps(
    settings: GpuSettings, runs: list[dict[str, Any]], notify: Notify
) -> Iterator[tuple[str, Figure]]:
    """Milliseconds per draft token of one request, for each quantisation."""
    with tempfile.TemporaryDirectory() as scratch:
        random_model(settings.drafter, torch.device("cpu")).save_pretrained(scratch)
        for file in (zoo.DIRECTORY / zoo.TARGET).glob("tokenizer*"):
            shutil.copy(file, Path(scratch) / file.name)
        kinds: tuple[Quantize, ...] = ("none", "int8", "nf4")
        for quantize in kinds:
            options = LoadOptions(
                scratch, device=settings.device, quantize=quantize, slots=2,
                context=settings.context,
            )  # fmt: skip
            try:
                drafter, _ = load_drafter(options)
            except (ModelUnavailable, ModelUnsupported) as error:
                notify(f"{quantize}: {error}")
                continue
            times = []
            for number in range(RUNS_TO_REPLAY + settings.repeats):
                tokens = tuple(3 + (i + number) % 50 for i in range(32))
                work = DraftWork(str(number), tokens, _DRAFT_STEPS, 1, SharedNoise())
                started = time.perf_counter()
                drafter.draft([work])
                times.append((time.perf_counter() - started) / _DRAFT_STEPS)
                drafter.release(work.key)
            times = times[RUNS_TO_REPLAY:]
            runs.append({"drafter": quantize, "seconds": times})
            yield quantize, interval([1e3 * t for t in times], unit="ms")
            del drafter
            _free(torch.device(settings.device))


def _divergence(settings: GpuSettings) -> tuple[int, int]:
    engine, loaded = load_target(LoadOptions(zoo.TARGET, device=settings.device, slots=8))
    assert loaded.codec is not None
    prompts = [loaded.codec.encode(text) for text in prompts_in_turn()[: settings.prompts]]
    return len(prompts), count_diverging(engine, prompts, settings.new_tokens)


def _scaled(figure: Figure, factor: float, unit: str) -> Figure:
    low, high = (None if end is None else end * factor for end in (figure.low, figure.high))
    return Figure(figure.value * factor, low, high, unit, figure.n)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
