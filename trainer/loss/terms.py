"""Further terms of the loss, by the names under which a recipe's `loss_terms:` weighs them.

A term takes the embeddings of all texts of a batch, [T, d], cut to one of the matryoshka dims and not normalised, and
the batch, which says what part each text plays (see cbb.py). It returns a scalar on the embeddings' device; every rank
computes the same one. Register yours in a plugin:

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
    """Weights and functions of the terms that a recipe names at `place`.

    Raises:
        RecipeError: no term is registered under a name.
    """
    return {name: (weight, LOSS_TERMS.find(name, place)) for name, weight in weights.items()}
