"""Export as one web page that runs the model offline: next characters' probabilities, and samples."""

from __future__ import annotations

import base64
import copy
import gzip
import json
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from makemore.errors import UserError
from makemore.interop.base import ExportFormat
from makemore.interop.html.describe import describe_model
from makemore.interop.html.package import Package
from makemore.models.base import CountModel, LanguageModel, MixtureModel
from makemore.models.context_mixing.model import ContextMixing
from makemore.runs.run import Run
from makemore.sampling.text import SampleRequest, context_ids
from makemore.tokenizers import Tokenizer
from makemore.tokenizers.byte import ByteTokenizer
from makemore.tokenizers.char import CharTokenizer

SCRIPTS = ("tensors.js", "operations.js", "context_mixing.js", "model.js", "page.js")
"""In the order in which they build on each other."""


def page_bytes(run: Run) -> bytes:
    """The page. Raises UserError for a model or tokenizer that it can't hold."""
    model = run.model
    described: dict[str, Any] = {
        "lines": run.mode == "lines",
        "tokenizer": _describe_tokenizer(run.tokenizer),
        "start": context_ids(run, SampleRequest()).tolist(),  # what an empty text is continued from
    }
    package = Package()
    described["model"] = describe_model(copy.deepcopy(model).cpu().eval(), package)
    data = base64.b64encode(gzip.compress(bytes(package.data), 6, mtime=0)).decode()
    title = f"Text model: {model.config.name}"
    about = (
        f"A language model with {model.n_parameters():,} {_kinds(model)}, made with makemore. "
        "This page holds all of it and works offline."
    )
    if _counts_text(model):
        about += " It also holds the training text, which it counts when opened."
    return (
        Template(_resource("page.html"))
        .substitute(
            TITLE=escape(title),
            ABOUT=escape(about),
            STYLE=_resource("page.css"),
            MODEL=json.dumps(described, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
            DATA=data,
            SCRIPT="\n".join(_resource(name) for name in SCRIPTS),
        )
        .encode()
    )


def _members(model: LanguageModel) -> list[LanguageModel]:
    return model.members if isinstance(model, MixtureModel) else [model]


def _kinds(model: LanguageModel) -> str:
    """What ``n_parameters`` of a model are."""
    are_counts = [isinstance(member, CountModel) for member in _members(model)]
    if any(are_counts) and isinstance(model, MixtureModel):  # a gate has parameters, too
        return "parameters and counts"
    return "counts" if any(are_counts) else "parameters"


def _counts_text(model: LanguageModel) -> bool:
    return any(isinstance(member, ContextMixing) for member in _members(model))


def _note(model: LanguageModel) -> str:
    if not _counts_text(model):
        return ""
    return "the page contains the training text; share it only with people who may read that text"


def _describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    if isinstance(tokenizer, CharTokenizer):
        return {"alphabet": tokenizer.alphabet}
    if isinstance(tokenizer, ByteTokenizer):
        return {}
    raise UserError(f"--format html takes the tokenizers char and byte, not {tokenizer.name}")


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


FORMAT = ExportFormat(suffix=".html", files=lambda run: {"": page_bytes(run)}, note=_note)
