"""The prompts of a model: one concept for scoring, mining, training, evaluation and export."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompts:
    """Texts put before queries, before passages, and before sentence pairs and texts to classify."""

    query: str = ""
    passage: str = ""
    sentence: str = ""
