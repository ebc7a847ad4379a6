"""The prompts of a model: one concept for scoring, mining, training, evaluation and export."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from .settings import SourcePrompts

Side = Literal["query", "passage", "sentence"]

AFTER_INSTRUCTION = "\nQuery: "
"""The text after "Instruct: …", from `get_detailed_instruct` in the model card of multilingual-e5-instruct. That of
Qwen3-Embedding has no space at the end, as its folder's prompt for queries shows (see `read_prompts`)."""


@dataclass(frozen=True)
class Prompts:
    """Texts put before queries, before passages, and before sentence pairs and texts to classify.

    `sources` are the prompts of the sources that have their own. `after_instruction` follows a source's instruction.
    """

    query: str = ""
    passage: str = ""
    sentence: str = ""
    sources: Mapping[str, "Prompts"] = field(default_factory=dict)
    after_instruction: str = AFTER_INSTRUCTION

    def of(self, source: str) -> "Prompts":
        """Return the prompts of a source."""
        return self.sources.get(source, self)

    def override(self, own: SourcePrompts) -> "Prompts":
        """Return these prompts with what a source says in place of them."""
        given = own.model_dump(exclude_none=True)
        if instruction := given.pop("instruction", None):
            text = f"Instruct: {instruction}{self.after_instruction}"
            given |= {"query": text, "sentence": text}
        return replace(self, **given, sources={})

    def of_side(self, side: Side) -> tuple[str, dict[str, str]]:
        """Return what is put before the texts of a side, and what before those of the sources that differ in it."""
        common: str = getattr(self, side)
        each = {name: getattr(own, side) for name, own in sorted(self.sources.items())}
        return common, {name: text for name, text in each.items() if text != common}

    def are_empty(self) -> bool:
        """Whether nothing is put before any text."""
        return not any((self.query, self.passage, self.sentence)) and all(map(Prompts.are_empty, self.sources.values()))
