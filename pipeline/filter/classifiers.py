"""Quality models as rules of the filter: the probability that a classifier gives a text's label.

InternLM2 (arXiv 2403.17297, section 3.1.1) filters by classifiers of adverts, fluency, toxicity and pornography.
Importing this module imports torch, so the filter does it only where a recipe has `classifiers:`.
"""
# ruff: noqa: N803 (capital letters are shapes: ids_NL is [n, L])

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
from scipy.special import expit, softmax
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from ...schemas.errors import RecipeError
from ...schemas.registry import did_you_mean
from ...schemas.settings import ClassifierSettings, EncoderSettings
from ..corpus.folder import fingerprint
from ..encoder.encoder import Encoder, Inference, best_device, dimension, embed, in_batches, load_encoder
from ..encoder.model_folder import ModelError, find_model, read_json, weights_fingerprint
from ..encoder.model_layout import Layout, read_layout


@dataclass(frozen=True)
class Classifier:
    """A model ready to judge.

    `infer` gives the logits of a batch, one for each of `labels`; `exclusive` classes share one probability, others
    have each their own.
    """

    encoder: Encoder
    infer: Inference
    labels: tuple[str, ...]
    exclusive: bool


def probabilities(texts: pl.Series, settings: ClassifierSettings, weights: str) -> pl.Series:
    """The probability of the settings' label for each text, Float64: softmax, or sigmoid where classes don't exclude.

    `weights` is `model_fingerprint`'s, by which a model is kept between calls.

    Raises:
        ModelError: no classifier can be read from the model's folder.
        RecipeError: the model has no such label.
    """
    classifier = load(settings, weights)
    place = label_place(settings.label, classifier.labels)
    logits = in_batches(classifier.encoder, texts.to_arrow(), len(classifier.labels), classifier.infer)
    found = softmax(logits, axis=1) if classifier.exclusive else expit(logits)
    return pl.Series(found[:, place], dtype=pl.Float64)


def load(settings: ClassifierSettings, weights: str, device: str | None = None) -> Classifier:
    """The model of these settings, read once a process; `device` as in encoder.loaded."""
    encoder = EncoderSettings(model=settings.model, max_length=settings.max_length, batch_tokens=settings.batch_tokens)
    return _load(encoder, weights, device or best_device())


@cache
def _load(settings: EncoderSettings, weights: str, device: str) -> Classifier:
    """`weights` is there so that another model of the same name is read anew."""
    folder = find_model(settings.model)
    layout = read_layout(folder)
    infer: Inference
    if layout.dense:
        encoder, infer, several = load_encoder(settings, device=device), embed, False
        width = dimension(encoder)
    elif _has_head(layout):
        encoder, infer = load_encoder(settings, AutoModelForSequenceClassification, device), _head
        width = int(encoder.model.config.num_labels)
        several = encoder.model.config.problem_type == "multi_label_classification"
    else:
        raise ModelError(
            f"{settings.model}: no classifier: expected a *ForSequenceClassification architecture in config.json, or "
            "a SentenceTransformer folder whose last Dense has an output for each class"
        )
    names = _names(folder)
    labels = tuple(names.get(place, f"LABEL_{place}") for place in range(width))
    return Classifier(encoder, infer, labels, exclusive=width > 1 and not several)


def label_place(label: str | int, labels: tuple[str, ...]) -> int:
    """Find the place of a label that is given by name or by place. Raises RecipeError if the model has none such."""
    if label in labels:
        return labels.index(str(label))
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    raise RecipeError(f"the model has no label {label!r}{did_you_mean(str(label), labels)}")


def model_fingerprint(settings: ClassifierSettings) -> str:
    """A hash of the weights and the names of the labels, never of the model's name. Raises ModelError."""
    folder = find_model(settings.model)
    return fingerprint(weights_fingerprint(folder), sorted(_names(folder).items()))


def _names(folder: Path) -> dict[int, str]:
    """The labels' names by place, as far as the folder gives any."""
    files = (read_layout(folder).encoder / "config.json", folder / "config_sentence_transformers.json")
    return {int(place): str(name) for file in files for place, name in read_json(file).get("id2label", {}).items()}


def _has_head(layout: Layout) -> bool:
    """Whether the encoder is a Hugging Face model with its own classification head."""
    architectures: list[Any] = read_json(layout.encoder / "config.json").get("architectures") or []
    return any(str(name).endswith("ForSequenceClassification") for name in architectures)


def _head(encoder: Encoder, ids_NL: Tensor, mask_NL: Tensor | None) -> Tensor:
    """Logits of a model with a classification head [n, labels]."""
    logits: Tensor = encoder.model(input_ids=ids_NL, attention_mask=mask_NL).logits
    return logits
