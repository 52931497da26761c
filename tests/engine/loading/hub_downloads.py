"""A process that loads models from a hub of its own, which the hub's client must know when it is
imported; writes one JSON line for each load."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path

from tests.support.model_hub import model_hub


def main(directory: Path, zoo_model: Path) -> None:
    files = directory / "files"
    files.mkdir()
    no_weights = shutil.copytree(zoo_model, directory / "no-weights")
    (no_weights / "model.safetensors").unlink()
    repositories = {"org/zoo": zoo_model, "org/files": files, "org/no-weights": no_weights}
    with model_hub(repositories) as hub:
        os.environ |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(directory / "cache")}
        from edgecosine.engine.loading import progress
        from edgecosine.engine.loading.load import load_target
        from edgecosine.engine.options import LoadOptions
        from edgecosine.errors import EngineError
        from tests.engine.loading.gguf_files import write_gguf

        progress.PERIOD_S = 0.0
        lines = list[str]()
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger(progress.__name__).addHandler(handler)
        logging.getLogger(progress.__name__).setLevel("INFO")
        write_gguf(files / "tiny.gguf")
        for name, gguf in (
            ("org/zoo", ""), ("org/zoo", ""), ("org/files", "tiny.gguf"), ("org/files", ""),
            ("org/files", "other.gguf"), ("org/nothing", ""), ("org/nothing", "x.gguf"),
            ("org/no-weights", ""),
        ):  # fmt: skip
            lines.clear()
            hub.num_sent.clear()
            options = LoadOptions(name, gguf=gguf, threads=1, slots=1, device="cpu")
            try:
                _, loaded = load_target(options)
                outcome = f"loaded {loaded.name}"
            except EngineError as error:
                outcome = str(error)
            done = [line for line in lines if "done=100%" in line]
            report = {"outcome": outcome, "sent": sorted(hub.num_sent), "progress": done}
            sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
