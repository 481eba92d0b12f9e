"""The ladder of models: one file and one registry entry per model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from makemore.registry import Registry

if TYPE_CHECKING:
    from makemore.models.base import LanguageModel

MODELS: Registry[type[LanguageModel]] = Registry(
    "model",
    {
        "count": "makemore.models.count:Count",
        "bigram": "makemore.models.bigram:Bigram",
        "mlp": "makemore.models.mlp:MLP",
        "bow": "makemore.models.bow:BagOfWords",
        "batchnorm-mlp": "makemore.models.batchnorm_mlp:BatchNormMLP",
        "wavenet": "makemore.models.wavenet:WaveNet",
        "rnn": "makemore.models.rnn:RNN",
        "gru": "makemore.models.rnn:GRU",
        "lstm": "makemore.models.rnn:LSTM",
        "transformer": "makemore.models.transformer:Transformer",
        "context-mixing": "makemore.models.context_mixing:ContextMixing",
        "mixture": "makemore.models.mixture:Mixture",
        "auto": "makemore.models.mixture:Auto",
    },
    others={"micrograd": "to be read, not trained; see makemore models micrograd"},
)
