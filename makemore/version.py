"""The version of makemore."""

__version__ = "0.1.0"
