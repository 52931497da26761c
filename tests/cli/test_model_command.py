"""`edgecosine model show`: the properties of a file, and the memory it needs."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner
from gguf import GGMLQuantizationType

from edgecosine.cli.model import command
from tests.engine.loading.gguf_files import write_gguf


def test_show_prints_the_properties_of_a_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", kind=GGMLQuantizationType.Q4_1)
    result = CliRunner().invoke(command, ["show", str(path), "--slots", "2"])
    assert result.exit_code == 0, result.output
    facts = {key: value for key, _, value in map(_parted, result.output.splitlines())}
    assert facts["architecture"] == "llama"
    assert facts["quantisation"] == "Q4_1"
    assert facts["context"] == "128 tokens"
    assert facts["end tokens"] == "0, 2"
    assert facts["chat template"].startswith("yes: {% for m in messages %}")
    assert "for 2 sequences of 128 tokens (weights " in facts["memory needed"]


def test_show_accepts_directories_and_every_listed_name() -> None:
    facts = _facts("target")
    assert (facts["architecture"], facts["quantisation"]) == ("llama", "none: bfloat16")
    assert (facts["context"], facts["chat template"]) == ("1024 tokens", "yes")
    listed = CliRunner().invoke(command, ["list"]).output.splitlines()[1:]
    for name in (line.split()[0] for line in listed):
        shown = CliRunner().invoke(command, ["show", name])
        assert shown.exit_code == 0, shown.output


def _facts(model: str) -> dict[str, str]:
    result = CliRunner().invoke(command, ["show", model])
    assert result.exit_code == 0, result.output
    return {key: value for key, _, value in map(_parted, result.output.splitlines())}


def test_show_reports_why_a_file_cannot_be_served(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", family="plm")
    result = CliRunner().invoke(command, ["show", str(path)])
    assert "cannot be served: GGUF architecture 'plm'" in result.output
    path.write_bytes(b"text")
    refused = CliRunner().invoke(command, ["show", str(path)])
    assert (refused.exit_code, "is not a GGUF file" in refused.output) == (1, True)
    assert "none of generalist" in CliRunner().invoke(command, ["show", "nix"]).output


def _parted(line: str) -> tuple[str, str, str]:
    key, gap, value = line.strip().partition("  ")
    return key, gap, value.strip()
