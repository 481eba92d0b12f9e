"""Sampling, beam search and incremental generation, for every model."""

from makemore.sampling.beam import beam_search
from makemore.sampling.generate import generate
from makemore.sampling.logits import RandomStreams, SampleParams, distribution, entropy_bits, sample_tokens

__all__ = [
    "RandomStreams",
    "SampleParams",
    "beam_search",
    "distribution",
    "entropy_bits",
    "generate",
    "sample_tokens",
]
