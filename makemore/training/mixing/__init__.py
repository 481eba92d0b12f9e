"""Combine trained models: by constant weights, by a gate, or trained in turn as ``auto``."""
