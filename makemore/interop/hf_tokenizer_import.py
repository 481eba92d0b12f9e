"""Import tokenizers of Hugging Face folders: GPT-2's byte-level BPE, and the tokenizers we export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from makemore.errors import UserError
from makemore.interop.gpt2_import import GPT2_TOKENS
from makemore.tokenizers import Tokenizer
from makemore.tokenizers.bpe import PATTERN, BPETokenizer, byte_decoder
from makemore.tokenizers.byte import ByteTokenizer
from makemore.tokenizers.char import CharTokenizer
from makemore.tokenizers.published import PublishedTokenizer
from makemore.tokenizers.ranks import Ranks

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PROBE = "It's 1,234 Äpfel — wouldn't\n\n\tthey've  GONE? 日本語 \U0001f600 nevertheless <b>x==y</b>   end \n"
"""Text that most tokenizers encode differently."""


def read_tokenizer(folder: Path, boundary: int) -> tuple[Tokenizer, str, list[int]]:
    """Our tokenizer, its name on the command line, and the Hugging Face id of each of our ids.

    ``boundary``: Hugging Face id of the token between documents. Raises UserError for unsupported tokenizers.
    """
    data = _read_json(folder)
    kind = data["model"].get("type", "BPE")
    vocab: dict[str, int] = dict(data["model"]["vocab"])
    ids = {token: id for token, id in vocab.items() if id != boundary}
    if kind == "WordLevel" and all(len(token) == 1 for token in ids):
        alphabet = "".join(sorted(ids))
        tokenizer: Tokenizer = CharTokenizer(alphabet)
        rows = [boundary, *(ids[char] for char in alphabet)]
    elif kind == "BPE":
        tokenizer, rows = _read_bpe(folder, data, ids, boundary)
    else:
        raise UserError(f"{folder}: {kind} tokenizers aren't supported, only byte-level BPE and characters")
    _check_same_ids(folder, data, tokenizer, rows)
    return tokenizer, _cli_name(tokenizer), rows


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        if (folder / "tokenizer.json").is_file():
            return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{folder} has neither tokenizer.json nor vocab.json with merges.txt") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: the tokenizer can't be read: {error}") from None
    merges = [line for line in lines if line and not line.startswith("#version")]
    return {"model": {"type": "BPE", "vocab": vocab, "merges": merges}}


def _read_bpe(
    folder: Path, data: dict[str, Any], ids: dict[str, int], boundary: int
) -> tuple[Tokenizer, list[int]]:
    byte_offset = byte_decoder()
    pairs = [m.split(" ") if isinstance(m, str) else m for m in data["model"]["merges"]]
    # Two merges may give the same token; the first counts.
    order = list(dict.fromkeys([*byte_offset, *(a + b for a, b in pairs)]))
    special = {token["id"] for token in data.get("added_tokens", [])}
    extra = [token for token in set(ids) - set(order) if ids[token] not in special]
    missing = [token for token in order if token not in ids]
    if extra or missing:
        raise UserError(f"{folder}: the tokenizer isn't byte-level BPE ({(extra or missing)[0]!r})")
    order.sort(key=ids.__getitem__)
    tokens = [bytes(byte_offset[letter] for letter in token) for token in order]
    rows = [boundary, *(ids[token] for token in order)]
    pattern = _split_pattern(data)
    if pattern is None and tokens == [bytes([b]) for b in range(256)]:
        return ByteTokenizer(), rows
    if pattern == PATTERN:
        return BPETokenizer(tokens), rows
    name = "gpt2" if len(tokens) == GPT2_TOKENS else folder.resolve().name
    ranks = Ranks(pattern or GPT2_PATTERN, tokens)
    return PublishedTokenizer(name, ranks, np.ones(len(tokens), bool)), rows


def _split_pattern(data: dict[str, Any]) -> str | None:
    """Regular expression that splits a text before BPE, if any."""
    pre_tokenizer = data.get("pre_tokenizer", {"type": "ByteLevel", "use_regex": True}) or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if any(step.get("type") == "ByteLevel" and step.get("use_regex", True) for step in steps):
        return GPT2_PATTERN
    return next((p["pattern"]["Regex"] for p in steps if "Regex" in p.get("pattern", {})), None)


def _check_same_ids(folder: Path, data: dict[str, Any], tokenizer: Tokenizer, rows: list[int]) -> None:
    """Raise UserError if our tokenizer encodes the probe text differently."""
    if "pre_tokenizer" not in data:  # vocab.json and merges.txt give no further rules
        return
    probe = tokenizer.remove_unknown(PROBE)
    try:
        theirs = tokenizers.Tokenizer.from_str(json.dumps(data)).encode(probe, add_special_tokens=False).ids
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise UserError(f"{folder}: the tokenizer can't be read: {error}") from None
    if [rows[i] for i in tokenizer.encode(probe).tolist()] != theirs:
        raise UserError(f"{folder}: the tokenizer has rules that our tokenizers don't support")


def _cli_name(tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer, PublishedTokenizer):
        return f"tiktoken:{tokenizer.encoding}:full"
    return f"bpe:{tokenizer.vocab_size}" if isinstance(tokenizer, BPETokenizer) else tokenizer.name
