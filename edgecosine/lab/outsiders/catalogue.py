"""The third-party programs: their packages, their command lines, and how to read their results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgecosine import zoo

_HERE: Final = Path(__file__).parent
_TASKS: Final = _HERE / "lm_eval"


@dataclass(frozen=True, slots=True)
class OutsiderRun:
    """The setting of a run: the base URL of a target, its model, and a folder for results."""

    url: str
    model: str
    folder: Path

    @property
    def tokenizer(self) -> Path:
        """Directory of the model's tokenizer."""
        return Path(zoo.__file__).parent / self.model


@dataclass(frozen=True, slots=True)
class Outsider:
    """One third-party program.

    packages  names for pip
    command   the program in the environment's `bin` and its arguments, for one run
    summary   one line about a run, from its output and its results; raises ValueError if they show
              a failure
    needs     a path that the target must serve
    cwd       working directory; None: the folder for results
    is_twice  whether the program also runs against a target without drafters, whose results must be
              the same
    """

    name: str
    packages: tuple[str, ...]
    command: Callable[[OutsiderRun], Sequence[str]]
    summary: Callable[[str, OutsiderRun], str]
    needs: str = "/v1/models"
    cwd: Path | None = None
    is_twice: bool = False


def _openai(setting: OutsiderRun) -> Sequence[str]:
    return "python", str(_HERE / "openai_client.py"), setting.url, setting.model


def _schemathesis(setting: OutsiderRun) -> Sequence[str]:
    return (
        "schemathesis", "run", f"{setting.url}/openapi.json", "--checks=all",
        # JSON Schema cannot say how fields depend on each other and on the model, so a body that it
        # allows may be refused.
        "--exclude-checks=positive_data_acceptance",
        "--max-examples=15", "--request-timeout=60", "--seed=1", "--no-color",
    )  # fmt: skip


def _aiperf(setting: OutsiderRun) -> Sequence[str]:
    return (
        "aiperf", "profile", "--model", setting.model, "--url", setting.url,
        "--endpoint-type=completions", "--streaming", "--concurrency=4", "--request-count=16",
        "--synthetic-input-tokens-mean=32", "--output-tokens-mean=32", "--ui=none",
        "--tokenizer", str(setting.tokenizer), "--artifact-dir", str(setting.folder),
    )  # fmt: skip


def _guidellm(setting: OutsiderRun) -> Sequence[str]:
    return (
        "guidellm", "run",
        "--backend", f"kind=openai_http,target={setting.url},model={setting.model},"
        "request_format=/v1/completions",
        "--profile", "kind=concurrent,streams=4",
        "--constraint", "kind=max_requests,count=16",
        "--tokenizer", f"kind=hf_auto,model={setting.tokenizer}",
        "--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=32",
        "--output", f"kind=json,path={setting.folder / 'guidellm.json'}", "--disable-console",
    )  # fmt: skip


def _lm_eval(setting: OutsiderRun) -> Sequence[str]:
    arguments = (
        f"base_url={setting.url}/v1/completions,model={setting.model},num_concurrent=4,"
        f"tokenizer_backend=huggingface,tokenizer={setting.tokenizer},max_length=512"
    )
    return (
        "lm_eval", "--model=local-completions", "--model_args", arguments,
        "--tasks=edgecosine_choice,edgecosine_text", "--include_path", str(_TASKS),
        "--output_path", str(setting.folder),
    )  # fmt: skip


def _last_line(output: str, _: OutsiderRun) -> str:
    return output.strip().splitlines()[-1]


def _schemathesis_summary(output: str, _: OutsiderRun) -> str:
    found = re.findall(r"(\d+ generated.*|No issues found.*)", output)
    return "; ".join(found) or output.strip().splitlines()[-1]


def _aiperf_summary(_: str, setting: OutsiderRun) -> str:
    """The number of requests, and the names of the acceptance figures if the report has any."""
    [report] = setting.folder.rglob("profile_export_aiperf.json")
    found = json.loads(report.read_text())
    count = found["request_count"]["avg"]
    errors = found.get("error_summary") or []
    if errors:
        raise ValueError(f"errors: {errors}")
    names = [name for name in found if "accept" in name or "draft" in name]
    return f"{count:.0f} requests; acceptance figures: {', '.join(names) or 'none'}"


def _guidellm_summary(_: str, setting: OutsiderRun) -> str:
    report = json.loads((setting.folder / "guidellm.json").read_text())
    totals = report["benchmarks"][0]["metrics"]["request_totals"]
    if totals["errored"] or not totals["successful"]:
        raise ValueError(f"requests: {totals}")
    return f"{totals['successful']} requests"


def _lm_eval_summary(_: str, setting: OutsiderRun) -> str:
    [report] = setting.folder.rglob("results_*.json")
    return json.dumps(json.loads(report.read_text())["results"], sort_keys=True)


OUTSIDERS: Final = (
    Outsider("openai", ("openai",), _openai, _last_line),
    Outsider(
        "schemathesis", ("schemathesis",), _schemathesis, _schemathesis_summary, "/openapi.json"
    ),
    Outsider("aiperf", ("aiperf",), _aiperf, _aiperf_summary),
    Outsider("guidellm", ("guidellm",), _guidellm, _guidellm_summary),
    Outsider(
        "lm-eval",
        ("lm-eval[api]", "transformers"),
        _lm_eval,
        _lm_eval_summary,
        cwd=_TASKS,
        is_twice=True,
    ),
)
