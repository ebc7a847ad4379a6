"""Losses for your own training loops: InfoNCE, CoSENT, Matryoshka, all-gather with gradient, GradCache."""

from .trainer.loss.collectives import all_gather_with_grad
from .trainer.loss.gradcache import cached_backward
from .trainer.loss.losses import cosent, info_nce, matryoshka
from .trainer.loss.terms import LOSS_TERMS

__all__ = ["LOSS_TERMS", "all_gather_with_grad", "cached_backward", "cosent", "info_nce", "matryoshka"]
