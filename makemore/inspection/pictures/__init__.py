"""Pictures of a trained model: each is one file here and one line in this registry, in the page's order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from makemore.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from makemore.inspection.subject import Picture, Subject

PICTURES: Registry[Callable[[Subject], Picture | None]] = Registry(
    "picture",
    {
        "losses": "makemore.inspection.pictures.losses:draw",
        "bigrams": "makemore.inspection.pictures.bigrams:draw",
        "orders": "makemore.inspection.pictures.orders:draw",
        "members": "makemore.inspection.pictures.members:draw",
        "embeddings": "makemore.inspection.pictures.embeddings:draw",
        "activations": "makemore.inspection.pictures.activations:draw",
        "parameters": "makemore.inspection.pictures.parameters:draw",
        "updates": "makemore.inspection.pictures.updates:draw",
        "reach": "makemore.inspection.pictures.reach:draw",
        "gates": "makemore.inspection.pictures.gates:draw",
        "attention": "makemore.inspection.pictures.attention:draw",
    },
)
"""Functions that draw a picture; None where a model has nothing of the kind."""
