"""Compare models with compressors: bits per byte of the last tenth of a text, given the first nine tenths.

    python benchmarks/predictors.py poems.txt server.log --seconds 60 --json predictors.json
    python benchmarks/predictors.py poems.txt --models count,auto --mode text

A model is trained for `--seconds` on the first nine tenths (split 0.9,0.05,0.05) and scored on the last tenth
(val+test), frozen and adaptive. Val isn't new to it: models choose their best weights on it, count its order,
and auto fits its gate there.

A compressor learns as it reads, so it has an adaptive score only: 8 * (size of the compressed text - size of
its compressed first nine tenths) / bytes of the last tenth. The first nine tenths are padded to the length of
the whole text with line ends, which cost a few bytes, because compressors choose the size of their tables by
the length (zpaq doubles them at each power of two). Its text is makemore's: normalised UTF-8, cut at the same
byte. Of a list of lines, which makemore shuffles, it reads the non-blank lines of train, val and test in this
order. `xz -9e`, `7z` (PPMd of order 8) and `zpaq -m5` are used if they are installed.

Each cell is a complete process with its own time and peak memory, one after another. A compressor's first
nine tenths are in the columns of training, and the whole text, which it reads from the beginning, in those
of the adaptive score. Finished cells in `--out` are reused; after a change of the code, use another folder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import typer

from makemore.corpus.documents import SPLITS, make_documents
from makemore.corpus.source import resolve_source
from makemore.corpus.text import read_source
from makemore.errors import UserError
from makemore.runtime.files import read_json, write_json
from makemore.settings import CorpusConfig

SPLIT = "0.9,0.05,0.05"
COMPRESSORS = {
    "xz -9e": "xz -9e --threads=1 --keep text",
    "7z PPMd, order 8": "7z a -m0=PPMd:o=8:mem=1g text.7z text",
    "zpaq -m5": "zpaq a text.zpaq text -m5",
}
"""Commands that compress the file ``text`` to ``text.`` and the program's name."""
LAUNCH = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.run(sys.argv[1:]).returncode
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(f"\\n{status} {seconds} {peak / 1e6}")
"""
"""Runs a command from a small process: a process inherits its parent's peak memory."""
SCORE = """
import json, sys
from makemore.runtime.process import tune_process
tune_process()
import makemore
score = makemore.load(sys.argv[1]).evaluate("val+test", adaptive=sys.argv[2] == "adaptive")
print(json.dumps({"bits_per_byte": score.bits_per_byte, "bytes": score.bytes}))
"""
HEADS = (
    *("text", "predictor", "training s", "MB"),
    *("frozen bits/byte", "s", "MB"),
    *("adaptive bits/byte", "s", "MB"),
)

Cell = dict[str, Any]
Mode = Literal["auto", "lines", "text"]


@dataclass(frozen=True)
class Subject:
    """A text, and the ``folder`` of its cells."""

    path: Path
    mode: str
    folder: Path
    train_bytes: int
    held_out_bytes: int


def prepare(path: Path, mode: Mode, out: Path) -> Subject:
    """Write a text for compressors: its first nine tenths, padded, to ``train/text``, and all of it to
    ``whole/text``.

    Raises UserError if it can't be read or is too short.
    """
    config = CorpusConfig(mode=mode, split=SPLIT)
    documents = make_documents(read_source(resolve_source(str(path)), config), config)
    folder = out / f"{path.stem}-{documents.mode}-{documents.text.digest[:8]}"
    sizes = []
    for name, splits in (("train", SPLITS[:1]), ("whole", SPLITS)):
        text = folder / name / "text"
        text.parent.mkdir(parents=True, exist_ok=True)
        with text.open("w", encoding="utf-8", newline="") as file:
            file.writelines(documents.pieces(splits, line_end="\n"))
        sizes.append(text.stat().st_size)
    with (folder / "train" / "text").open("ab") as file:
        file.write(b"\n" * (sizes[1] - sizes[0]))
    if sizes[0] == sizes[1]:
        raise UserError(f"{path} is too short: its last tenth is empty")
    return Subject(path, documents.mode, folder, sizes[0], sizes[1] - sizes[0])


def run(command: Sequence[str], log: Path, cwd: Path | None = None) -> tuple[Cell, str]:
    """Run a process and return its seconds and peak memory, and its output. Raises UserError if it fails."""
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(
            [sys.executable, "-S", "-c", LAUNCH, *command],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
            check=True,
        )
    output, usage = done.stdout.rstrip().rsplit("\n", 1)
    status, seconds, peak = usage.split()
    if status != "0":
        messages = (output + log.read_text(encoding="utf-8", errors="replace")).strip()
        raise UserError(f"{messages.splitlines()[-1] if messages else 'no message'} (exit status {status})")
    return {"seconds": float(seconds), "peak_mb": float(peak)}, output


