"""One target in two processes gives the same answers as in one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgecosine.engine.batch import RowBuilder
from edgecosine.engine.cpu.kernel_library import KernelsUnavailable, load_kernels
from edgecosine.engine.loading.load import load_drafter, load_target
from edgecosine.engine.loading.load_ranks import load_over_ranks
from edgecosine.engine.options import Loaded, LoadOptions
from edgecosine.engine.target.target import TransformerTarget
from edgecosine.engine.tensor_parallel.model import ParallelModel
from edgecosine.errors import ModelUnsupported
from edgecosine.protocol.api.request import Sampling
from tests.engine.decoding import decode, nothing, random_trees
from tests.engine.models import VOCABULARY, build, prompt_of, save

SPLIT = LoadOptions("", device="cpu", threads=1, slots=6, tensor_parallel=2)
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.8, seed=3),
    Sampling(temperature=1.0, top_p=0.9, seed=4),
    Sampling(repetition_penalty=1.3, logit_bias=((7, 2.0),)),
]


def _options(model: str, **changes: object) -> LoadOptions:
    return replace(SPLIT, model=model, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=["llama", "gpt_neox", "phi3", "qwen3_moe"])
def split(request: pytest.FixtureRequest, models: Path) -> Iterator[tuple[ParallelModel, Loaded]]:
    """Plain layers, biases, heads that are not split, and layers left to transformers."""
    # On each rank 351 columns of the feed-forward layer: no multiple of any vector register.
    built = build(request.param, intermediate_size=702)
    where = save(built, models / request.param)
    model, loaded, _ = load_over_ranks(_options(where))
    yield model, loaded
    model.close()


def test_answers_equal_those_of_one_process(
    split: tuple[ParallelModel, Loaded], models: Path
) -> None:
    model, loaded = split
    alone, _ = load_target(_options(str(models / loaded.name), tensor_parallel=1))
    assert isinstance(alone, TransformerTarget)
    prompts = [prompt_of(length, seed=length) for length in (5, 90, 33, 61)]
    truth = [
        decode(alone, [prompt], 24, [nothing], [sampling])[0][0]
        for prompt, sampling in zip(prompts, SAMPLINGS, strict=True)
    ]
    engine = TransformerTarget(model, slots=6, max_context=loaded.max_context, chunk=16)
    plain, _ = decode(engine, prompts, 24, [nothing] * 4, SAMPLINGS)
    assert plain == truth
    drafts = [
        random_trees(prompt + answer, VOCABULARY, seed=i)
        for i, (prompt, answer) in enumerate(zip(prompts, truth, strict=True))
    ]
    speculated, accepted = decode(engine, prompts, 24, drafts, SAMPLINGS)
    assert speculated == truth
    assert accepted > 20
    followup = prompts[1] + prompt_of(3, seed=2)
    expected, _ = decode(alone, [followup], 8, [nothing])
    assert decode(engine, [followup], 8, [nothing])[0] == expected, "copied on all ranks"
    assert engine.kv_use.num_found >= len(prompts[1])


def test_logits_are_equal_to_the_bit_in_any_batch(split: tuple[ParallelModel, Loaded]) -> None:
    model, loaded = split
    if loaded.exactness != "bitwise":
        pytest.skip("stock layers, whose sums depend on the shape of the pass")
    sequence = prompt_of(30)
    alone = RowBuilder()
    alone.add_sequence(0, 0, sequence)
    reference = model.forward(alone.build(), range(30))
    for cut in (1, 9, 29):
        first, second = RowBuilder(), RowBuilder()
        first.add_sequence(2, 0, prompt_of(17, seed=9))
        first.add_sequence(1, 0, sequence[:cut])
        second.add_sequence(1, cut, sequence[cut:])
        second.add_sequence(2, 17, prompt_of(5, seed=8))
        head = model.forward(first.build(), range(17, 17 + cut))
        tail = model.forward(second.build(), range(30 - cut))
        assert torch.equal(torch.cat([head, tail]), reference)


def test_policy_is_bitwise_unless_layers_are_stock(split: tuple[ParallelModel, Loaded]) -> None:
    try:
        load_kernels()
        is_compiled = True
    except KernelsUnavailable:
        is_compiled = False
    _, loaded = split
    is_packed = is_compiled and loaded.name != "qwen3_moe"
    assert loaded.exactness == ("bitwise" if is_packed else "rounding")


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("llama", {"tensor_parallel": 3}, "3 must divide the 4 attention heads and 2 .*: take 2"),
        ("llama", {"tensor_parallel": 4}, "4 must divide the 4 attention heads and 2 .*: take 2"),
        ("llama", {"ballast": 2}, "ballast"),
        ("llama", {"quantize": "int8"}, "quantised"),
        ("llama", {"device": "cuda:1"}, "set 'cuda'"),
        ("gpt2", {}, "'gpt2' has no tensor-parallel plan"),
        ("gpt_oss", {}, "'gpt_oss' has no tensor-parallel plan"),
    ],
)
def test_unsupported_split_is_refused_with_the_reason(
    models: Path, family: str, changes: dict[str, object], reason: str
) -> None:
    where = models / family
    if not where.exists():
        save(build(family), where)
    with pytest.raises(ModelUnsupported, match=reason):
        load_target(_options(str(where), **changes))


def test_drafter_is_never_split() -> None:
    with pytest.raises(ModelUnsupported, match="only a target"):
        load_drafter(replace(SPLIT, model="ngram"))
