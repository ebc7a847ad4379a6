"""Every setting has a description and an origin; limits hold; sources are checked as a whole."""

from collections.abc import Iterator
from typing import Any

import pytest
from conan_embedding.schemas import dhnm_settings, loss_settings, settings, source_settings, training_settings
from conan_embedding.schemas.recipe import Recipe
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

ORIGINS = (
    "paper",
    "chosen here",
    "InternLM2 (arXiv",
    "NV-Retriever (arXiv",
    "QLoRA (arXiv",
    "Conan-embedding-v2 (arXiv",
    "CoSENT (kexue",
    "rules.py",
)
MODELS = [
    Recipe,
    *(
        model
        for module in (settings, source_settings, dhnm_settings, loss_settings, training_settings)
        for model in vars(module).values()
        if isinstance(model, type) and issubclass(model, BaseModel) and model.__module__ == module.__name__
    ),
]
SOURCE: dict[str, Any] = {"name": "web", "files": "*.json", "read": "json"}


def fields() -> Iterator[tuple[str, FieldInfo]]:
    for model in MODELS:
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", field


@pytest.mark.parametrize(("name", "field"), list(fields()))
def test_a_setting_says_what_it_does_and_where_its_default_comes_from(name: str, field: FieldInfo) -> None:
    assert field.description, name
    assert field.description[-1] in ".…" and not field.description.startswith(ORIGINS), f"{name}: {field.description}"
    if not field.is_required():
        assert isinstance(field.json_schema_extra, dict)
        assert str(field.json_schema_extra["origin"]).startswith(ORIGINS), f"{name}: {field.json_schema_extra}"


def test_the_papers_values_are_the_defaults() -> None:
    recipe = Recipe()
    assert (recipe.score.model, recipe.score.cutoff) == ("BAAI/bge-large-zh-v1.5", 0.4)
    assert recipe.dedup.threshold == 0.7
    pretrain, finetune = training_settings.PretrainSettings(), training_settings.FinetuneSettings()
    assert (pretrain.learning_rate, pretrain.warmup, pretrain.weight_decay) == (1e-5, 0.05, 0.001)
    assert (pretrain.batch_size, pretrain.max_length, pretrain.projection_dim) == (8, 512, 1792)
    assert (finetune.retrieval_batch, finetune.sts_batch, finetune.beta) == (4, 32, 0.8)
    mining = finetune.hard_negative_mining
    assert (mining.check_every, mining.factor, mining.ceiling, mining.offset) == (100, 1.15, 0.8, 10)
    assert finetune.matryoshka_dims == [256, 512, 768, 1024, 1280, 1536, 1792]


