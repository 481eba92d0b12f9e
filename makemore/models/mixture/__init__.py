"""Mixtures of models."""

from makemore.models.mixture.gate import Gate
from makemore.models.mixture.model import Auto, AutoConfig, Mixture, MixtureConfig

__all__ = ["Auto", "AutoConfig", "Gate", "Mixture", "MixtureConfig"]
