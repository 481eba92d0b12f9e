"""Coverage-guided fuzzer of the readers of run directories and texts, and of the play server.

    pip install atheris
    python benchmarks/fuzz.py run -max_total_time=3600
    python benchmarks/fuzz.py text -max_total_time=3600
    python benchmarks/fuzz.py play -max_total_time=3600

Options after the target are libFuzzer's; a directory among them stores the inputs that reach new code. An
input that is neither read nor refused with an error message stops the fuzzer with a traceback.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path[0] = str(Path(__file__).parents[1])  # not this directory: its tokenizers.py would shadow the package

with atheris.instrument_imports(include=["makemore", "json"]):
    from tests.reliability.fuzzing import (
        RestorableRun,
        check_request,
        check_run_directory,
        check_text,
        play_app,
    )


def main() -> None:
    """Fuzz until libFuzzer stops."""
    import torch

    torch.set_num_threads(1)
    target, *options = sys.argv[1:]
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None))
    if target == "run":
        run_dir = RestorableRun(folder)
        atheris.Setup([sys.argv[0], *options], lambda data: check_run_directory(data, run_dir))
    elif target == "play":
        app = play_app(folder)
        atheris.Setup([sys.argv[0], *options], lambda data: check_request(data, app))
    else:
        atheris.Setup([sys.argv[0], *options], lambda data: check_text(data, folder))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
