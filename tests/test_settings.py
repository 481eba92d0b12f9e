"""Settings: conversion to the type of the field, and validation errors."""

from __future__ import annotations

import contextlib
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from makemore.errors import UserError
from makemore.settings import CorpusConfig, Settings, TrainConfig, parse
from makemore.settings.base import inner_settings, setting_names
from makemore.settings.corpus import split_fractions
from makemore.training.request import parse_assignments


class Sample(Settings):
    """One field of each supported type."""

    count: int = Field(1, description="an integer")
    rate: float = Field(0.5, description="a float")
    flag: bool = Field(False, description="a boolean")
    kind: Literal["big", "small"] = Field("big", description="one of two")
    limit: int | None = Field(None, description="an optional integer")
    word: str = Field("a", description="any text")


@pytest.mark.parametrize(
    ("key", "raw", "value"),
    [
        ("count", "3", 3),
        ("count", "-3", -3),
        ("count", 1e3, 1000),
        ("count", "3.0", 3),
        ("count", 4, 4),
        ("count", str(2**62 + 1), 2**62 + 1),
        ("rate", "1e-3", 1e-3),
        ("rate", "3", 3.0),
        ("rate", 3, 3.0),
        ("flag", "yes", True),
        ("flag", "FALSE", False),
        ("flag", True, True),
        ("flag", "0", False),
        ("kind", "small", "small"),
        ("limit", "none", None),
        ("limit", "None", None),
        ("limit", None, None),
        ("limit", "7", 7),
        ("word", "a=b", "a=b"),
        ("word", "", ""),
    ],
)
def test_values_are_converted_to_the_field_type(key, raw, value):
    converted = getattr(parse(Sample, {key: raw}, "model"), key)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("key", "raw", "message"),
    [
        ("count", "3.5", "model.count=3.5: must be a whole number"),
        ("count", "", "must be a whole number"),
        ("count", "²", "must be a whole number"),
        ("count", "inf", "must be a whole number"),
        ("count", "9" * 5000, "must be a whole number"),
        ("count", [1], "must be a whole number"),
        ("count", None, "must be a whole number"),
        ("limit", "some", "must be a whole number"),
        ("rate", "fast", "must be a number"),
        ("rate", "nan", "must be a number"),
        ("rate", "-inf", "must be a number"),
        ("flag", "maybe", "must be true or false"),
        ("kind", "medium", "must be one of big, small"),
        ("cuont", "3", "did you mean 'model.count'"),
    ],
)
def test_invalid_values_are_refused(key, raw, message):
    with pytest.raises(UserError, match=message):
        parse(Sample, {key: raw}, "model")


@given(st.integers(-(2**70), 2**70))
def test_integers_are_parsed_exactly(number):
    assert parse(Sample, {"count": str(number)}, "model").count == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_parsed_exactly(number):
    assert parse(Sample, {"rate": repr(number)}, "model").rate == number


@given(st.sampled_from(setting_names(Sample)), st.text())
def test_any_text_parses_or_raises_a_user_error(key, text):
    with contextlib.suppress(UserError):
        parse(Sample, {key: text}, "model")


def test_unnamed_fields_keep_their_values():
    assert parse(Sample, {}, "model") == Sample()
    assert parse(Sample, {"count": 9}, "model") == Sample(count=9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1),
        ("weight_decay", -0.1),
        ("beta1", 1),
        ("beta2", -0.1),
        ("clip", -1),
        ("warmdown_fraction", 1.5),
        ("warmup_steps", -1),
        ("block_size", 0),
        ("batch_tokens", 0),
        ("eval_interval", 0),
        ("eval_tokens", 0),
        ("patience", -1),
        ("save_interval", -1),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_out_of_range_train_settings_are_refused(name, value):
    with pytest.raises(UserError, match=rf"train\.(\w+\.)?{name}={value}: must be"):
        parse(TrainConfig, {name: value}, "train")


def test_every_setting_has_help():
    for config in (TrainConfig, CorpusConfig):
        assert all(
            field.description or name in inner_settings(config) for name, field in config.model_fields.items()
        )


class TestAssignments:
    def test_values_are_read_as_in_toml(self):
        assignments = parse_assignments(
            ["model.a=1", " train.b = 2.5 ", "model.c=x=y", "train.o.d=1e3", "model.e=true", "model.f=a\nb=1"]
        )
        assert assignments == [
            {"model": {"a": 1}},
            {"train": {"b": 2.5}},
            {"model": {"c": "x=y"}},
            {"train": {"o": {"d": 1000.0}}},
            {"model": {"e": "true"}},
            {"model": {"f": "a\nb=1"}},
        ]

    def test_the_tokenizer_has_no_section(self):
        assert parse_assignments(["tokenizer=bpe:512"]) == [{"tokenizer": "bpe:512"}]

    @pytest.mark.parametrize("text", ["a=1", "model.a", "", "=", "train=1", "model.=1", "model..a=1"])
    def test_malformed_assignments_are_refused(self, text):
        with pytest.raises(UserError, match=r"write section\.name=value"):
            parse_assignments([text])

    def test_unknown_section_suggests_the_nearest(self):
        with pytest.raises(UserError, match="did you mean 'model'"):
            parse_assignments(["modle.a=1"])


class TestSplitFractions:
    def test_auto_depends_on_the_mode(self):
        assert split_fractions("auto", "lines") == (0.8, 0.1, 0.1)
        assert split_fractions("auto", "text") == (0.9, 0.05, 0.05)

    def test_explicit_fractions(self):
        assert split_fractions("0.5, 0.25,0.25", "lines") == (0.5, 0.25, 0.25)
        assert split_fractions("1,0,0", "text") == (1.0, 0.0, 0.0)
        thirds = split_fractions("0.3333333,0.3333333,0.3333333", "text")
        assert sum(thirds) == pytest.approx(1)

    @pytest.mark.parametrize(
        "spec", ["", "1", "0.5,0.5", "a,b,c", "0.9,0.9,0.9", "1.5,-0.5,0", "nan,0.5,0.5"]
    )
    def test_invalid_fractions_are_refused(self, spec):
        with pytest.raises(UserError, match="three fractions that sum to 1"):
            split_fractions(spec, "lines")

    def test_train_fraction_must_be_positive(self):
        with pytest.raises(UserError, match="nothing to train on"):
            split_fractions("0,0.5,0.5", "lines")
