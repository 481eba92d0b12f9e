"""Measure each tokenizer's encoding speed in MB of UTF-8 per second, on one thread.

    python benchmarks/encode.py --megabytes 16

Both texts are random words; the mixed one has Latin, Cyrillic, Greek and CJK characters of one to three
bytes. Reports the best of five runs after a warm-up run.
"""

from __future__ import annotations

import os
import random
import time

os.environ.setdefault("RAYON_NUM_THREADS", "1")

import typer

from makemore.tokenizers import fit_tokenizer

ALPHABETS = {
    "ASCII": "etaoinshrdlucmfwypvbgkjqxz" * 4 + "ETAOINS.,;'",
    "mixed": "etaoinshrdlu" + "éüñçøß" + "оеаинтсрвлкм" + "αειονστ" + "的一是不了人我在有他这",
}
SPECS = ("char", "byte", "bpe:512", "bpe:2048", "spm:512", "spm-unigram:512")


def make_text(alphabet: str, megabytes: float) -> str:
    """Random words of one to nine letters, about ``megabytes`` of UTF-8."""
    rng = random.Random(0)
    words = ["".join(rng.choices(alphabet, k=rng.randint(1, 9))) for _ in range(20_000)]
    bytes_per_word = len(" ".join(words).encode()) / len(words)
    chosen = rng.choices(words, k=int(megabytes * 1e6 / bytes_per_word))
    return "".join(word + ("\n" if i % 12 == 11 else " ") for i, word in enumerate(chosen))


def best_seconds(spec: str, text: str) -> float:
    tokenizer = fit_tokenizer(spec, [text[:500_000], *sorted(set(text))])
    times = []
    for _ in range(6):
        start = time.perf_counter()
        tokenizer.encode(text)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main(
    megabytes: float = typer.Option(16.0, help="Size of each text in MB."),
    only: str = typer.Option(",".join(SPECS), help="Tokenizers, separated by commas."),
) -> None:
    """Print a Markdown table."""
    texts = {name: make_text(alphabet, megabytes) for name, alphabet in ALPHABETS.items()}
    print("| tokenizer | " + " | ".join(f"{name}, MB/s" for name in texts) + " |")
    print("|---" * (len(texts) + 1) + "|")
    for spec in only.split(","):
        speeds = [len(text.encode()) / 1e6 / best_seconds(spec, text) for text in texts.values()]
        print(f"| {spec} | " + " | ".join(f"{speed:,.0f}" for speed in speeds) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
