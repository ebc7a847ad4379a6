"""The DeepSpeed engine: AdamW, linear warm-up and decay, ZeRO, mixed precision; and access to the float32 weights."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_fp32_param

from ..schemas.training_settings import FinetuneSettings, PretrainSettings
from .model.embedding_model import EmbeddingModel, precision_of


def build_engine(model: EmbeddingModel, settings: PretrainSettings | FinetuneSettings, steps: int) -> Any:
    """Return the DeepSpeed engine that trains `model` for `steps` steps."""
    decayed = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim <= 1]
    shared = settings.zero_stage > 0
    optimizer = (torch.optim.AdamW if shared else partial(ClippedAdamW, clipping=settings.gradient_clipping))(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        fused=get_accelerator().device_name() in ("cpu", "cuda"),
    )
    warm = max(1, round(settings.warmup * steps))
    precision = precision_of(settings)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=lambda built: torch.optim.lr_scheduler.LambdaLR(
            built, lambda done: min((done + 1) / warm, max(0.0, (steps - done) / max(1, steps - warm)))
        ),
        config={
            "train_micro_batch_size_per_gpu": 1,  # required by DeepSpeed, but unused: batches are built here
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": shared,  # else GradCache would reduce after each of its backward passes
            "gradient_clipping": settings.gradient_clipping if shared else 0.0,
            # The buckets take GPU memory of their own: DeepSpeed's default of 500 million elements is 1 GB.
            "zero_optimization": {"stage": settings.zero_stage, "reduce_bucket_size": 50_000_000},
            "bf16": {"enabled": precision == "bf16"},
            "fp16": {"enabled": precision == "fp16"},
            "steps_per_print": sys.maxsize,
        },
    )
    return engine


class ClippedAdamW(torch.optim.AdamW):
    """AdamW for ZeRO 0, where DeepSpeed leaves clipping and the overflow check to the optimizer.

    Clips gradients to a norm of `clipping` (0: no clipping) and skips the update if a gradient is NaN or infinite.
    DeepSpeed's engine reads `_global_grad_norm` and `overflow`.
    """

    def __init__(self, *arguments: Any, clipping: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.clipping = clipping

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters, unless a gradient is NaN or infinite; `overflow` says whether one was."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clipping or float("inf"))
        self._global_grad_norm = norm
        self.overflow = not norm.isfinite()
        if not self.overflow:
            super().step(closure)


@contextmanager
def full_precision(model: EmbeddingModel) -> Iterator[None]:
    """Give the model float32 weights inside the context: the optimizer's own, not the rounded copies of bf16 or fp16.

    ZeRO divides the optimizer's weights among the ranks, so all ranks must enter the context together.
    """
    trained = {parameter: parameter.data for parameter in model.parameters()}
    frozen = [parameter for parameter in trained if not parameter.requires_grad]
    with deepspeed.zero.GatheredParameters(frozen):  # ZeRO 3 divides frozen weights among the ranks too
        full = {parameter: parameter.data.float().clone() for parameter in frozen}
    for parameter, data in trained.items():  # in the same order on every rank
        if parameter not in full:
            found = safe_get_full_fp32_param(parameter)
            full[parameter] = (data if found is None else found).float()
    for parameter, data in full.items():
        parameter.data = data
    yield
    for parameter, data in trained.items():
        parameter.data = data
