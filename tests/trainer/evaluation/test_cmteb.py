"""C-MTEB without a network: names of tasks, errors, and metrics on local tasks that agree with mteb's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conan_embedding.pipeline.encoder.encoder import Encoder, dimension, encode, load_encoder
from conan_embedding.schemas.errors import MissingExtraError
from conan_embedding.schemas.settings import EncoderSettings, PromptSettings
from conan_embedding.trainer.evaluation import cmteb as module
from conan_embedding.trainer.evaluation.cmteb import CHINESE_PART, TASKS, BenchmarkError, ForMteb, check, cmteb, score
from conan_embedding.trainer.evaluation.evaluate import judge
from conan_embedding.trainer.evaluation.evaluation_sets import read_sets

mteb = pytest.importorskip("mteb")

EVERY = [name for kind in TASKS.values() for name in kind]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))
    return tmp_path / "mteb"


def by_characters(_: Any, texts: Any, prompt: str = "") -> Any:
    """Encode a text to a unit vector [32]: a sum of random vectors, one per character and one for the whole text."""
    texts = texts if isinstance(texts, list) else texts.to_pylist()
    found = np.array([_random(prompt + text) + sum(map(_random, prompt + text)) for text in texts], np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _random(text: str) -> Any:
    return np.random.default_rng(list(text.encode())).normal(size=32)


@pytest.fixture
def encoder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """An encoder whose vectors differ more than an untrained model's, so that rounding never decides a ranking."""
    monkeypatch.setattr("conan_embedding.trainer.evaluation.evaluate.encode", by_characters)
    monkeypatch.setattr(module, "encode", by_characters)
    return load_encoder(EncoderSettings(model=str(tiny), prompts=PromptSettings(query="一丁")))


def test_the_names_are_mtebs() -> None:
    theirs = {task.metadata.name: task.metadata.type for task in mteb.get_benchmark(module.BENCHMARK).tasks}
    theirs |= {name: mteb.get_task(name).metadata.type for name in CHINESE_PART}
    assert theirs == {name: kind for kind, names in TASKS.items() for name in names}
    assert len(EVERY) == len(set(EVERY)) == 35
    for name, part in CHINESE_PART.items():
        assert mteb.get_task(name, hf_subsets=[part], eval_splits=["test"]).hf_subsets == [part]


def test_without_the_network_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(BenchmarkError, match=r"http://127\.0\.0\.1:9, which can't be reached .*HF_ENDPOINT"):
        check([])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BenchmarkError, match="HF_HUB_OFFLINE is set"):
        check([])


def test_a_hub_that_answers_anything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # answers HEAD with 501
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert check([]) == EVERY
        assert check(["STSB", "BQ"]) == ["STSB", "BQ"]
        server.shutdown()


