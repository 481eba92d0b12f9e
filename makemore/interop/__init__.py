"""Trained models in other programs' formats, a file a format."""
