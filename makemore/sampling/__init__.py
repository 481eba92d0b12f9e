"""Sampling, beam search and incremental generation, for every model."""

from makemore.sampling.beam import beam_search
from makemore.sampling.generate import generate
from makemore.sampling.logits import Noise, SampleParams, choose, distribution, entropy_bits

__all__ = ["Noise", "SampleParams", "beam_search", "choose", "distribution", "entropy_bits", "generate"]
