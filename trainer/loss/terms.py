"""Further terms of the loss, registered by name. A recipe gives their weights under `loss_terms:`.

A term is a function of the embeddings of all texts of a batch, [T, d], truncated to one of the matryoshka dims and not
normalised, and of the batch, which gives the role of each text (see cbb.py). It returns a scalar on the embeddings'
device, the same on every rank. Register your own in a plugin:

    from conan_embedding.losses import LOSS_TERMS

    LOSS_TERMS.register("spread_out", lambda embeddings, batch: ...)
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from ...schemas.registry import Registry

if TYPE_CHECKING:
    from .cbb import Batch

LossTerm = Callable[[Tensor, "Batch"], Tensor]

LOSS_TERMS: Registry[LossTerm] = Registry("loss term")


def find_terms(weights: Mapping[str, float], place: str) -> dict[str, tuple[float, LossTerm]]:
    """Return weight and function of each term in `weights`; `place` is their place in the recipe, for the error.

    Raises:
        RecipeError: a name is not registered.
    """
    return {name: (weight, LOSS_TERMS.find(name, place)) for name, weight in weights.items()}
