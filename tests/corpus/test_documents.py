"""Splitting texts into documents and splits, compared with the code of the lectures and of nanoGPT."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from makemore.corpus.documents import MAX_HELD_OUT, SPLITS, Documents
from makemore.corpus.documents import make_documents as documents_of
from makemore.corpus.mode import choose_mode
from makemore.corpus.text import Text
from makemore.errors import UserError
from makemore.settings import CorpusConfig

rng = random.Random(0)


def make_documents(text: str, config: CorpusConfig) -> Documents:
    return documents_of(Text.of(text), config)


def parts_of(documents: Documents) -> dict[str, list[str]]:
    return {name: documents.all(name) for name in SPLITS}


WORDS = ["".join(rng.choice("aeioubdkl") for _ in range(rng.randint(3, 9))) for _ in range(400)]


def sentences(n: int) -> str:
    return " ".join(" ".join(rng.choice(WORDS) for _ in range(rng.randint(6, 15))) + "." for _ in range(n))


NAMES = "\n".join(WORDS)
PROSE = "\n\n".join(sentences(6) for _ in range(30))
WRAPPED = "\n".join(textwrap.wrap(sentences(200), 72))
POEM = "\n\n".join("\n".join(" ".join(rng.choices(WORDS, k=5)) for _ in range(4)) for _ in range(20))
PLAY = "\n\n".join(f"{w.upper()}:\n{sentences(1)}" for w in WORDS[:60])
SOURCE = "".join(
    f"def {w}(x):\n    if x:\n        return {i}\n    return x\n\n\n" for i, w in enumerate(WORDS[:60])
)
CSV = "name,age\n" + "\n".join(f"{w},{i % 90}" for i, w in enumerate(WORDS))


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        (NAMES, "lines", "a list of 400 short lines"),
        (NAMES + "\n", "lines", "a list of 400 short lines"),
        (CSV, "lines", "a list of 401 short lines"),
        (PROSE, "text", "blank"),
        (WRAPPED, "text", "lines are long"),
        (POEM, "text", "blank"),
        (PLAY, "text", "blank"),
        (SOURCE, "text", "blank"),
        (SOURCE.replace("\n\n\n", "\n"), "text", "indented"),
        ("one line of text", "text", "1 line"),
        ("a few more\nlines than one\n", "text", "2 lines"),
    ],
)
def test_mode_is_detected_with_a_reason(text, mode, reason):
    chosen, why = choose_mode(text)
    assert chosen == mode
    assert reason in why
    documents = make_documents(text, CorpusConfig())
    assert (documents.mode, documents.reason) == (chosen, why)


def test_lines_are_split_as_in_the_lectures():
    lines = list(WORDS)
    random.Random(42).shuffle(lines)
    n1, n2 = int(0.8 * len(lines)), int(0.9 * len(lines))
    parts = parts_of(make_documents(NAMES, CorpusConfig(mode="lines")))
    assert parts == {"train": lines[:n1], "val": lines[n1:n2], "test": lines[n2:]}


def test_names_are_split_as_in_the_lectures(names_file):
    words = names_file.read_text().splitlines()
    random.Random(42).shuffle(words)
    n1, n2 = int(0.8 * len(words)), int(0.9 * len(words))
    documents = make_documents(names_file.read_text(), CorpusConfig())
    assert documents.mode == "lines"
    assert parts_of(documents) == {"train": words[:n1], "val": words[n1:n2], "test": words[n2:]}


@given(st.integers(40, 3000))
def test_last_tenth_of_a_text_is_the_nanogpt_val_split(n):
    text = (PROSE * 2)[:n]
    parts = {
        name: "".join(d) for name, d in parts_of(make_documents(text, CorpusConfig(mode="text"))).items()
    }
    assert parts["train"] == text[: int(n * 0.9)]
    assert parts["val"] + parts["test"] == text[int(n * 0.9) :]
    assert abs(len(parts["val"]) - len(parts["test"])) <= 1


def test_shakespeare_val_split_matches_nanogpt(shakespeare_file):
    text = shakespeare_file.read_text()
    parts = parts_of(make_documents(text, CorpusConfig()))
    assert parts["train"] == [text[: int(len(text) * 0.9)]]
    assert parts["val"][0] + parts["test"][0] == text[int(len(text) * 0.9) :]


@given(st.lists(st.text("ab \t", max_size=4), min_size=40, max_size=80), st.sampled_from(["\n", "\n\n", ""]))
def test_only_blank_lines_are_dropped(lines, end):
    text = "\n".join(["ab"] * 10 + lines) + end
    documents = make_documents(text, CorpusConfig(mode="lines"))
    documents_in_splits = sorted(d for part in parts_of(documents).values() for d in part)
    assert documents_in_splits == sorted(line for line in text.split("\n") if line.strip())
    assert documents.blank_lines + len(documents_in_splits) + text.endswith("\n") == text.count("\n") + 1


@pytest.mark.parametrize("mode", ["lines", "text"])
@pytest.mark.parametrize("fractions", ["0.5,0.25,0.25", "1,0,0", "0.9,0.1,0", "0.5,0,0.5"])
def test_split_sizes_match_the_fractions(mode, fractions):
    documents = make_documents(NAMES, CorpusConfig(mode=mode, split=fractions))
    sizes = [sum(len(d) for d in p) if mode == "text" else len(p) for p in parts_of(documents).values()]
    expected = [float(fraction) * sum(sizes) for fraction in fractions.split(",")]
    assert all(abs(size - wanted) <= 1 for size, wanted in zip(sizes, expected, strict=True))
    assert documents.fractions == tuple(float(s) for s in fractions.split(","))


def test_split_digest_depends_on_its_documents_and_their_order():
    one, two = (make_documents(text, CorpusConfig(mode="lines")) for text in (NAMES, NAMES + "\n\n"))
    other = make_documents(NAMES.replace(WORDS[0], "zzz", 1), CorpusConfig(mode="lines"))
    assert [one.digest(s) for s in SPLITS] == [two.digest(s) for s in SPLITS]
    assert [one.digest(s) for s in SPLITS] != [other.digest(s) for s in SPLITS]


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("a", "auto", "fewer than two distinct characters"),
        ("aaa\n", "text", "fewer than two distinct characters"),
        ("", "text", "fewer than two distinct characters"),
        ("ab\n\n  \n", "lines", "only one line"),
        ("ab\ncd\n", "lines", "the val split would be empty"),
        ("ab", "text", "too short"),
    ],
)
def test_too_little_text_is_refused(text, mode, message):
    with pytest.raises(UserError, match=message):
        make_documents(text, CorpusConfig(mode=mode))


@given(
    st.lists(st.sampled_from(["ada", "bo", "cy", "di", "é", "fa"]), min_size=30, max_size=90),
    st.integers(0, 3),
)
def test_dedupe_keeps_equal_lines_together(lines, extra):
    text = "\n".join([*lines, *(f"only {i}" for i in range(12 + extra))])
    documents = make_documents(text, CorpusConfig(mode="lines", split="0.5,0.25,0.25", dedupe=True))
    parts = parts_of(documents)
    assert sorted(line for part in parts.values() for line in part) == sorted(text.split("\n"))
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not set(parts[a]) & set(parts[b])
    n_distinct = [len(set(part)) for part in parts.values()]
    assert abs(n_distinct[0] - sum(n_distinct) / 2) <= 1


def test_dedupe_needs_lines_mode():
    with pytest.raises(UserError, match="--dedupe needs lines"):
        make_documents(PROSE, CorpusConfig(mode="text", dedupe=True))


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_held_out_splits_of_a_huge_text_are_capped_by_default(mode, monkeypatch):
    monkeypatch.setitem(MAX_HELD_OUT, mode, 30)
    capped = make_documents(NAMES, CorpusConfig(mode=mode))
    sizes = [sum(len(d) for d in p) if mode == "text" else len(p) for p in parts_of(capped).values()]
    assert capped.capped
    assert sizes[1:] == [30, 30]
    explicit = make_documents(NAMES, CorpusConfig(mode=mode, split="0.8,0.1,0.1"))
    assert not explicit.capped
    joined = [[x for part in parts_of(d).values() for x in part] for d in (capped, explicit)]
    assert joined[0] == joined[1] if mode == "lines" else "".join(joined[0]) == "".join(joined[1]) == NAMES


def test_blank_lines_are_dropped_and_leading_blanks_kept():
    text = "\n".join(["a", "", " ", "\t", "\u3000", "\u00a0\u2003", " b", "\u3000c", "é", "👩", "\x0b"])
    documents = make_documents(text, CorpusConfig(mode="lines", split="1,0,0"))
    assert sorted(documents.all("train")) == sorted(["a", " b", "\u3000c", "é", "👩"])
    assert documents.blank_lines == 6


@pytest.mark.parametrize("mode", ["lines", "text"])
def test_head_reads_no_more_than_it_needs(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("makemore.corpus.text.BLOCK", 100)
    monkeypatch.setattr("makemore.corpus.documents.LINES_PER_BLOCK", 2)
    documents = make_documents(PROSE, CorpusConfig(mode=mode))
    train_text = "".join(documents.all("train"))
    part_sizes: list[int] = []
    original_read = Documents.read

    def counting_read(self: Documents, split: str) -> Iterator[list[str]]:
        for part in original_read(self, split):
            part_sizes.append(sum(map(len, part)))
            yield part

    monkeypatch.setattr(Documents, "read", counting_read)
    assert documents.head("train", 250) == train_text[:250]
    assert sum(part_sizes[:-1]) < 250
    assert len(train_text) > 2 * sum(part_sizes)
    assert documents.head("train", 10**6) == train_text
