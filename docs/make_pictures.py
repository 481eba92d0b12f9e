"""Make the pictures of the ladder's pages: ``python docs/make_pictures.py [MODEL ...]``.

Trains each model for twenty seconds on the bundled first names and saves one picture of ``makemore inspect``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from makemore.micrograd import Value, to_svg

FOLDER = Path(__file__).resolve().parent / "ladder" / "pictures"
PICTURES = {
    "count": "orders",
    "bigram": "bigrams",
    "mlp": "embeddings",
    "bow": "reach",
    "batchnorm-mlp": "activations",
    "wavenet": "reach",
    "rnn": "gates",
    "gru": "gates",
    "lstm": "gates",
    "transformer": "attention",
    "context-mixing": "contexts",
    "mixture": "members",
    "auto": "members",
}
"""The picture of each model that shows best what it adds."""
MEMBERS = ("count", "lstm")
"""Models in the mixture."""


def makemore(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "makemore", *map(str, arguments)], check=True)


def train(model: str, folder: Path) -> Path:
    """Train a model, or members and their mixture; returns its run directory."""
    run = folder / model
    if model == "mixture":
        makemore("mix", *(train(member, folder / "members") for member in MEMBERS), "--out", run)
    else:
        makemore("train", "--model", model, "--max-time", "20s", "--out", run)
    return run


def make_picture(model: str, folder: Path) -> None:
    """Train a model and save its picture in FOLDER."""
    if model == "micrograd":
        x, w = Value(2.0, label="x"), Value(-0.5, label="w")
        out = (x * w + 1.6).tanh()
        out.backward()
        (FOLDER / "micrograd.svg").write_text(to_svg(out), encoding="utf-8")
        return
    run = train(model, folder)
    makemore("inspect", run)
    picture = Image.open(folder / f"{model}-inspect" / f"{PICTURES[model]}.png").convert("RGB")
    picture.quantize(128).save(FOLDER / f"{model}.png", optimize=True)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for model in sys.argv[1:] or ["micrograd", *PICTURES]:
            make_picture(model, Path(folder))


if __name__ == "__main__":
    main()