def model_cells(model: str, subject: Subject, seconds: int) -> Iterator[tuple[str, Cell]]:
    """Train a model and score it, unless this is done."""
    folder = subject.folder / f"{model}-{seconds}s"
    folder.mkdir(exist_ok=True)
    trained = folder / "run"
    options = f"--model {model} --max-time {seconds}s --mode {subject.mode} --set corpus.split={SPLIT} --json"
    train = [sys.executable, "-m", "makemore", "train", str(subject.path), *options.split()]
    train += ["--out", str(trained)] + (["--overwrite"] if trained.exists() else [])
    cell = folder / "training.json"
    if not cell.exists():
        usage, _ = run(train, folder / "training.log")
        write_json(cell, usage)
    yield "training", read_json(cell)
    for kind in ("frozen", "adaptive"):
        cell = folder / f"{kind}.json"
        if not cell.exists():
            usage, output = run([sys.executable, "-c", SCORE, str(trained), kind], folder / f"{kind}.log")
            score = json.loads(output.rstrip().rsplit("\n", 1)[-1])
            if score["bytes"] != subject.held_out_bytes:
                raise UserError(f"{score['bytes']} bytes were scored, not {subject.held_out_bytes}")
            write_json(cell, {**usage, **score})
        yield kind, read_json(cell)


def compressor_cells(name: str, subject: Subject) -> Iterator[tuple[str, Cell]]:
    """Compress the padded first nine tenths and the whole text, unless this is done."""
    command = COMPRESSORS[name].split()
    cells = []
    for part in ("train", "whole"):
        folder = subject.folder / part
        cell, archive = folder / f"{command[0]}.json", folder / f"text.{command[0]}"
        if not cell.exists():
            archive.unlink(missing_ok=True)
            usage, _ = run(command, folder / f"{command[0]}.log", cwd=folder)
            write_json(cell, {**usage, "compressed_bytes": archive.stat().st_size})
            archive.unlink()
        cells.append(read_json(cell))
    training, whole = cells
    n_bytes = whole["compressed_bytes"] - training["compressed_bytes"]
    yield "training", training
    yield "adaptive", {**whole, "bits_per_byte": 8 * n_bytes / subject.held_out_bytes}


def measure(predictor: str, cells: Iterator[tuple[str, Cell]], subject: Subject) -> Cell:
    """Make a predictor's cells, up to the first that fails."""
    row: Cell = {
        "text": str(subject.path),
        "mode": subject.mode,
        "train_bytes": subject.train_bytes,
        "held_out_bytes": subject.held_out_bytes,
        "predictor": predictor,
    }
    try:
        for kind, cell in cells:
            row[kind] = cell
    except (UserError, OSError) as error:
        row["failed"] = str(error)
        print(f"{subject.path}, {predictor}: {error}", file=sys.stderr)
    return row


def table_row(row: Cell) -> str:
    cells = [Path(row["text"]).name, row["predictor"]]
    for kind in ("training", "frozen", "adaptive"):
        cell = row.get(kind, {})
        for key, digits in (("bits_per_byte", 4), ("seconds", 1), ("peak_mb", 0)):
            if key != "bits_per_byte" or kind != "training":
                cells.append(f"{cell[key]:,.{digits}f}" if key in cell else "")
    return f"| {' | '.join(cells)} |"


def main(
    files: list[Path] = typer.Argument(help="Texts."),
    models: str = typer.Option(
        "count,context-mixing,transformer,lstm,auto", help="Models, separated by commas."
    ),
    seconds: int = typer.Option(60, help="Training time of each model, in seconds."),
    mode: Mode = typer.Option("auto", help="One document per line, or one document."),
    out: Path = typer.Option(
        Path("checkpoints/predictors"), help="Directory for the runs and finished cells."
    ),
    json_file: Path | None = typer.Option(None, "--json", help="Also write the rows to this file."),
) -> None:
    """Print the table. Exit with status 1 if a cell failed."""
    compressors = [name for name, command in COMPRESSORS.items() if shutil.which(command.split()[0])]
    for name in COMPRESSORS:
        if name not in compressors:
            print(f"{name} is left out: not installed", file=sys.stderr)
    print(f"| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|", flush=True)
    rows, n_failed = [], 0
    for path in files:
        try:
            subject = prepare(path, mode, out)
        except UserError as error:
            print(error, file=sys.stderr)
            n_failed += 1
            continue
        predictors = {model: model_cells(model, subject, seconds) for model in models.split(",")}
        predictors |= {name: compressor_cells(name, subject) for name in compressors}
        for predictor, cells in predictors.items():
            rows.append(measure(predictor, cells, subject))
            n_failed += "failed" in rows[-1]
            print(table_row(rows[-1]), flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    raise typer.Exit(n_failed > 0)


if __name__ == "__main__":
    typer.run(main)
