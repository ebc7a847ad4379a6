"""Classifiers against transformers and sentence-transformers, alone and as rules of the filter."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from conan_embedding.pipeline.encoder.model_folder import ModelError
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.filter import classifiers as module
from conan_embedding.pipeline.filter.classifiers import find_label, load_classifier, model_fingerprint, predict
from conan_embedding.pipeline.filter.stage import filter_pairs
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.settings import ClassifierSettings, FilterSettings
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

TEXTS = ["一丁七万", "world 2024", "丈三上下不与", "一", "与丏丐丑专且丕世" * 30, "没有见过的龘", "一丁七万"]
QUESTION = "北京的秋天为什么适合旅行？"
ANSWER = "秋天的北京天气晴朗，香山的红叶正红，是一年里最适合出门的季节。"
ANSWERS = [
    "一丁七万",
    "丈三上下",
    "不与丏",
    "丐丑专且",
    "丕世",
    "丗丘丙业丛",
    "东丝",
    "丞丟丠両丢",
]  # all in the vocabulary


def head_on(encoder: Path, folder: Path, labels: list[str], problem: str | None = None) -> Path:
    """Make a sequence classifier with random weights and the tiny encoder's shape and tokenizer."""
    shutil.copytree(encoder, folder)
    config = AutoConfig.from_pretrained(encoder)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: place for place, label in enumerate(labels)}
    config.problem_type = problem
    torch.manual_seed(len(labels))
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(20)  # so that texts differ in their classes
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def advert(tiny_model: Path, tmp_path: Path) -> Path:
    return head_on(tiny_model, tmp_path / "advert", ["clean", "advert", "spam"])


def settings_of(folder: Path, label: str | int = "clean", **more: object) -> ClassifierSettings:
    return ClassifierSettings.model_validate({"model": str(folder), "label": label, "max_length": 64} | more)


def judged(folder: Path, texts: list[str], label: str | int = "clean", **more: object) -> list[float]:
    settings = settings_of(folder, label, **more)
    return predict(pl.Series(texts, dtype=pl.String), settings, model_fingerprint(settings)).to_list()