@pytest.mark.parametrize("model", MODELS)
def test_settings_are_frozen_and_closed(model: type[BaseModel]) -> None:
    assert model.model_config["frozen"]
    assert model.model_config["extra"] == "forbid"


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (settings.DedupSettings, {"threshold": 0}),
        (settings.DedupSettings, {"threshold": 1.1}),
        (settings.DedupSettings, {"threshold": float("nan")}),
        (settings.DedupSettings, {"threshold": 0.05}),
        (settings.DedupSettings, {"recall": 0}),
        (settings.DedupSettings, {"recall": 1}),
        (settings.ScoreSettings, {"cutoff": float("nan")}),
        (settings.ScoreSettings, {"cutoff": 2}),
        (training_settings.FinetuneSettings, {"learning_rate": float("inf")}),
        (training_settings.OptimizerSettings, {"warmup": 1.5}),
        (source_settings.ReaderOptions, {"turns": 0}),
        (source_settings.ReaderOptions, {"delimiter": ""}),
        (source_settings.ReaderOptions, {"quote": "''"}),
        (source_settings.Source, SOURCE | {"name": "a b"}),
        (source_settings.Source, SOURCE | {"category": "blog"}),
    ],
)
def test_a_value_out_of_range_is_refused(model: type[BaseModel], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "sts"}, "needs `label:`"),
        ({"task": "sts", "read": "triples"}, "needs `label:`"),
        ({"task": "passage", "query": "title"}, "web has task passage, so remove `query:`"),
        ({"label_range": [5, 0]}, "label_range must rise"),
        ({"task": "passage", "query_only_negatives": True}, "no queries, so remove `query_only_negatives:`"),
        ({"join": {"rows": "x.txt"}}, "join can't be named 'rows'"),
        *(({"join": {name: "x.txt"}}, f"join can't be named '{name}'") for name in ("Rows", "bad", "frame", "JOINED")),
        ({"join": {'a"; DROP': "x.txt"}}, "join can't be named"),
    ],
)
def test_a_source_is_checked_as_a_whole(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        source_settings.Source.model_validate(SOURCE | values)


def test_an_evaluation_set_asks() -> None:
    with pytest.raises(
        ValidationError, match="expected pairs in `files:`, and files of passages to search in `passages"
    ):
        source_settings.EvaluationSet.model_validate(SOURCE | {"task": "passage"})


def test_keys_of_training_are_not_for_evaluation_sets() -> None:
    with pytest.raises(ValidationError, match="`query_only_negatives` is for `sources`"):
        source_settings.EvaluationSet.model_validate(SOURCE | {"query_only_negatives": True})


def test_a_query_is_not_both_alone_and_compared_with_other_positives() -> None:
    with pytest.raises(ValidationError, match="set one of them to false"):
        training_settings.FinetuneSettings(query_only_negatives=True, in_batch_positives=True)


@pytest.mark.parametrize("values", [{}, {"margin": 0.1, "share": 0.9}])
def test_false_negatives_have_one_limit(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="expected one of `margin` and `share`"):
        loss_settings.FalseNegativeMask.model_validate(values)


def test_a_share_puts_the_limit_below_the_positive_whatever_its_sign() -> None:
    mask = loss_settings.FalseNegativeMask
    assert [mask(margin=0.1).ceiling(cosine) for cosine in (0.5, -0.5)] == pytest.approx([0.6, -0.4])
    assert [mask(share=0.9).ceiling(cosine) for cosine in (0.5, -0.5)] == pytest.approx([0.45, -0.55])


def test_a_judges_scale_has_to_be_given() -> None:
    with pytest.raises(ValidationError, match="temperature\n  Field required"):
        training_settings.FinetuneSettings.model_validate({"distill": {}})
    terms = {"distill": {"temperature": 1}, "loss_terms": {"distill": 1.0}}
    with pytest.raises(ValidationError, match="register yours under another"):
        training_settings.FinetuneSettings.model_validate(terms)


def test_one_glob_is_a_list_of_one() -> None:
    assert source_settings.Source.model_validate(SOURCE | {"exclude": "b.json"}).files == ["*.json"]
    assert source_settings.EvaluationSet.model_validate(SOURCE | {"passages": "p.json"}).passages == ["p.json"]


def test_each_policy_has_its_constants_and_writes_its_own_keys_alone() -> None:
    mining = dhnm_settings.HardNegativeMining
    v1, v2 = mining(), mining.model_validate({"policy": "v2", "factor": 1.3})
    assert (v2.factor, v2.ceiling, v2.floor) == (1.3, 0.7, 0.4) and mining(policy="v2").factor == 1.2
    assert {"check_every", "offset"} <= v1.model_dump().keys() and "floor" not in v1.model_dump()
    assert "floor" in v2.model_dump() and not {"check_every", "offset"} & v2.model_dump().keys()
    for each in (v1, v2):
        assert mining.model_validate_json(each.model_dump_json()) == each


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy": "v2", "check_every": 100}, "check_every would have no effect, as only policy v1 looks at it"),
        ({"policy": "v2", "offset": 0, "check_every": 9}, "check_every and offset would have no effect"),
        ({"floor": 0.3}, "floor would have no effect, as only policy v2 looks at it"),
        ({"policy": "v2", "refresh": "rerank"}, "refresh: rerank needs policy v1"),
        ({"policy": "v3"}, "Input should be 'v1' or 'v2'"),
    ],
)
def test_keys_of_another_policy_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        dhnm_settings.HardNegativeMining.model_validate(values)
