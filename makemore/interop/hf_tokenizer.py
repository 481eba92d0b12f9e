"""Convert tokenizers to and from the format of Hugging Face's ``tokenizers`` library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from makemore.errors import UserError
from makemore.interop.gpt2 import GPT2_TOKENS
from makemore.runtime.untrusted import read_foreign_json, read_limited
from makemore.tokenizers import Tokenizer
from makemore.tokenizers.bpe import PATTERN, BPETokenizer, byte_decoder, byte_encoder
from makemore.tokenizers.byte import ByteTokenizer
from makemore.tokenizers.char import CharTokenizer
from makemore.tokenizers.published import PublishedTokenizer
from makemore.tokenizers.ranks import Ranks

BOUNDARY = "<|endoftext|>"
"""The boundary token; as in GPT-2, it begins and ends documents."""


def to_hugging_face(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Convert a tokenizer to one that prepends the boundary. Raises UserError if it can't be converted."""
    if isinstance(tokenizer, CharTokenizer):
        converted = _char_level(tokenizer.alphabet)
    elif isinstance(tokenizer, ByteTokenizer):
        converted = _byte_level_bpe([bytes([b]) for b in range(256)], None)
    else:
        ranks = _supported_ranks(tokenizer)
        converted = _byte_level_bpe(ranks.tokens, ranks.pattern)
    converted.add_special_tokens([AddedToken(BOUNDARY, special=True, normalized=False)])
    converted.post_processor = processors.TemplateProcessing(
        single=f"{BOUNDARY} $A", special_tokens=[(BOUNDARY, tokenizer.boundary_id)]
    )
    return converted


def _supported_ranks(tokenizer: Tokenizer) -> Ranks:
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.ranks
    if isinstance(tokenizer, PublishedTokenizer):
        if tokenizer.is_full:
            return tokenizer.ranks
        raise UserError(
            f"this run has a subset of {tokenizer.encoding}'s tokens, and Hugging Face's library can't spell "
            f"the others as bytes; train with --tokenizer tiktoken:{tokenizer.encoding}:full"
        )
    raise UserError(
        f"--format hf doesn't support the tokenizer {tokenizer.name}; train with char, byte, bpe:N or "
        "tiktoken:NAME:full"
    )


def _char_level(alphabet: str) -> tokenizers.Tokenizer:
    # No unknown token: an unknown character is an error, as in our tokenizer.
    ids = {BOUNDARY: 0} | {char: i for i, char in enumerate(alphabet, start=1)}
    converted = tokenizers.Tokenizer(models.WordLevel(ids))
    converted.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    converted.decoder = decoders.Fuse()
    return converted


def _byte_level_bpe(tokens: Sequence[bytes], pattern: str | None) -> tokenizers.Tokenizer:
    """Byte-level BPE over pieces split by ``pattern``; ids from 1, in merge order."""
    letters = byte_encoder()
    spelled = ["".join(letters[b] for b in token) for token in tokens]
    ids = {BOUNDARY: 0} | {token: i for i, token in enumerate(spelled, start=1)}
    merges = [pair for token in spelled for pair in _merges_of(token, ids)]
    # Without a pattern, a text that spells the boundary would be a token without merges.
    converted = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=pattern is not None))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    converted.pre_tokenizer = pre_tokenizers.Sequence([*split, to_bytes])
    converted.decoder = decoders.ByteLevel()
    return converted


def _merges_of(token: str, ids: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs of tokens that merge into ``token``; tiktoken ranks a merge by its result, not its parts."""
    halves = [(token[:i], token[i:]) for i in range(1, len(token))]
    pairs = [(a, b) for a, b in halves if a in ids and b in ids]
    return sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


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
            return read_foreign_json(folder / "tokenizer.json")
        vocab = read_foreign_json(folder / "vocab.json")
        lines = read_limited(folder / "merges.txt").decode("utf-8").split("\n")
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
