"""A drafter of the lab that does harm, with the options of `edgecosine node`:
`python -m edgecosine.cli.hostile_drafter HARM OPTIONS`."""

from __future__ import annotations

import sys
from typing import get_args

from edgecosine.cli.logs import log_to_stderr
from edgecosine.cli.node import command, node_config
from edgecosine.cli.running import run_command
from edgecosine.config import NodeConfig
from edgecosine.engine.base import DraftEngine
from edgecosine.engine.options import Loaded
from edgecosine.lab.hostile_drafter import Harm, HostileDrafter
from edgecosine.node.node import run_node
from edgecosine.node.runtime.drain import Drain
from edgecosine.node.runtime.held_prefixes import MAX_TOKEN
from edgecosine.node.runtime.load_engine import load_drafter


def main(harm: Harm, words: list[str]) -> None:
    """Run the drafter until interrupted."""
    options = command.make_context("node", words).params
    log_to_stderr(options.pop("log_level"))
    options.pop("config")
    settings = node_config(**options)

    def load(config: NodeConfig) -> tuple[DraftEngine, Loaded]:
        engine, loaded = load_drafter(config)
        num_vocabulary = loaded.codec.num_tokens if loaded.codec else MAX_TOKEN
        return HostileDrafter(engine, harm, num_vocabulary), loaded

    drain = Drain(settings.drain_timeout_s)
    run_command(run_node(settings, drain, load=load), drain.request)


if __name__ == "__main__":
    given = sys.argv[1]
    for known in get_args(Harm):
        if given == known:
            main(known, sys.argv[2:])