def test_without_mteb_and_for_other_names_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchmarkError, match=r"C-MTEB has no task 'STS-B'; did you mean 'STSB'\?"):
        check(["STSB", "STS-B"])
    with pytest.raises(BenchmarkError, match="'xyz'; choose from Amazon"):
        check(["xyz"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'conan-embedding\[eval\]'"):
        check([])


def test_means_are_of_whole_kinds(monkeypatch: pytest.MonkeyPatch, encoder: Encoder) -> None:
    value = {name: place / 35 for place, name in enumerate(EVERY)}
    asked = {}

    def scored(_: Any, tasks: Any) -> dict[str, float]:
        asked.update({task.metadata.name: task.hf_subsets for task in tasks})
        return {task.metadata.name: value[task.metadata.name] for task in tasks}

    monkeypatch.setattr(module, "score", scored)
    rows = cmteb(encoder, EVERY, 16)
    assert list(asked) == EVERY
    assert {name: asked[name] for name in CHINESE_PART} == {name: [part] for name, part in CHINESE_PART.items()}
    found = {(row["set"], row["metric"]): row["value"] for row in rows[35:]}
    means = {(f"mean of {len(names)}", kind): np.mean([value[name] for name in names]) for kind, names in TASKS.items()}
    assert found == pytest.approx(means | {("mean of 35", "C-MTEB"): np.mean(list(value.values()))})
    assert rows[34] == {"set": "STSB", "metric": "cosine_spearman", "value": 34 / 35}
    pairs = cmteb(encoder, ["Cmnli", "STSB", "Ocnli"], 16)
    assert [row["set"] for row in pairs] == ["Cmnli", "STSB", "Ocnli", "mean of 2"]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Make distinct texts with common characters, so that some are more similar than others."""
    random = np.random.default_rng(seed)
    return [f"{''.join(random.choice(list('一丁七万丈三上下不与'), 12))}{number}" for number in range(count)]


def task_of(kind: str, main_score: str, data: Any, **settings: Any) -> Any:
    """Make an mteb task with local data: one of mteb's mock tasks with its data replaced."""
    from importlib import import_module

    name = {"PairClassification": "pair_classification"}.get(kind, kind.lower())
    mock = getattr(import_module(f"mteb.mocks.mock_tasks.{name}"), f"Mock{kind}Task")

    class Local(mock):  # type: ignore[misc, valid-type]
        metadata = mock.metadata.model_copy(
            update={"name": f"Local{kind}", "main_score": main_score, "eval_splits": ["test"]}
        )

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            self.dataset, self.data_loaded = data, True

    for name, value in settings.items():
        setattr(Local, name, value)
    return Local()


def records(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def scored(encoder: Encoder, task: Any, width: int) -> float:
    return score(ForMteb(encoder, width), [task])[task.metadata.name]


def metrics(encoder: Encoder, file: Path, width: int) -> dict[str, float]:
    (one,) = read_sets([file])
    return judge(encoder, one, [width])[0].metrics


@pytest.fixture(params=[32, 8])
def width(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_retrieval_and_reranking_are_mtebs(tmp_path: Path, encoder: Encoder, width: int) -> None:
    from datasets import Dataset

    assert dimension(encoder) == 32
    passages, queries = sentences(50), sentences(15, 1)
    given = [[3 * query + i for i in range(8)] for query in range(15)]  # two positives, six negatives
    data = {
        "queries": Dataset.from_list([{"id": f"q{i}", "text": text} for i, text in enumerate(queries)]),
        "corpus": Dataset.from_list([{"id": f"d{i}", "text": text, "title": ""} for i, text in enumerate(passages)]),
        "relevant_docs": {f"q{i}": {f"d{place}": int(n < 2) for n, place in enumerate(g)} for i, g in enumerate(given)},
        "top_ranked": None,
    }
    rows = [
        {"query": text, "positives": [passages[i] for i in g[:2]], "negatives": [passages[i] for i in g[2:]]}
        for text, g in zip(queries, given, strict=True)
    ]
    found = metrics(encoder, records(tmp_path / "own.jsonl", rows), width)
    for ours, theirs in (("ndcg@10", "ndcg_at_10"), ("mrr@10", "mrr_at_10"), ("recall@10", "recall_at_10")):
        task = task_of("Retrieval", theirs, {"default": {"test": data}})
        task.metadata.name += theirs
        assert found[ours] == pytest.approx(scored(encoder, task, width), abs=1e-5)
    data["top_ranked"] = {f"q{i}": [f"d{place}" for place in g] for i, g in enumerate(given)}
    reranked = task_of("Reranking", "map_at_1000", {"default": {"test": data}})
    assert found["map"] == pytest.approx(scored(encoder, reranked, width), abs=1e-5)
    assert 0.05 < found["ndcg@10"] < 0.95 > found["map"] > 0.05


def test_sentence_pairs_are_mtebs(tmp_path: Path, encoder: Encoder, width: int) -> None:
    from datasets import Dataset, DatasetDict

    left, right = sentences(50), sentences(50, 1)
    labels = [int(a[0] == b[0] or number % 7 == 0) for number, (a, b) in enumerate(zip(left, right, strict=True))]
    rows = [{"text_a": a, "text_b": b, "label": n} for a, b, n in zip(left, right, labels, strict=True)]
    found = metrics(encoder, records(tmp_path / "own.jsonl", rows), width)
    data = DatasetDict({"test": Dataset.from_dict({"sentence1": left, "sentence2": right, "labels": labels})})
    for ours, theirs in (("ap", "cosine_ap"), ("best_accuracy", "cosine_accuracy")):
        task = task_of("PairClassification", theirs, data)
        task.metadata.name += theirs
        assert found[ours] == pytest.approx(scored(encoder, task, width), abs=1e-6)
    similar = task_of("STS", "cosine_spearman", DatasetDict({"test": data["test"].rename_column("labels", "score")}))
    assert found["spearman"] == pytest.approx(scored(encoder, similar, width), abs=1e-6)


@pytest.mark.parametrize("split", [True, False])
def test_classes_and_clusters_are_mtebs(tmp_path: Path, encoder: Encoder, width: int, split: bool) -> None:
    from datasets import Dataset, DatasetDict

    texts = sentences(203)
    labels = ["甲" if text[0] in "一丁七" else "乙" if text[1] in "一丁七万" else "丙" for text in texts]
    test = Dataset.from_dict({"text": texts, "label": labels})
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    if split:
        data = DatasetDict({"train": test.select(range(120)), "test": test.select(range(120, 203))})
        rows = [row | {"split": "train" if place < 120 else "test"} for place, row in enumerate(rows)]
        settings: dict[str, Any] = {}
    else:
        data = DatasetDict({"test": test})
        settings = {"is_cross_validation": True, "train_split": "test"}
    found = metrics(encoder, records(tmp_path / "own.jsonl", rows), width)
    theirs = task_of("Classification", "accuracy", data, samples_per_label=32, **settings)
    assert found["accuracy"] == pytest.approx(scored(encoder, theirs, width), abs=1e-6)
    asked = {"sentences": [list(data["test"]["text"])], "labels": [list(data["test"]["label"])]}
    clusters = task_of("Clustering", "v_measure", DatasetDict({"test": Dataset.from_dict(asked)}))
    assert found["v_measure"] == pytest.approx(scored(encoder, clusters, width), abs=1e-6)


def test_mteb_is_given_the_models_own_vectors(tiny: Path) -> None:
    from mteb.types import PromptType

    encoder = load_encoder(EncoderSettings(model=str(tiny), prompts=PromptSettings(query="一丁")))
    batches = [{"text": ["丈三", "上下不"]}, {"text": ["丈三"]}]
    texts = ["丈三", "上下不", "丈三"]
    passages = ForMteb(encoder, 32).encode(batches, prompt_type=PromptType.document, task_metadata=None)
    assert passages == pytest.approx(encode(encoder, texts), abs=1e-6)
    queries = ForMteb(encoder, 32).encode(batches, prompt_type=PromptType.query, task_metadata=None)
    assert queries == pytest.approx(encode(encoder, [f"一丁{text}" for text in texts]), abs=1e-6)
    assert np.linalg.norm(ForMteb(encoder, 8).encode(batches), axis=1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "side", "prompt"),
    [
        ("T2Retrieval", "query", "t2 "),  # after the task
        ("T2Retrieval", "document", "passage: "),
        ("DuRetrieval", "query", "retrieval-query "),  # after its type and side
        ("TNews", None, "classification "),
        ("AFQMC", None, "sentence: "),  # after nothing: the model's own
        ("T2Reranking", "query", "query: "),
    ],
)
def test_prompts_are_those_that_the_folder_names_after_tasks(
    name: str, side: str | None, prompt: str, tiny: Path
) -> None:
    own = PromptSettings(query="query: ", passage="passage: ", sentence="sentence: ")
    named = {"T2Retrieval-query": "t2 ", "Retrieval-query": "retrieval-query ", "Classification": "classification "}
    named |= {"query": "query: ", "document": "not ours"}
    model = ForMteb(load_encoder(EncoderSettings(model=str(tiny), prompts=own)), 32, named=named)
    assert model.find_prompt(mteb.get_task(name).metadata, side_of(side)) == prompt
    given = ForMteb(model.encoder, 32, PromptSettings(query="Q", passage="", sentence="S"), named)
    recipes = {"query": "query: ", "document": "passage: ", None: "sentence: "}[side]
    assert given.find_prompt(mteb.get_task(name).metadata, side_of(side)) == recipes
    assert given.mteb_model_meta.revision != model.mteb_model_meta.revision


@pytest.mark.parametrize(
    ("name", "side", "prompt"),
    [
        (
            "T2Retrieval",
            "query",
            "Instruct: Given a Chinese search query, retrieve web passages that answer the question\nQuery:",
        ),
        ("T2Retrieval", "document", ""),
        ("TNews", None, "Instruct: Classify the fine-grained category of the given news title\nQuery:"),
        ("LCQMC", None, "Instruct: Retrieve semantically similar text.\nQuery:"),  # mteb's default of the type
    ],
)
def test_instructions_are_mtebs(name: str, side: str | None, prompt: str, tiny: Path) -> None:
    own = PromptSettings(query="Instruct: Given a web search query, retrieve relevant passages\nQuery:")
    model = ForMteb(load_encoder(EncoderSettings(model=str(tiny), prompts=own)), 32)
    task = mteb.get_task(name).metadata
    assert model.find_prompt(task, side_of(side)) == prompt
    batches = [{"text": ["丈三"]}]
    found = model.encode(batches, task_metadata=task, prompt_type=side_of(side))
    assert found == pytest.approx(encode(model.encoder, [f"{prompt}丈三"]), abs=1e-6)


def side_of(name: str | None) -> Any:
    from mteb.types import PromptType

    return name and PromptType(name)


def test_scores_are_kept_by_weights_and_width(encoder: Encoder, cache: Path) -> None:
    revisions = {ForMteb(encoder, width).mteb_model_meta.revision for width in (32, 8, 32)}
    assert len(revisions) == 2
