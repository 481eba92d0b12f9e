"""Score the default recipes on texts that no reported figure uses, to choose recipes by.

    python benchmarks/recipes.py                                  # transformer and lstm, 15 s and 60 s
    python benchmarks/recipes.py --budgets 15,60,300 --models transformer --set model.dropout=0.1
    python benchmarks/recipes.py --against benchmarks/recipes.json
    python benchmarks/recipes.py --budgets 15,30,60,90,120,180,300 --slowdown 4   # more time is never worse

The texts are found or made on this machine, from packages that the set-up installs: prose, licences, program
source, markup, a log, lists of names in two alphabets, and sentences of a grammar, from 10 KB to 20 MB. They
are kept in `--out`; a text whose source is missing is left out with a line.

Each cell is a complete process: a model is trained with its recipe, or with the settings given, and scored on
val+test, in bits per byte. The last line is the geometric mean of the cells relative to the same cells of
`--against`: below 1 is better. Finished cells are reused; `--out` belongs to one state of the code, so use
another folder after a change. `--json` writes the cells for a later `--against`. `--slowdown` stops each
training most of the time, as on a slower machine (not on Windows).
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
import signal
import subprocess
import sys
import sysconfig
import time
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from makemore.runtime.files import read_json, write_json

STDLIB = Path(sysconfig.get_path("stdlib"))
PACKAGES = Path(sysconfig.get_path("purelib"))
DATA = Path(__file__).parent.parent / "data"
SCORE = """
import json, sys
from makemore.runtime.process import tune_process
tune_process()
import makemore
run = makemore.load(sys.argv[1])
score = run.evaluate("val+test")
print(json.dumps({"bits_per_byte": score.bits_per_byte, "bytes": score.bytes}))
"""
RUNNING_SECONDS = 0.02
"""How long a slowed process runs before it is stopped again."""
Cell = dict[str, Any]


def joined(paths: Iterable[Path], size: int) -> str:
    """The beginning of the files' text, joined in the order of their paths; equal files count once."""
    parts, n = dict[str, None](), 0
    for path in sorted(paths):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if text not in parts:
            parts[text] = None
            n += len(text)
        if n >= size:
            break
    return "".join(parts)[:size]


def grammar(size: int) -> str:
    """Sentences of a small grammar with nested clauses, drawn with a fixed seed."""
    rng = random.Random(0)
    nouns, verbs = ["river", "stone", "bird", "king", "wind", "door"], ["finds", "hears", "leaves", "knows"]

    def noun_phrase(depth: int) -> str:
        phrase = f"{rng.choice(['the', 'a', 'no'])} {rng.choice(nouns)}"
        if depth and rng.random() < 0.4:
            phrase += f" that {rng.choice(verbs)} {noun_phrase(depth - 1)}"
        return phrase

    sentences, n = list[str](), 0
    while n < size:
        sentence = f"{noun_phrase(2)} {rng.choice(verbs)} {noun_phrase(2)}.".capitalize()
        sentences.append(sentence)
        n += len(sentence) + 1
    return " ".join(sentences)[:size]


def territories(language: str) -> str:
    """Names of languages and countries in another language, one per line."""
    from babel import Locale

    locale = Locale.parse(language)
    names = [*locale.territories.values(), *locale.languages.values()]
    return "\n".join(dict.fromkeys(name for name in names if name)) + "\n"


def import_log(size: int) -> str:
    """What Python reports of the modules that it imports, twice."""
    command = [sys.executable, "-X", "importtime", "-c", "import torch, pydantic, rich.console"]
    log = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True).stderr
    return log[:size]


