"""Import and export other programs' formats: one file per format, and a registry of export formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from makemore.registry import Registry

if TYPE_CHECKING:
    from makemore.interop.base import ExportFormat

FORMATS: Registry[ExportFormat] = Registry(
    "format",
    {
        "hf": "makemore.interop.hf:FORMAT",
        "onnx": "makemore.interop.onnx:FORMAT",
        "html": "makemore.interop.html.page:FORMAT",
        "arpa": "makemore.interop.arpa:FORMAT",
    },
)
"""Formats of ``makemore export``."""
