"""Fast decoding on the CPU, one file per model family; importing this package registers them all."""

from makemore.sampling.decoders import context_mixing as context_mixing
from makemore.sampling.decoders import count as count
from makemore.sampling.decoders import recurrent as recurrent
from makemore.sampling.decoders import transformer as transformer
from makemore.sampling.decoders import wavenet as wavenet
from makemore.sampling.decoders import windows as windows
from makemore.sampling.decoders.base import FastDecoder, fast_decoder

__all__ = ["FastDecoder", "fast_decoder"]