TEXTS: dict[str, Callable[[], str]] = {
    "grammar-20k": lambda: grammar(20_000),
    "licences-60k": lambda: joined(PACKAGES.glob("*.dist-info/**/LICENSE*"), 60_000),
    "names-ru": lambda: territories("ru"),
    "names-first": lambda: (DATA / "first-names.txt").read_text(encoding="utf-8"),
    "log-150k": lambda: import_log(150_000),
    "markup-400k": lambda: joined((PACKAGES / "material").rglob("*.html"), 400_000),
    "prose-650k": lambda: joined([STDLIB / "pydoc_data" / "topics.py"], 650_000),
    "characters-1m": lambda: "\n".join(n for c in range(0x11000) if (n := unicodedata.name(chr(c), ""))),
    "python-2m": lambda: joined((STDLIB / "email").parent.glob("[a-l]*/*.py"), 2_000_000),
    "python-20m": lambda: joined(_torch_folder().rglob("*.py"), 20_000_000),
}


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def write_texts(names: list[str], folder: Path) -> list[Path]:
    """Write the texts that aren't there yet; returns those that exist."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in names:
        path = folder / f"{name}.txt"
        try:
            if not path.exists():
                path.write_text(TEXTS[name](), encoding="utf-8", newline="")
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        if path.stat().st_size < 10_000:
            print(f"{name} is left out: it has only {path.stat().st_size:,} bytes", file=sys.stderr)
            continue
        paths.append(path)
    return paths


def run_slowed(command: list[str], slowdown: float) -> None:
    """Run a command, stopped all but one part in ``slowdown`` of the time. Raises CalledProcessError."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while slowdown > 1 and process.poll() is None:
        time.sleep(RUNNING_SECONDS)
        process.send_signal(signal.SIGSTOP)
        time.sleep(RUNNING_SECONDS * (slowdown - 1))
        process.send_signal(signal.SIGCONT)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command)


def measure(path: Path, model: str, seconds: int, settings: list[str], slowdown: float, out: Path) -> Cell:
    """Train and score a model, unless this is done."""
    folder = out / f"{path.stem}-{model}-{seconds}s{f'-slowed-{slowdown:g}' if slowdown > 1 else ''}"
    cell = folder / "cell.json"
    if cell.exists():
        return read_json(cell)
    folder.mkdir(parents=True, exist_ok=True)
    options = f"--model {model} --max-time {seconds}s --seed 0 --quiet --overwrite --out {folder / 'run'}"
    train = [sys.executable, "-m", "makemore", "train", str(path), *options.split()]
    train += [part for setting in settings for part in ("--set", setting)]
    run_slowed(train, slowdown)
    scored = subprocess.run(
        [sys.executable, "-c", SCORE, str(folder / "run")], stdout=subprocess.PIPE, check=True
    )
    run = read_json(folder / "run" / "result.json")
    write_json(cell, {**json.loads(scored.stdout), "tokens": run["tokens"], "parameters": run["parameters"]})
    return read_json(cell)


def relative(cells: dict[str, Cell], earlier: dict[str, Cell]) -> float | None:
    """Geometric mean of the cells relative to the same cells of another measurement; None without any."""
    names = cells.keys() & earlier.keys()
    ratios = [math.log(cells[name]["bits_per_byte"] / earlier[name]["bits_per_byte"]) for name in names]
    return math.exp(sum(ratios) / len(ratios)) if ratios else None


def main(
    texts: str = typer.Option(",".join(TEXTS), help="Texts, separated by commas."),
    models: str = typer.Option("transformer,lstm", help="Models, separated by commas."),
    budgets: str = typer.Option("15,60", help="Training times in seconds, separated by commas."),
    settings: list[str] = typer.Option([], "--set", help="A setting in place of the recipe's; repeatable."),
    slowdown: float = typer.Option(1.0, min=1.0, help="How many times slower the machine shall seem."),
    against: Path | None = typer.Option(None, help="Cells to compare with, written by --json."),
    out: Path = typer.Option(Path("checkpoints/recipes"), help="Folder of texts, runs and finished cells."),
    json_file: Path | None = typer.Option(None, "--json", help="Also write the cells to this file."),
) -> None:
    """Print a table of bits per byte, and the geometric mean relative to other cells."""
    earlier = {} if against is None else json.loads(against.read_text(encoding="utf-8"))
    cells: dict[str, Cell] = {}
    print("| text | bytes | model | s | parameters | epochs | bits/byte | before | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for path in write_texts(texts.split(","), out / "texts"):
        for seconds in map(int, budgets.split(",")):
            for model in models.split(","):
                name = f"{path.stem} {model} {seconds}s"
                cell = cells[name] = measure(path, model, seconds, settings, slowdown, out)
                size = path.stat().st_size
                columns = [path.stem, f"{size:,}", model, str(seconds), f"{cell['parameters']:,}"]
                columns += [f"{cell['tokens'] / (0.9 * size):.1f}", f"{cell['bits_per_byte']:.4f}"]
                before = earlier.get(name, {}).get("bits_per_byte")
                columns += (
                    ["", ""] if before is None else [f"{before:.4f}", f"{cell['bits_per_byte'] / before:.4f}"]
                )
                print(f"| {' | '.join(columns)} |", flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    mean = relative(cells, earlier)
    if mean is not None:
        print(f"\nGeometric mean of the ratios: {mean:.4f}")


if __name__ == "__main__":
    typer.run(main)
