"""Text classifiers as filter rules: a rule's value is the probability of one label.

InternLM2 (arXiv 2403.17297, section 3.1.1) filters with classifiers for adverts, fluency, toxicity and pornography.
Importing this module imports torch, so the filter imports it only for recipes with `classifiers:`.
"""
# ruff: noqa: N803 (capital letters are shapes: ids_NL is [n, L])

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
from scipy.special import expit, softmax
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from ...schemas.errors import RecipeError
from ...schemas.registry import did_you_mean
from ...schemas.settings import ClassifierSettings, EncoderSettings
from ..corpus.folder import fingerprint
from ..encoder.encoder import Encoder, Inference, best_device, dimension, embed, in_batches, load_encoder
from ..encoder.model_folder import ModelError, find_model, read_json, weights_fingerprint
from ..encoder.model_layout import Layout, read_layout


@dataclass(frozen=True)
class Classifier:
    """A loaded classifier.

    `infer` computes a batch's logits, one per label. If the labels are `exclusive`, their probabilities sum to 1
    (softmax); otherwise each label has a probability of its own (sigmoid).
    """

    encoder: Encoder
    infer: Inference
    labels: tuple[str, ...]
    exclusive: bool


def predict(texts: pl.Series, settings: ClassifierSettings, weights: str) -> pl.Series:
    """Return the probability of the configured label for each text, Float64.

    `weights` is the model's fingerprint (see `model_fingerprint`); the loaded model is cached under it.

    Raises:
        ModelError: the model's folder is not a classifier.
        RecipeError: the model has no such label.
    """
    classifier = load_classifier(settings, weights)
    place = find_label(settings.label, classifier.labels)
    logits = in_batches(classifier.encoder, texts.to_arrow(), len(classifier.labels), classifier.infer)
    found = softmax(logits, axis=1) if classifier.exclusive else expit(logits)
    return pl.Series(found[:, place], dtype=pl.Float64)


def load_classifier(settings: ClassifierSettings, weights: str, device: str | None = None) -> Classifier:
    """Load the configured model, once per process; `device` is as in `load_encoder`."""
    encoder = EncoderSettings(model=settings.model, max_length=settings.max_length, batch_tokens=settings.batch_tokens)
    return _load_once(encoder, weights, device or best_device())


@cache
def _load_once(settings: EncoderSettings, weights: str, device: str) -> Classifier:
    """Load a classifier. `weights` is part of the cache key, so a changed model under the same name is loaded again."""
    folder = find_model(settings.model)
    layout = read_layout(folder)
    infer: Inference
    if layout.dense:
        encoder, infer, several = load_encoder(settings, device=device), embed, False
        width = dimension(encoder)
    elif _has_head(layout):
        encoder, infer = load_encoder(settings, AutoModelForSequenceClassification, device), _compute_logits
        width = int(encoder.model.config.num_labels)
        several = encoder.model.config.problem_type == "multi_label_classification"
    else:
        raise _is_no_classifier(settings.model)
    return Classifier(encoder, infer, _list_labels(folder, width), exclusive=width > 1 and not several)


def check_classifier(settings: ClassifierSettings, folder: Path) -> None:
    """Check a classifier's layout and label; `folder` is where it is. No weights of its encoder are read.

    Raises:
        ModelError: the folder is not a classifier's.
        RecipeError: the model has no such label.
    """
    layout = read_layout(folder)
    if not layout.dense and not _has_head(layout):
        raise _is_no_classifier(settings.model)
    config = AutoConfig.from_pretrained(layout.encoder)
    width = len(layout.dense[-1].weight) if layout.dense else int(config.num_labels)
    find_label(settings.label, _list_labels(folder, width))


def _is_no_classifier(model: str) -> ModelError:
    return ModelError(
        f"{model} is not a classifier: expected a *ForSequenceClassification architecture in config.json, or a "
        "SentenceTransformer folder whose last Dense module has one output per class"
    )


def _list_labels(folder: Path, width: int) -> tuple[str, ...]:
    names = _read_labels(folder)
    return tuple(names.get(place, f"LABEL_{place}") for place in range(width))


def find_label(label: str | int, labels: tuple[str, ...]) -> int:
    """Return the index of a label given by name or by index. Raises RecipeError if the model has no such label."""
    if label in labels:
        return labels.index(str(label))
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    raise RecipeError(f"the model has no label {label!r}{did_you_mean(str(label), labels)}")


def model_fingerprint(settings: ClassifierSettings) -> str:
    """Fingerprint a model by its weights and label names; its own name does not matter. Raises ModelError."""
    folder = find_model(settings.model)
    return fingerprint(weights_fingerprint(folder), sorted(_read_labels(folder).items()))


def _read_labels(folder: Path) -> dict[int, str]:
    """Read the label names by index, as far as the folder has them."""
    files = (read_layout(folder).encoder / "config.json", folder / "config_sentence_transformers.json")
    return {int(place): str(name) for file in files for place, name in read_json(file).get("id2label", {}).items()}


def _has_head(layout: Layout) -> bool:
    """Whether the encoder is a Hugging Face model with its own classification head."""
    architectures: list[Any] = read_json(layout.encoder / "config.json").get("architectures") or []
    return any(str(name).endswith("ForSequenceClassification") for name in architectures)


def _compute_logits(encoder: Encoder, ids_NL: Tensor, mask_NL: Tensor | None) -> Tensor:
    """Compute the logits of a model with a classification head, [n, labels]."""
    logits: Tensor = encoder.model(input_ids=ids_NL, attention_mask=mask_NL).logits
    return logits
