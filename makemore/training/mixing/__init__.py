"""Combine trained models: by constant weights, by a gate, or trained together as ``auto``."""
