"""Weights for ``train --init-from``: a run or a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

from makemore.interop.hf import is_hugging_face, read_gpt2
from makemore.training.pretrained import PretrainedModel, read_run


def read_pretrained(folder: Path) -> PretrainedModel:
    """Read a run, or a GPT-2 saved by Hugging Face's transformers. Raises UserError if it is neither."""
    return read_gpt2(folder) if is_hugging_face(folder) else read_run(folder)
