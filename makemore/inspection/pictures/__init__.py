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
        "losses": "makemore.inspection.pictures.losses:plot",
        "bigrams": "makemore.inspection.pictures.bigrams:plot",
        "orders": "makemore.inspection.pictures.orders:plot",
        "contexts": "makemore.inspection.pictures.contexts:plot",
        "members": "makemore.inspection.pictures.members:plot",
        "embeddings": "makemore.inspection.pictures.embeddings:plot",
        "activations": "makemore.inspection.pictures.activations:plot",
        "parameters": "makemore.inspection.pictures.parameters:plot",
        "updates": "makemore.inspection.pictures.updates:plot",
        "reach": "makemore.inspection.pictures.reach:plot",
        "gates": "makemore.inspection.pictures.gates:plot",
        "attention": "makemore.inspection.pictures.attention:plot",
    },
)
"""Functions that plot a picture, or return None if it does not apply to the model."""
