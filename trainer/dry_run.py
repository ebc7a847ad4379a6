"""`conan train --dry-run`: the size of a run, computed without training anything."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

from ..pipeline.encoder.model_folder import find_model
from ..pipeline.encoder.model_layout import read_layout
from ..pipeline.encoder.transformer import T5_KINDS
from ..schemas.outcomes import TrainingPlan
from ..schemas.training_settings import LoRASettings, PretrainSettings
from .data.batches import count_steps, draws_per_step
from .data.training_tables import count_pairs, count_queries, count_sentences
from .dhnm.miner import warn_of_few_draws
from .job import Job, check_dimensions
from .model.attention import check_attention
from .model.embedding_model import precision_of, warn_of_slow_precision
from .model.lora import add_adapters


def plan_training(job: Job, processes: int) -> TrainingPlan:
    """Count the records and steps of a job, and estimate the memory that each process needs at least.

    `states_mb` covers weights, gradients and AdamW's averages. `activations_mb` assumes that every text of a step has
    `max_length` tokens, so it is an upper bound. Weights are not loaded, only the model's configuration.

    Raises:
        CorpusError: the corpus lacks the data to train on.
        ModelError: the model does not exist.
        TrainingError: `matryoshka_dims` has a value above the width of the model's vectors.
    """
    settings = job.settings
    sentences = 0
    if isinstance(settings, PretrainSettings):
        records = count_pairs(job.shards["pairs"])
        texts = 2 * settings.batch_size * processes
    else:
        records = count_queries(job.corpus, {kind: job.shards[kind] for kind in settings.queries})
        sentences = count_sentences(job.shards["sts"])
        of_retrieval = settings.retrieval_batch * (2 + settings.negatives)
        of_sts = 2 * settings.sts_batch if sentences else 0
        texts = max(of_retrieval, of_sts) if settings.alternate_tasks else of_retrieval + of_sts
    layout = read_layout(find_model(job.model))
    config = AutoConfig.from_pretrained(layout.encoder)
    width = len(layout.dense[0].weight) if layout.dense else getattr(settings, "projection_dim", None)
    check_dimensions(job.name, job.model, settings.matryoshka_dims, width or config.hidden_size)
    check_attention(config, getattr(settings, "attention", None))
    parameters, frozen = count_parameters(config, width, settings.lora, f"{job.name}.lora.targets")
    own_tokens = -(-texts // processes) * settings.max_length
    tokens = min(own_tokens, settings.gradcache_tokens or own_tokens)
    half = precision_of(settings) != "fp32"
    steps = count_steps(settings, records, sentences, processes)
    draws = steps * draws_per_step(settings, sentences, processes) / records
    return TrainingPlan(
        settings=settings.model_dump(mode="json"),
        records=records,
        steps=steps,
        draws_per_record=round(draws, 2),
        texts_per_step=texts,
        parameters=parameters,
        states_mb=round(state_bytes(parameters, half, settings.zero_stage, processes, frozen) / 1e6),
        activations_mb=round(activation_bytes(config, tokens, half, settings.gradient_checkpointing) / 1e6),
        warnings=warn_of_few_draws(settings, draws) + warn_of_slow_precision(settings),
    )


def count_parameters(
    config: Any, dimension: int | None, lora: LoRASettings | None = None, place: str = "lora.targets"
) -> tuple[int, int]:
    """Count the parameters that are trained and those that are frozen: an encoder's, and those of its linear layer.

    The layer has a bias and the width `dimension` (None: no layer). With `lora`, only adapters and the layer are
    trained. The encoder's pooler is left out, as no embedding uses it.

    Raises:
        RecipeError: a target of `lora` fits no layer; the message begins with `place`.
    """
    with torch.device("meta"):
        encoder = (AutoModelForTextEncoding if config.model_type in T5_KINDS else AutoModel).from_config(config)
        if lora is not None:
            add_adapters(encoder, lora, place)
    used = [part for name, part in encoder.named_parameters() if not name.startswith("pooler.")]
    trained = sum(part.numel() for part in used if part.requires_grad)
    head = 0 if dimension is None else (config.hidden_size + 1) * dimension
    return trained + head, sum(part.numel() for part in used) - trained


def state_bytes(parameters: int, half: bool, zero_stage: int, processes: int, frozen: int = 0) -> int:
    """Bytes per process for weights, gradients and AdamW's states (ZeRO, arXiv 1910.02054, §3.1 and §5).

    Per parameter in half precision: 2 for the weight, 2 for the gradient and 12 for the optimizer (a float32 weight and
    two averages); in float32: 4, 4 and 8. ZeRO 1 divides the optimizer's states among the processes, ZeRO 2 also the
    gradients, ZeRO 3 also the weights; ZeRO 0 divides nothing. `frozen` parameters have a weight only.
    """
    weight, gradient, optimizer = (2, 2, 12) if half else (4, 4, 8)
    shared = sum([optimizer, gradient, weight][:zero_stage])
    of_frozen = frozen * weight / (processes if zero_stage == 3 else 1)
    return round(parameters * (weight + gradient + optimizer - shared + shared / processes) + of_frozen)


def activation_bytes(config: Any, tokens: int, half: bool, checkpointing: bool) -> int:
    """Bytes of activations kept for the backward pass (Korthikanti et al., arXiv 2205.05198, §4.1).

    In half precision, a layer keeps 34 bytes per token and hidden unit. The paper's term for attention scores is left
    out, as SDPA does not keep them. With gradient checkpointing, each layer keeps only its input (2 bytes), plus the 34
    bytes of the one layer that is being recomputed.
    """
    of_layer = 34 * tokens * config.hidden_size
    kept = 2 * tokens * config.hidden_size * config.num_hidden_layers + of_layer
    return int((kept if checkpointing else of_layer * config.num_hidden_layers) * (1 if half else 2))
