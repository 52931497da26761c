"""The models for which exactness is checked: the zoo's target, and random models of realistic
width, dense and with experts.

Random weights reveal a difference in any sum: no weight is close to zero, and near-ties between
tokens are frequent.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from edgecosine import zoo
from edgecosine.engine.cpu.blocks import round_weights
from edgecosine.engine.cpu.kernel_library import Kernels
from edgecosine.engine.cpu.native_llama import NativeLlama, can_fuse
from edgecosine.engine.forward_pass import ForwardModel
from edgecosine.engine.options import WeightForm
from edgecosine.engine.slot_model import SlotModel
from edgecosine.engine.target.exactness import Decision, confirm, decide
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.lab.exactness.check import (
    EngineShape,
    ModelUnderTest,
    Opened,
    Question,
    Recorder,
    Truth,
)
from edgecosine.protocol.api.request import Sampling

CONTEXT = 448
CELLS = CONTEXT + 64
VOCABULARY = 4096
_WIDE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 768, "intermediate_size": 2048,
    "num_hidden_layers": 3, "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64,
    "max_position_embeddings": 1024, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"sliding_window": 64, "query_pre_attn_scalar": 64},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256},
}
_SPREAD = 0.05
"""Standard deviation of random weights; large enough that attention matters."""

SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.8),
    Sampling(),
    Sampling(temperature=1.0, top_p=0.9),
    Sampling(repetition_penalty=1.2),
    Sampling(temperature=0.7, presence_penalty=0.5, frequency_penalty=0.3),
    Sampling(),
    Sampling(temperature=1.2, top_k=50, min_p=0.02),
)


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model under test, a function that builds it, and its share of all answers."""

    name: str
    dtype: torch.dtype
    build: Callable[[], Any]
    weight: int
    form: WeightForm = "bfloat16"
    cells: torch.dtype | None = None
    """Number format of the KV cache; None: as the engine prefers."""
    drafter: str | None = None
    """Zoo model that assists transformers' own generation; None: a copy of the model."""

    def subject(self, device: str) -> tuple[ModelUnderTest, Decision]:
        """The model under test with its engines, and the exactness policy that applies."""
        model = self.build().to(device)
        if self.form != "bfloat16":
            round_weights(model, self.form, model.get_output_embeddings())
        decision = decide(device, self.dtype)
        packed = copy.deepcopy(model)  # packing moves the weights out of the model
        probe = self._open(packed, EngineShape(1, 64, 1), decision.kernels)
        decision = confirm(decision, "auto", probe, packed)

        def open_engine(shape: EngineShape) -> Opened:
            fresh = copy.deepcopy(model)
            recorder = Recorder(self._open(fresh, shape, decision.kernels))
            engine = TransformerTarget(
                recorder, slots=shape.slots, max_context=CONTEXT, chunk=shape.chunk
            )
            return Opened(engine, recorder)

        return ModelUnderTest(self.name, VOCABULARY, open_engine), decision

    def _open(self, model: Any, shape: EngineShape, kernels: Kernels | None) -> ForwardModel:
        if kernels is not None and can_fuse(model):
            return NativeLlama(
                model, slots=shape.slots, slot_size=CELLS, threads=shape.threads,
                kernels=kernels, form=self.form, cells=self.cells,
            )  # fmt: skip
        return SlotModel(
            model, slots=shape.slots, slot_size=CELLS, threads=shape.threads, kernels=kernels,
            form=self.form, cells=self.cells,
        )  # fmt: skip


def candidates(
    form: WeightForm = "bfloat16", cells: torch.dtype | None = None
) -> tuple[CheckedModel, ...]:
    """All models, each in float32 and bfloat16; with weights in blocks of 8 or 4 bits, only in
    float32."""
    dtypes = ((torch.float32, 7), (torch.bfloat16, 5))
    found = []
    for dtype, weight in dtypes if form == "bfloat16" else dtypes[:1]:
        short = str(dtype).removeprefix("torch.") if form == "bfloat16" else form
        drafter = zoo.drafter_names()[0]
        found.append(
            CheckedModel(f"zoo {short}", dtype, _zoo_builder(dtype), weight, form, cells, drafter)
        )
        found += [
            CheckedModel(
                f"{family} 768 {short}", dtype, _wide_builder(family, dtype), 2, form, cells
            )
            for family in _FAMILIES
        ]
    return tuple(found)


def zoo_model(name: str, dtype: torch.dtype) -> Any:
    """A zoo model, loaded by transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        zoo.DIRECTORY / name, dtype=dtype, attn_implementation="eager"
    )
    return model.eval()


def _zoo_builder(dtype: torch.dtype) -> Callable[[], Any]:
    return lambda: zoo_model(zoo.TARGET, dtype)


def _wide_builder(family: str, dtype: torch.dtype) -> Callable[[], Any]:
    return lambda: _wide_model(family, dtype)


def _wide_model(family: str, dtype: torch.dtype) -> Any:
    config = AutoConfig.for_model(family, **_WIDE, **_FAMILIES[family])
    maker: Any = AutoModelForCausalLM
    model = maker.from_config(config, attn_implementation="eager", dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=_SPREAD, generator=generator)
    return model.eval()


def prompts_of(candidate: CheckedModel) -> list[tuple[int, ...]]:
    """Prompts of 48 tokens: held-out ones for the zoo's model, random tokens for random models."""
    if candidate.drafter is None:
        rng = random.Random(candidate.name)
        return [tuple(rng.choices(range(VOCABULARY), k=48)) for _ in range(128)]
    return list(itertools.chain.from_iterable(zip(*zoo_prompts().values(), strict=False)))


def zoo_prompts() -> dict[str, list[tuple[int, ...]]]:
    """The zoo's held-out prompts by domain, as tokens."""
    tokenizer = AutoTokenizer.from_pretrained(zoo.DIRECTORY / zoo.TARGET)
    return {
        domain: [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        for domain, texts in zoo.prompts().items()
    }


class Questions:
    """Endless questions to a model; every sixth continues an earlier answer."""

    def __init__(self, prompts: Sequence[tuple[int, ...]], seed: int) -> None:
        self._prompts = prompts
        self._rng = random.Random(seed)
        self._count = 0

    def next(self, earlier: Sequence[Truth]) -> Question:
        """The next question."""
        number, rng = self._count, self._rng
        self._count += 1
        # A prompt has another sampling in each pass over the prompts.
        turn = number + number // len(self._prompts)
        base = SAMPLINGS[turn % len(SAMPLINGS)]
        sampling = base if base.is_greedy else replace(base, seed=number)
        if number % 6 == 5 and earlier:
            before = rng.choice(earlier)
            cut = rng.randint(1, len(before.answer))
            known = (*before.question.prompt, *before.answer[:cut])
            more = rng.choices(range(VOCABULARY), k=rng.randint(1, 9))
            if len(known) + len(more) <= CONTEXT // 2:
                return Question((*known, *more), sampling, is_followup=True)
        return Question(self._prompts[number % len(self._prompts)], sampling)
