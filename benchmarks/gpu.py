"""Measure everything that needs a GPU in one command: correctness, training, sampling and scale.

    python benchmarks/gpu.py --data shakespeare.txt --names names.txt --nanogpt ../nanoGPT --out gpu.json
    python benchmarks/gpu.py --quick
    python benchmarks/gpu.py --dry-run

Each part runs in a process of its own with a time limit, and adds its results to the JSON file when it ends,
so that a failure in one part leaves the others. ``--quick`` measures the environment and correctness only;
``--dry-run`` runs every part on the CPU with tiny sizes, torchrun only with ``--shard``. nanoGPT is a clone
with its Shakespeare data prepared (``data/shakespeare_char/prepare.py``).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from gpu_speed import measure_peaks, sampling_speed, training_speed
from torch import Tensor

from makemore.evaluation.evaluate import evaluate
from makemore.evaluation.scoring import target_nats
from makemore.models.transformer import TransformerConfig
from makemore.runs.run import Run, load

Results = dict[str, Any]
Parts = Iterator[tuple[str, Any]]
"""Results by name, in the order in which they are measured."""
SMALL = TransformerConfig(block_size=128, n_layer=4, n_head=4, n_embd=128)
MEDIUM = TransformerConfig(block_size=256, n_layer=6, n_head=6, n_embd=384)
LARGE = TransformerConfig(block_size=1024, n_layer=12, n_head=12, n_embd=768)
TINY = TransformerConfig(block_size=16, n_layer=1, n_head=2, n_embd=16)


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    data: str
    names: str
    nanogpt: Path | None
    dry_run: bool
    out: Path
    cases: str

    @property
    def device(self) -> str:
        return "cpu" if self.dry_run else "cuda"

    @property
    def matrix_size(self) -> int:
        return 64 if self.dry_run else 8192

    def seconds(self, on_gpu: float) -> float:
        return 1.0 if self.dry_run else on_gpu

    def size(self, config: TransformerConfig) -> TransformerConfig:
        return TINY if self.dry_run else config


def environment(options: Options) -> Parts:
    """The card, versions, and the measured peaks of matrix products and memory."""
    card = "CPU" if options.dry_run else torch.cuda.get_device_name()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = "" if options.dry_run else _output(query)
    found = {"card": card, "driver": driver, "torch": torch.__version__, "cuda": torch.version.cuda}
    found |= {"python": sys.version.split()[0], "cores": os.cpu_count(), "date": str(date.today())}
    found |= measure_peaks(options.device, options.matrix_size)
    yield from found.items()


def correctness(options: Options) -> Parts:
    """Run the tests that compare the GPU with the CPU."""
    command = [sys.executable, "-m", "pytest", "tests/runtime/test_cuda.py", "-m", "slow or not slow"]
    command += ["-n", "2" if options.dry_run else "12", "-q", "-rfE", "--tb=line", "--show-capture=no"]
    # Plugins that happen to be installed may warn, which is an error in the tests.
    command += ["-p", "no:cacheprovider", "-p", "no:benchmark", "-W", "default"]
    command += ["-k", "bigram"] if options.dry_run else []
    environ = {**os.environ, "MAKEMORE_TEST_DEVICE": options.device}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, encoding="utf-8", timeout=105)
        output = done.stdout
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode() + "\nstopped at its time limit"
    lines = output.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    yield "summary", lines[-1] if lines else "no output"
    yield "failed", failed
    yield "output", output[-6000:]


def training(options: Options) -> Parts:
    """Train the default recipe within time limits, as a user does."""
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            "transformer, 10 s": ["--max-time", f"{options.seconds(10)}s"],
            "transformer, 60 s, cold": ["--max-time", f"{options.seconds(60)}s"],
            "transformer, 60 s": ["--max-time", f"{options.seconds(60)}s"],
            "transformer, 60 s, not compiled": ["--max-time", f"{options.seconds(60)}s", "--no-compile"],
            "lstm, 30 s": ["-m", "lstm", "--max-time", f"{options.seconds(30)}s"],
            "names, 20 s": ["--max-time", f"{options.seconds(20)}s"],
        }
        for name, flags in cases.items():
            if re.search(options.cases, name):
                if "cold" in name:
                    os.environ["MAKEMORE_CACHE"] = f"{folder}/cache"
                data, split = (
                    (options.names, "val") if name.startswith("names") else (options.data, "val+test")
                )
                yield name, _train(options, data, flags, Path(folder) / name, split)


def nanogpt(options: Options) -> Parts:
    """nanoGPT's own command with its GPU settings, for NANOGPT_SECONDS; its log gives the curve."""
    if options.nanogpt is None:
        yield "skipped", "no --nanogpt"
        return
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py"]
    command += (
        ["--device=cpu", "--compile=False", "--max_iters=2", "--eval_iters=1"] if options.dry_run else []
    )
    curve: list[tuple[float, float]] = []
    steps: list[float] = []
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=options.nanogpt,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        bufsize=1,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.match(r"step \d+: train loss [\d.]+, val loss ([\d.]+)", line):
            curve.append((round(time.perf_counter() - started, 2), float(found[1])))
        if found := re.match(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", line):
            steps.append(float(found[1]))
        if time.perf_counter() - started > options.seconds(NANOGPT_SECONDS):
            process.terminate()
            break
    process.wait()
    median = sorted(steps)[len(steps) // 2] if steps else float("nan")
    yield "curve", curve
    yield "median step ms", median
    yield "tokens/s", 16384 / median * 1e3
    yield "best", min(curve, key=lambda point: point[1], default=None)


def sampling(options: Options) -> Parts:
    """Tokens per second of our generator and of nanoGPT's, by batch size."""
    n_by_rows = {1: 20, 2: 20} if options.dry_run else {1: 500, 64: 100, 1024: 20}
    for name, config in (("0.8M", SMALL), ("10M", MEDIUM)):
        yield name, sampling_speed(options.size(config), options.device, n_by_rows, options.nanogpt)


def scale(options: Options) -> Parts:
    """Training speed of larger models as a share of the measured peak, and torchrun with one process."""
    peak = measure_peaks(options.device, options.matrix_size)["matmul TFLOP/s"]
    for name, config, batch in (("0.8M", SMALL, 16_384), ("10M", MEDIUM, 65_536), ("100M", LARGE, 65_536)):
        for label, compiled, graph in (
            ("compiled", True, True),
            ("eager graph", False, True),
            ("eager", False, False),
        ):
            if options.dry_run and compiled:
                continue
            size = options.size(config)
            tokens = size.block_size * 2 if options.dry_run else batch
            key = f"{name}, {label}"
            speed = training_speed(size, options.device, tokens, compiled, graph)
            speed["share of peak"] = round(speed["TFLOP/s"] / max(peak, 0.1), 3)
            yield key, speed
    if not options.dry_run:  # starting torchrun takes most of the time there
        yield "torchrun", _torchrun(options, [])
    yield "torchrun --shard", _torchrun(options, ["--set", "train.shard=true"])


NANOGPT_SECONDS = 75

PARTS: dict[str, tuple[Callable[[Options], Parts], float]] = {
    "environment": (environment, 40),
    "correctness": (correctness, 120),
    "training": (training, 270),
    "nanogpt": (nanogpt, 100),
    "sampling": (sampling, 60),
    "scale": (scale, 90),
}
"""Each part and its time limit in seconds."""


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, encoding="utf-8").stdout.strip()


def _record(options: Options, part: str, name: str, result: Any) -> None:
    """Print a result and add it to the file."""
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    known.setdefault(part, {})[name] = result
    options.out.write_text(json.dumps(known, indent=1), encoding="utf-8")
    if isinstance(result, dict):
        result = ", ".join(f"{k} {v}" for k, v in result.items() if not isinstance(v, list | dict))
    print(f"  {name}: {result}", flush=True)


def _train(options: Options, data: str, flags: list[str], run: Path, split: str) -> Results:
    """Train in a process of its own; score the best weights by our protocol and by nanoGPT's estimator."""
    command = [sys.executable, "-m", "makemore", "train", data, "-m", "transformer", *flags]
    command += ["--out", str(run), "--device", options.device]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    seconds = time.perf_counter() - started
    if done.returncode:
        return {"failed": done.stderr[-1500:] or done.stdout[-1500:]}
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    loaded = load(run, options.device)
    found = {
        "process s": round(seconds, 2),
        "steps": result["steps"],
        "tokens/s": result["tokens_per_second"],
        split: round(evaluate(loaded, split=split).nats_per_char, 4),
        "parameters": result["parameters"],
        "memory MB": round((result["peak_memory"] or 0) / 1e6),
        "compiled": result["used"]["compiled"],
        "settings": {k: v for k, v in config["model"].items() if k != "name"},
        "train": config["train"],
        "curve": [
            json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ],
        "notes": [
            line
            for line in done.stderr.splitlines()
            if "note" in line or "CUDA graph" in line or "compil" in line
        ],
    }
    if split == "val+test":
        batches = 2 if options.dry_run else 200
        found["nanoGPT's estimate"] = round(nanogpt_estimate(loaded, batches), 4)
    return found


def nanogpt_estimate(run: Run, batches: int, rows: int = 64, length: int = 256) -> float:
    """Mean loss of random crops of the last tenth, as nanoGPT estimates it, but with windows of the model's
    own context where that is shorter than 256 characters."""
    val, test = (run.corpus().split(name).tokens_N.astype(np.int64) for name in ("val", "test"))
    tokens = torch.from_numpy(np.concatenate([val, test]))
    length = min(length, run.model.max_len or length)
    generator = torch.Generator().manual_seed(1337)
    losses = []
    with torch.inference_mode():
        for _ in range(batches):
            starts = torch.randint(len(tokens) - length, (rows,), generator=generator).tolist()
            crops: Tensor = torch.stack([tokens[i : i + length + 1] for i in starts]).to(run.model.device)
            logits, _ = run.model(crops[:, :-1])
            losses.append(float(target_nats(logits, crops[:, 1:]).mean()))
    return sum(losses) / batches


def _torchrun(options: Options, flags: list[str]) -> Results:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
        command += ["-m", "makemore", "train", options.data, "-m", "transformer", "--steps", "30", *flags]
        command += ["--out", f"{folder}/run", "--device", options.device]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            return {"failed": done.stderr[-1500:]}
        result = json.loads(Path(folder, "run", "result.json").read_text(encoding="utf-8"))
        return {"steps": result["steps"], "tokens/s": result["tokens_per_second"]}


def main(
    data: Annotated[str, typer.Option(help="text to train on: a file or a data set's name")] = "shakespeare",
    names: Annotated[str, typer.Option(help="list of names to train on")] = "names",
    nanogpt: Annotated[Path | None, typer.Option(help="clone of nanoGPT to measure beside")] = None,
    out: Annotated[Path, typer.Option(help="JSON file of results")] = Path("gpu.json"),
    quick: Annotated[bool, typer.Option(help="environment and correctness only")] = False,
    dry_run: Annotated[bool, typer.Option(help="everything on the CPU, with tiny sizes")] = False,
    parts: Annotated[str, typer.Option(help="parts to run, separated by commas")] = ",".join(PARTS),
    cases: Annotated[str, typer.Option(help="training cases to run: a regular expression")] = "",
    only: Annotated[str, typer.Option(hidden=True, help="the part that this process runs")] = "",
) -> None:
    """Measure on a GPU, one part after another."""
    options = Options(data, names, nanogpt and nanogpt.resolve(), dry_run, out.resolve(), cases)
    if only:
        for name, result in PARTS[only][0](options):
            _record(options, only, name, result)
        return
    for name in ["environment", "correctness"] if quick else parts.split(","):
        started = time.perf_counter()
        print(f"{name}:", flush=True)
        process = subprocess.Popen([sys.executable, *sys.argv, "--only", name], start_new_session=True)
        try:
            status = process.wait(PARTS[name][1])
            problem = f"failed with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            problem = "stopped at its time limit"
        print(f"{name}: {problem or 'done'} after {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    typer.run(main)
