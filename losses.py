"""Losses for your own training loops: InfoNCE, CoSENT, distillation, Matryoshka, gathering with gradient, GradCache."""

from .trainer.loss.collectives import all_gather_with_grad
from .trainer.loss.distillation import DISTILLATION_LOSSES, distillation_loss
from .trainer.loss.gradcache import cached_backward
from .trainer.loss.losses import cosent, info_nce, matryoshka
from .trainer.loss.terms import LOSS_TERMS

__all__ = [
    "DISTILLATION_LOSSES",
    "LOSS_TERMS",
    "all_gather_with_grad",
    "cached_backward",
    "cosent",
    "distillation_loss",
    "info_nce",
    "matryoshka",
]
