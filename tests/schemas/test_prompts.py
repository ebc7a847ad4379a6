"""The prompts of sources: which keys are valid, and what is put before texts."""

from typing import Any

import pytest
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.settings import SourcePrompts
from conan_embedding.schemas.source_settings import EvaluationSet, Source, own_prompts
from pydantic import ValidationError


def source(kind: type[Source] = Source, **keys: Any) -> Source:
    return kind(**({"name": "qa", "files": "f", "read": "json"} | keys))


def test_a_source_overrides_the_model_by_side() -> None:
    model = Prompts("q:", "p:", "s:")
    assert model.override(SourcePrompts()) == model
    assert model.override(SourcePrompts(query="", passage="own:")) == Prompts("", "own:", "s:")
    asked = "Instruct: Find {it}\nQuery: "
    assert model.override(SourcePrompts(instruction="Find {it}", passage="")) == Prompts(asked, "", asked)


def test_sources_without_prompts_have_the_model_s() -> None:
    own = Prompts("q:", "own:", "s:")
    prompts = Prompts("q:", "p:", sources={"a": own})
    assert (prompts.of("a"), prompts.of("b")) == (own, prompts)
    assert prompts.of_side("query") == ("q:", {})
    assert prompts.of_side("passage") == ("p:", {"a": "own:"})
    assert Prompts(sources={"a": Prompts()}).are_empty()
    assert not Prompts(sources={"a": own}).are_empty()


def test_only_sources_with_prompts_are_listed() -> None:
    listed = [source(), source(name="b", prompts={"query": ""}), source(name="c", instruction="Find it")]
    assert own_prompts(listed) == {"b": SourcePrompts(query=""), "c": SourcePrompts(instruction="Find it")}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"instruction": "Find it", "prompts": {"query": "q"}}, "both `instruction` and `prompts.query`"),
        ({"task": "sts", "label": "1", "instruction": "x", "prompts": {"sentence": ""}}, "and `prompts.sentence`"),
        (
            {"task": "sts", "label": "1", "prompts": {"query": "q"}},
            "so no text gets `prompts.query`; expected `prompts",
        ),
        ({"task": "retrieval", "prompts": {"sentence": "s"}}, "expected `prompts.query` or `prompts.passage`"),
        ({"task": "passage", "instruction": "Find it"}, "task passage and no queries"),
        ({"kind": EvaluationSet, "task": "classification", "prompts": {"query": "q"}}, "no text gets `prompts.query`"),
        ({"instruction": ""}, "at least 1 character"),
    ],
)
def test_what_is_never_used_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        source(**keys)


def test_each_task_has_its_sides() -> None:
    source(prompts={"query": "q", "passage": "p"})
    source(task="classification", prompts={"query": "q", "passage": "p"}, priority=1)
    source(task="sts", label="1", prompts={"sentence": "s"})
    source(task="passage", prompts={"passage": "p"})
    source(EvaluationSet, task="classification", instruction="Classify it")
