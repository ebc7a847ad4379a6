"""Extra terms of the loss of pre-training and fine-tuning. A recipe weights them by name under `loss_terms:`.

A term is a function of two arguments:

- the embeddings of all texts of a batch, [T, d], not normalised. The term is called once per matryoshka dim with the
  embeddings cut to that width d, and the values are averaged.
- the batch, which gives the role of each text (see cbb.py). Its tensors are on the CPU.

It must return a scalar tensor on the embeddings' device, with the same value on every rank. Plugins import the registry
from `conan_embedding.losses`:

    from conan_embedding.losses import LOSS_TERMS

    LOSS_TERMS.register("small", lambda embeddings, batch: embeddings.square().mean())
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
    """Return the weight and the function of each term in `weights`.

    `place` says where the recipe names them, for error messages, such as `recipe.yaml:12: finetune.loss_terms`.

    Raises:
        RecipeError: a name is not registered.
    """
    return {name: (weight, LOSS_TERMS.find(name, place)) for name, weight in weights.items()}
