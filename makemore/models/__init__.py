"""The ladder: a rung is one file here and one line in this registry."""

from __future__ import annotations

from makemore.models.base import LanguageModel
from makemore.registry import Registry

MODELS: Registry[LanguageModel] = Registry(
    "model",
    {
        "count": "makemore.models.count:Count",
        "bigram": "makemore.models.bigram:Bigram",
        "mlp": "makemore.models.mlp:MLP",
        "transformer": "makemore.models.transformer:Transformer",
    },
)