def logits_of(folder: Path, text: str) -> torch.Tensor:
    """Compute one text's logits with transformers alone."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return model.eval()(**tokenizer(text, truncation=True, max_length=64, return_tensors="pt")).logits[0].double()


@pytest.mark.parametrize("batch_tokens", [16, 4096])
def test_probabilities_are_those_of_transformers(advert: Path, batch_tokens: int) -> None:
    expected = [logits_of(advert, text).softmax(0).tolist() for text in TEXTS]
    assert max(row[0] for row in expected) - min(row[0] for row in expected) > 0.1
    for place, label in enumerate(["clean", "advert", "spam"]):
        wanted = pytest.approx([row[place] for row in expected], abs=1e-5)
        assert judged(advert, TEXTS, label, batch_tokens=batch_tokens) == wanted
        assert judged(advert, TEXTS, place, batch_tokens=batch_tokens) == wanted


def test_one_output_and_classes_that_do_not_exclude_take_a_sigmoid(tiny_model: Path, tmp_path: Path) -> None:
    single = head_on(tiny_model, tmp_path / "single", ["fluent"])
    assert judged(single, TEXTS, "fluent") == pytest.approx(
        [logits_of(single, text).sigmoid().item() for text in TEXTS], abs=1e-5
    )
    several = head_on(tiny_model, tmp_path / "several", ["insult", "threat"], "multi_label_classification")
    assert judged(several, TEXTS, "threat") == pytest.approx(
        [logits_of(several, text).sigmoid()[1].item() for text in TEXTS], abs=1e-5
    )


def add_dense(folder: Path, outputs: int) -> None:
    """Replace Normalize with a Dense module with one output per class."""
    (folder / "2_Dense").mkdir()
    config = {
        "in_features": 32,
        "out_features": outputs,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    torch.manual_seed(outputs)
    weights = {"linear.weight": torch.randn(outputs, 32), "linear.bias": torch.randn(outputs)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1] = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_sentence_transformer_with_an_output_a_class(bge: Path, outputs: int) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="sentence-transformers is missing")
    add_dense(bge, outputs)
    names = {str(place): f"kind {place}" for place in range(outputs)}
    (bge / "config_sentence_transformers.json").write_text(json.dumps({"id2label": names}))
    model = sentence_transformers.SentenceTransformer(str(bge), device="cpu")
    logits = torch.from_numpy(model.encode(TEXTS)).double()
    expected = logits.sigmoid()[:, 0] if outputs == 1 else logits.softmax(1)[:, outputs - 1]
    wanted = pytest.approx(expected.tolist(), abs=1e-5)
    assert judged(bge, TEXTS, outputs - 1) == judged(bge, TEXTS, f"kind {outputs - 1}") == wanted


def test_each_distinct_text_is_judged_once(advert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = module._compute_logits
    monkeypatch.setattr(
        module, "_compute_logits", lambda encoder, ids, mask: seen.append(len(ids)) or whole(encoder, ids, mask)
    )
    module._load_once.cache_clear()
    judged(advert, TEXTS * 3)
    assert sum(seen) == len(set(TEXTS))
    assert judged(advert, []) == []


def test_a_model_is_read_once_until_its_weights_change(advert: Path) -> None:
    settings = settings_of(advert)
    before = model_fingerprint(settings)
    assert load_classifier(settings, before) is load_classifier(settings_of(advert, "spam", min=0.9), before)
    weights = load_file(advert / "model.safetensors")
    save_file(weights | {"classifier.bias": torch.tensor([9.0, 0, 0])}, advert / "model.safetensors", {"format": "pt"})
    after = model_fingerprint(settings)
    assert after != before and load_classifier(settings, after) is not load_classifier(settings, before)
    assert judged(advert, ["一"])[0] > 0.9


def test_the_fingerprint_is_of_weights_and_labels_never_of_the_name(advert: Path, tmp_path: Path) -> None:
    before = model_fingerprint(settings_of(advert))
    copied = shutil.copytree(advert, tmp_path / "elsewhere")
    assert model_fingerprint(settings_of(copied)) == before
    (copied / "config_sentence_transformers.json").write_text('{"id2label": {"0": "advert", "1": "clean"}}')
    assert model_fingerprint(settings_of(copied)) != before


@pytest.mark.parametrize("label", [3, -1, "0"])
def test_an_unknown_label_lists_those_there_are(label: str | int, advert: Path) -> None:
    with pytest.raises(RecipeError, match=r"no label .*; choose from clean, advert, spam$"):
        judged(advert, TEXTS, label)


def test_an_unknown_label_names_the_nearest(advert: Path) -> None:
    with pytest.raises(RecipeError, match=r"no label 'cleen'; did you mean 'clean'\?$"):
        judged(advert, TEXTS, "cleen")


def test_labels_without_names_and_labels_that_are_numbers() -> None:
    assert find_label("LABEL_1", ("LABEL_0", "LABEL_1")) == find_label(1, ("LABEL_0", "LABEL_1")) == 1
    assert find_label("0", ("1", "0")) == 1
    assert find_label(0, ("1", "0")) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: None, r"is not a classifier: expected a \*ForSequenceClassification"),
        (
            lambda folder: (folder / "config.json").write_text(
                json.dumps(
                    json.loads((folder / "config.json").read_text())
                    | {"architectures": ["BertForSequenceClassification"]}
                )
            ),
            r"the weights lack classifier\.bias, classifier\.weight",
        ),
    ],
)
def test_what_is_no_classifier_says_so(change: Callable[[Path], object], message: str, bge: Path) -> None:
    change(bge)
    with pytest.raises(ModelError, match=message):
        judged(bge, TEXTS)


def test_as_rules_of_the_filter(advert: Path, tmp_path: Path, pair, write_shards, read) -> None:
    rows = [
        *(pair(QUESTION, answer) for answer in ANSWERS),
        pair(QUESTION, ""),
        pair(QUESTION, ANSWER, task="sts", label=0.5),
    ]
    texts = [row["positive"] for row in rows[:8]]
    found = judged(advert, texts)
    least = sorted(found)[4]
    write_shards(tmp_path, "ingest", rows)
    clean = settings_of(advert, min=least)
    summary = filter_pairs(tmp_path, FilterSettings(classifiers={"advert": clean}), Engine())
    assert summary.rejected == {"empty_side": 1, "advert": 4}
    thrown = read(tmp_path, "filter/rejected").filter(reason="advert")
    below = {row["pair_id"]: value for row, value in zip(rows[:8], found, strict=True) if value < least}
    assert dict(thrown.select("pair_id", "detail").iter_rows()) == {
        pair_id: f"{round(value, 4)} < {least:g}" for pair_id, value in below.items()
    }
    # The recipe may have another side judged, and labelled tasks too.
    wider = settings_of(advert, min=1.0, side="query", tasks=["pretrain", "sts"])
    summary = filter_pairs(tmp_path, FilterSettings(classifiers={"advert": wider}), Engine())
    assert (summary.rejected["advert"], summary.rows_out) == (9, 0)


def test_a_classifier_judges_only_what_all_before_it_kept(
    advert: Path, tmp_path: Path, pair, write_shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [pair(QUESTION, f"{ANSWER}{letter}") for letter in "一丁七万"]
    write_shards(tmp_path, "ingest", [*rows, pair("嗯", ANSWER)], [pair(QUESTION, "好", task="sts", label=0.5)])
    seen: list[int] = []
    whole = module.predict

    def counted(texts: pl.Series, settings: ClassifierSettings, weights: str) -> pl.Series:
        seen.append(len(texts))
        return whole(texts, settings, weights)

    monkeypatch.setattr(module, "predict", counted)
    classifiers = {"first": settings_of(advert, min=1.0), "second": settings_of(advert, "spam")}
    assert filter_pairs(tmp_path, FilterSettings(classifiers=classifiers), Engine()).rejected == {
        "query_length": 1,
        "first": 4,
    }
    assert seen == [4, 0, 0, 0]


def test_what_redoes_a_shard(advert: Path, tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "ingest", [pair(QUESTION, ANSWER)], [pair(QUESTION, ANSWER, source="other")])

    def skipped(folder: Path = advert, sources: dict[str, dict[str, float | bool]] | None = None, **more) -> int:
        classifiers = {"advert": settings_of(folder, **more)}
        settings = FilterSettings(classifiers=classifiers, sources=sources or {})
        return filter_pairs(tmp_path, settings, Engine()).skipped

    assert (skipped(), skipped()) == (0, 2)
    assert skipped(shutil.copytree(advert, tmp_path / "moved"), batch_tokens=64) == 2
    assert skipped(min=0.4) == 0
    assert skipped(min=0.4, sources={"other": {"advert": 0.3}}) == 1
    assert skipped(min=0.4, sources={"other": {"advert": False}}) == 1
    assert skipped(label="spam", min=0.4, sources={"other": {"advert": False}}) == 1
    (advert / "tokenizer_config.json").write_text((advert / "tokenizer_config.json").read_text() + " ")
    assert skipped(label="spam", min=0.4, sources={"other": {"advert": False}}) == 1


def test_bad_classifiers_are_said_before_any_shard(advert: Path, tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "ingest", [pair(QUESTION, ANSWER)])
    for name, settings, error, message in (
        ("advert", settings_of(advert, "cleen"), RecipeError, r"filter.classifiers.advert: .*did you mean 'clean'"),
        ("advert", settings_of(tmp_path / "nowhere"), ModelError, "is not a folder"),
        ("han_ratio", settings_of(advert), RecipeError, "a classifier can't be called 'han_ratio'"),
    ):
        with pytest.raises(error, match=message):
            filter_pairs(tmp_path, FilterSettings(classifiers={name: settings}), Engine())
    assert not (tmp_path / "filter").exists()


def test_torch_is_not_imported_without_classifiers() -> None:
    code = "import sys; from conan_embedding.pipeline.filter import stage, preview; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
