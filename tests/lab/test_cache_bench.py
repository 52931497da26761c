"""The benchmark of the KV cache times a shared prefix and compares number formats."""

from __future__ import annotations

from typing import Any

from edgecosine import zoo
from edgecosine.lab.bench.run_cache import FORMATS, run_cache_bench


def test_shared_prompt_is_faster_and_rounded_caches_are_smaller() -> None:
    lines, kept = list[str](), list[Any]()
    found = run_cache_bench(zoo.TARGET, 1, lines.append, lambda *run: kept.append(run), each=1)
    assert found["shared_over_alone"].value < 0.8, "a prompt of 528 tokens, of which 16 are own"
    assert found["equal_answers_float32"].value == 1.0
    perplexities = [found[f"perplexity_{kv_dtype}"].value for kv_dtype in FORMATS]
    assert max(perplexities) < 1.02 * min(perplexities)
    assert len(set(perplexities)) > 1, "no cache was rounded"
    sizes = [found[f"kv_bytes_per_token_{kv_dtype}"].value for kv_dtype in FORMATS]
    assert sizes[0] == 2 * sizes[1] > 3.5 * sizes[2]
    assert len(kept) == 1 + len(FORMATS)
