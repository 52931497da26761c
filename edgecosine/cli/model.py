"""`edgecosine model`: lists and fetches models by name, and describes model files."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from edgecosine import models, zoo
from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.options import CommandGroup
from edgecosine.engine.loading.gguf_file import GgufModel, read_gguf
from edgecosine.engine.options import LoadOptions
from edgecosine.errors import EdgecosineError, ModelUnavailable
from edgecosine.local.kernels import build_kernels
from edgecosine.places import expanded

_WIDE = 240
_UNKNOWN = "unknown"


class _Group(CommandGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgecosineError as error:
            raise click.ClickException(str(error)) from error


@click.group("model", cls=_Group)
def command() -> None:
    """List, fetch and describe models.

    Fetched files are stored in the directory EDGECOSINE_MODELS, by default in the user's cache.
    """


@command.command("list")
def list_models() -> None:
    """List the models that --model accepts by name, and whether they are on this machine."""
    table = Table("name", "description", "licence", "size", "here", box=None)
    for name in zoo.names():
        table.add_row(name, "zoo, for demonstrations and tests", "Apache-2.0", "", "yes")
    for entry in models.CATALOGUE.values():
        here = "yes" if models.find(entry.name) else "no"
        table.add_row(entry.name, entry.what, entry.licence, _size(entry.num_bytes), here)
    for name in models.packaged_names():
        path = models.packaged(name)
        size = _size(path.stat().st_size) if path else ""
        table.add_row(name, "drafter", "Apache-2.0", size, "yes")
    _print(table)


@command.command("fetch")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--accept-terms", is_flag=True,
    help="Confirm that you have read and accept the model's licence terms.",
)  # fmt: skip
def fetch(names: tuple[str, ...], accept_terms: bool) -> None:
    """Fetch models by name; their files are verified by SHA-256."""
    log_to_stderr("info")
    for name in names:
        if name not in models.CATALOGUE:
            known = ", ".join(models.CATALOGUE)
            raise click.UsageError(f"{name!r} is not a model that can be fetched: {known}")
        entry = models.CATALOGUE[name]
        if entry.terms and accept_terms and models.find(name) is None:
            click.echo(f"{name} comes under the {entry.terms}")
        click.echo(models.fetch(entry, accepts_terms=accept_terms))


@command.command("show")
@click.argument("model", metavar="NAME|FILE")
@click.option(
    "--slots", type=click.IntRange(1, 1024), default=8, show_default=True,
    help="Sequences in the KV cache, for the memory estimate.",
)  # fmt: skip
@click.option(
    "--context", type=click.IntRange(0, 1 << 20), default=0,
    help="Maximum tokens of a sequence, for the memory estimate; 0: as many as a node allows.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto",
    show_default=True, help="As of `edgecosine node`, for the memory estimate.",
)  # fmt: skip
def show(model: str, slots: int, context: int, dtype: str) -> None:
    """Describe a model (a name, GGUF file or directory) and the memory that it needs here."""
    entry = models.CATALOGUE.get(model)
    path = models.find(model) if models.is_known(model) else expanded(model)
    if path is None and entry is not None:
        terms = " --accept-terms" if entry.terms else ""
        _print_facts(
            [
                ("model", entry.what),
                ("licence", entry.terms or entry.licence),
                ("size", _size(entry.num_bytes)),
                ("file", f"not here: edgecosine model fetch {model}{terms}"),
            ]
        )
        return
    if model in zoo.names():
        path = zoo.DIRECTORY / model
    if path is None or not (path.is_file() or (path / "config.json").is_file()):
        raise ModelUnavailable(
            f"{model!r} is not a GGUF file, not a directory with a config.json, and none of "
            f"{', '.join((*zoo.names(), *models.names()))}"
        )
    build_kernels(functools.partial(click.echo, err=True))
    facts = _facts(read_gguf(path)) if path.is_file() else _facts_of_directory(path)
    options = LoadOptions(str(path), slots=slots, context=context, dtype=dtype)
    _print_facts([*facts, ("memory needed", _memory(options))])


def _facts(model: GgufModel) -> Iterable[tuple[str, str]]:
    metadata = model.metadata
    yield "name", str(metadata.get("general.name", _UNKNOWN))
    yield "architecture", model.architecture
    yield "parameters", f"{model.num_parameters / 1e6:,.1f} M"
    yield "quantisation", model.quantization
    yield "context", f"{model.setting('context_length') or _UNKNOWN} tokens"
    if model.base:
        use = "changes its weights" if model.is_adapter else "uses its embedding and tokenizer"
        yield "base", f"{model.base}, {use}"
    else:
        yield "vocabulary", f"{model.num_tokens} tokens"
        yield "end tokens", ", ".join(map(str, model.end_tokens)) or "none"
        yield "chat template", _first_line_of(model.chat_template)
    yield "licence", str(metadata.get("general.license", _UNKNOWN))
    parts = f" in {len(model.paths)} parts" if len(model.paths) > 1 else ""
    yield "file", f"{model.paths[0]}, {_size(model.num_bytes)}{parts}"


def _facts_of_directory(path: Path) -> Iterable[tuple[str, str]]:
    from edgecosine.engine.loading.load_plan import plan_load  # imports torch, which takes seconds

    plan = plan_load(LoadOptions(str(path)))
    text = plan.config.get_text_config()
    parameters = plan.memory.weights // plan.dtype.itemsize
    templates = (path / "chat_template.jinja", path / "tokenizer_config.json")
    has_template = templates[0].is_file() or (
        templates[1].is_file() and '"chat_template"' in templates[1].read_text(encoding="utf-8")
    )
    yield "name", path.name
    yield "architecture", str(plan.config.model_type)
    yield "parameters", f"{parameters / 1e6:,.1f} M"
    yield "quantisation", f"none: {_stored_format(path)}"
    yield "context", f"{getattr(text, 'max_position_embeddings', _UNKNOWN)} tokens"
    yield "vocabulary", f"{text.vocab_size} tokens"
    yield "chat template", "yes" if has_template else "no"
    yield "directory", str(path)


def _stored_format(directory: Path) -> str:
    """The number format of the stored weights, by the model's config; a node may use another."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config", {})):
        if stored := part.get("dtype") or part.get("torch_dtype"):
            return str(stored)
    return _UNKNOWN


def _first_line_of(template: str) -> str:
    lines = template.strip().splitlines()
    return f"yes: {lines[0][:100]}" if lines else "no"


def _memory(options: LoadOptions) -> str:
    """The memory that a node would plan, or the reason why it would refuse the model."""
    from edgecosine.engine.loading.load_plan import plan_load  # imports torch, which takes seconds

    try:
        plan = plan_load(options)
    except EdgecosineError as error:
        return f"cannot be served: {error}"
    memory = plan.memory
    return (
        f"{memory.total / 1e9:.2f} GB on {plan.device} for {options.slots} sequences of "
        f"{plan.context} tokens (weights {memory.weights / 1e9:.2f} GB, cache "
        f"{memory.cache / 1e9:.2f} GB{'; ' if memory.origin else ''}{memory.origin})"
    )


def _print_facts(facts: Iterable[tuple[str, str]]) -> None:
    table = Table(box=None, show_header=False)
    for fact in facts:
        table.add_row(*fact)
    _print(table)


def _print(table: Table) -> None:
    # In a pipe each row is one line; on a terminal rich detects the width.
    Console(width=None if sys.stdout.isatty() else _WIDE, markup=False).print(table)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
