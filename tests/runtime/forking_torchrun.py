"""torchrun, whose processes are forked from it instead of importing torch again; arguments as torchrun's."""

from __future__ import annotations

import logging
import runpy
import sys
from typing import Any

import torch._dynamo  # noqa: F401 - DistributedDataParallel would import it in every process
from torch.distributed import run
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import makemore.cli
import makemore.training.train  # noqa: F401


def program(_: str, path: str, *arguments: str) -> None:
    """Run a script; torchrun's first argument is Python's option."""
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def forking_launch(config: LaunchConfig, entrypoint: Any) -> elastic_launch:
    config.start_method = "fork"
    return elastic_launch(config, program)


if __name__ == "__main__":
    # It logs a traceback of its own for a function's process that was killed.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").disabled = True
    run.elastic_launch = forking_launch
    run.main()
