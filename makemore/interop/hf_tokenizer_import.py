"""Tokenizers of Hugging Face folders as ours: byte-level BPE, as GPT-2 has it, and what we export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from makemore.errors import UserError
from makemore.interop.gpt2_import import GPT2_TOKENS
from makemore.tokenizers import Tokenizer
from makemore.tokenizers.bpe import PATTERN, BPETokenizer, bytes_by_letter
from makemore.tokenizers.byte import ByteTokenizer
from makemore.tokenizers.char import CharTokenizer
from makemore.tokenizers.published import PublishedTokenizer
from makemore.tokenizers.ranks import Ranks

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PROBE = "It's 1,234 Äpfel — wouldn't\n\n\tthey've  GONE? 日本語 \U0001f600 nevertheless <b>x==y</b>   end \n"
"""Text that tells most tokenizers apart."""


def read_tokenizer(folder: Path, boundary: int) -> tuple[Tokenizer, str, list[int]]:
    """Our tokenizer, how the command line spells it, and the id that each of our ids has there.

    ``boundary``: their id of the token between documents. Raises UserError for a tokenizer of a kind
    that there isn't one of ours for.
    """
    data = _read(folder)
    kind = data["model"].get("type", "BPE")
    vocab: dict[str, int] = dict(data["model"]["vocab"])
    ids = {token: id for token, id in vocab.items() if id != boundary}
    if kind == "WordLevel" and all(len(token) == 1 for token in ids):
        alphabet = "".join(sorted(ids))
        tokenizer: Tokenizer = CharTokenizer(alphabet)
        rows = [boundary, *(ids[char] for char in alphabet)]
    elif kind == "BPE":
        tokenizer, rows = _byte_pairs(folder, data, ids, boundary)
    else:
        raise UserError(f"{folder}: no tokenizer of ours is like its {kind}")
    _check_alike(folder, data, tokenizer, rows)
    return tokenizer, _spelling(tokenizer), rows


def _read(folder: Path) -> dict[str, Any]:
    try:
        if (folder / "tokenizer.json").is_file():
            return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{folder} has neither tokenizer.json nor vocab.json with merges.txt") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its tokenizer can't be read: {error}") from None
    merges = [line for line in lines if line and not line.startswith("#version")]
    return {"model": {"type": "BPE", "vocab": vocab, "merges": merges}}


def _byte_pairs(
    folder: Path, data: dict[str, Any], ids: dict[str, int], boundary: int
) -> tuple[Tokenizer, list[int]]:
    byte_of = bytes_by_letter()
    pairs = [m.split(" ") if isinstance(m, str) else m for m in data["model"]["merges"]]
    # Two merges may make one token: the first counts.
    order = list(dict.fromkeys([*byte_of, *(a + b for a, b in pairs)]))
    special = {token["id"] for token in data.get("added_tokens", [])}
    others = [token for token in set(ids) - set(order) if ids[token] not in special]
    missing = [token for token in order if token not in ids]
    if others or missing:
        raise UserError(f"{folder}: its tokenizer isn't byte-level BPE ({(others or missing)[0]!r})")
    order.sort(key=ids.__getitem__)
    tokens = [bytes(byte_of[letter] for letter in token) for token in order]
    rows = [boundary, *(ids[token] for token in order)]
    pattern = _pattern(data)
    if pattern is None and tokens == [bytes([b]) for b in range(256)]:
        return ByteTokenizer(), rows
    if pattern == PATTERN:
        return BPETokenizer(tokens), rows
    name = "gpt2" if len(tokens) == GPT2_TOKENS else folder.resolve().name
    ranks = Ranks(pattern or GPT2_PATTERN, tokens)
    return PublishedTokenizer(name, ranks, np.ones(len(tokens), bool)), rows


def _pattern(data: dict[str, Any]) -> str | None:
    """The expression that cuts a text beforehand; None: nothing does."""
    before = data.get("pre_tokenizer", {"type": "ByteLevel", "use_regex": True}) or {}
    parts = before.get("pretokenizers", [before])
    if any(part.get("type") == "ByteLevel" and part.get("use_regex", True) for part in parts):
        return GPT2_PATTERN
    return next((p["pattern"]["Regex"] for p in parts if "Regex" in p.get("pattern", {})), None)


def _check_alike(folder: Path, data: dict[str, Any], tokenizer: Tokenizer, rows: list[int]) -> None:
    """Raises UserError where ours cuts a text in another way than theirs."""
    if "pre_tokenizer" not in data:  # GPT-2's own files, which say no more
        return
    probe = tokenizer.without_unspellable(PROBE)
    try:
        theirs = tokenizers.Tokenizer.from_str(json.dumps(data)).encode(probe, add_special_tokens=False).ids
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise UserError(f"{folder}: its tokenizer can't be read: {error}") from None
    if [rows[i] for i in tokenizer.encode(probe).tolist()] != theirs:
        raise UserError(f"{folder}: its tokenizer has rules that none of ours has")


def _spelling(tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer, PublishedTokenizer):
        return f"tiktoken:{tokenizer.encoding}:full"
    return f"bpe:{tokenizer.vocab_size}" if isinstance(tokenizer, BPETokenizer) else tokenizer.name
