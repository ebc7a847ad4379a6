"""Models and pairs sent to a stand-in of the Hugging Face hub: what lies there afterwards, and what is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import yaml
from command_line import Conan
from conan_embedding.pipeline.corpus.folder import committed, rejects
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.schemas.recipe import load
from conan_embedding.workflow import run_data_stage
from hub import Hub, serve_hub

RECIPE = """\
sources:
  - {{name: web, category: web_page, licence: CC BY 4.0, files: {folder}/web.jsonl, read: jsonl, query: q, positive: a}}
  - {{name: faq, category: community_qa, licence: MIT, files: {folder}/faq.jsonl, read: jsonl, query: q, positive: a}}
filter: {{rules: {{query_length: 4}}}}
"""
LONG = "秋天的北京天气晴朗，香山的红叶正红，是一年里最适合出门的季节。"
WEB = [
    ("北京的秋天为什么适合旅行？", LONG),
    ("短", f"请打电话13812345678，{LONG}"),
    ("怎样才能学好数学？", f"多做练习，{LONG}"),
]


@pytest.fixture(scope="module")
def shared_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of four pairs after ingest and filter; one line is not JSON, one pair has a short query."""
    folder = tmp_path_factory.mktemp("push")
    lines = [json.dumps({"q": query, "a": positive}, ensure_ascii=False) for query, positive in WEB]
    (folder / "web.jsonl").write_text("\n".join([*lines, '{"q": "坏的 a@b.com 13812345678"']), "utf-8")
    (folder / "faq.jsonl").write_text(json.dumps({"q": "怎样退货比较方便？", "a": LONG}, ensure_ascii=False), "utf-8")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder), "utf-8")
    recipe = load(folder / "recipe.yaml")
    for stage in ("ingest", "filter"):
        run_data_stage(stage, folder / "corpus", recipe, Engine(workers=1))
    return folder / "corpus"


@pytest.fixture
def corpus(shared_corpus: Path, tmp_path: Path) -> Path:
    """A copy of it, with an exported model, as far as its names matter here."""
    corpus = Path(shutil.copytree(shared_corpus, tmp_path / "corpus"))
    for name, text in {
        "modules.json": "[]",
        "model.safetensors": "weights",
        "1_Pooling/config.json": "{}",
        "README.md": '# model\n\nmodel = SentenceTransformer("model", truncate_dim=64)\n',
        ".cache/x": "not sent",
    }.items():
        (corpus / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / "model" / name).write_text(text)
    return corpus


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(monkeypatch) as hub:
        yield hub


def test_a_model_is_sent_whole_and_replaces_what_was_there(corpus: Path, hub: Hub, conan: Conan) -> None:
    code, out, _ = conan("push", corpus, "--to", "team/zh")
    assert code == 0 and out.startswith("push: 4 files, ") and out.strip().endswith("/team/zh")
    there = hub.repositories["models/team/zh"]
    assert there.private and len(there.commits) == 1
    assert sorted(there.files) == ["1_Pooling/config.json", "README.md", "model.safetensors", "modules.json"]
    assert there.files["README.md"].decode() == '# model\n\nmodel = SentenceTransformer("team/zh", truncate_dim=64)\n'
    assert there.files["model.safetensors"] == b"weights"

    there.files |= {".gitattributes": b"lfs", "onnx/model.onnx": b"old"}
    (corpus / "model" / "1_Pooling" / "config.json").unlink()
    assert conan("push", corpus, "--to", "team/zh")[0] == 0
    assert sorted(there.files) == [".gitattributes", "README.md", "model.safetensors", "modules.json"]
    assert len(there.commits) == 2


def test_pairs_are_sent_with_a_card_and_without_rejects(corpus: Path, hub: Hub, conan: Conan) -> None:
    code, out, _ = conan("push", corpus, "--to", "team/pairs", "--data", "filter", "--json")
    assert code == 0
    pushed = json.loads(out)
    assert (pushed["kind"], pushed["private"]) == ("dataset", True)
    there = hub.repositories["datasets/team/pairs"].files
    shards = {f"filter/{shard.name}": shard.read_bytes() for shard in committed(corpus, "filter")}
    assert {name: there[name] for name in shards} == shards
    assert sorted(there) == sorted([*shards, "README.md"])

    _, front, card = there["README.md"].decode().split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["configs"] == [{"config_name": "filter", "data_files": "filter/*.parquet"}]
    assert (data["license"], data["language"]) == ("other", "zh")
    for line in (
        "3 pairs of texts for embedding models",
        "| ingest | 4 | 1 |\n| filter | 3 | 1 |\n",
        "| faq | community_qa | MIT | 1 |\n| web | web_page | CC BY 4.0 | 2 |\n",
        "| ingest | broken_json | 1 |\n| filter | query_length | 1 |\n",
        'load_dataset("team/pairs", "filter")',
        "FROM 'hf://datasets/team/pairs/filter/*.parquet'",
    ):
        assert line in card
    assert str(corpus.parent) not in card


@pytest.mark.parametrize("stage", ["ingest", "filter"])
def test_rejects_go_along_if_asked_and_are_masked(stage: str, corpus: Path, hub: Hub, conan: Conan) -> None:
    assert conan("push", corpus, "--to", "team/pairs", "--data", stage, "--rejects")[0] == 0
    there = hub.repositories["datasets/team/pairs"].files
    (sent,) = (pl.read_parquet(data) for name, data in there.items() if name.startswith("rejected/"))
    (kept,) = (frame for shard in committed(corpus, stage) if (frame := pl.read_parquet(rejects(shard))).height)
    assert sent.columns == kept.columns and sent["reason"].to_list() == kept["reason"].to_list()
    every = json.dumps(sent.to_dicts(), ensure_ascii=False, default=str)
    assert "13812345678" not in every and "a@b.com" not in every and str(corpus.parent) not in every
    if stage == "ingest":
        assert sent["file"].to_list() == ["web.jsonl"]
    configs = yaml.safe_load(there["README.md"].decode().split("---\n")[1])["configs"]
    assert [config["config_name"] for config in configs] == [stage, "rejected"]


def test_raw_rejects_are_refused(corpus: Path, hub: Hub, conan: Conan) -> None:
    recipe = corpus / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("mask: true", "mask: false"))
    code, _, said = conan("push", corpus, "--to", "team/pairs", "--data", "ingest", "--rejects")
    assert code == 1
    assert "rejects of ingest hold records as they were read, as the recipe has `filter.mask: false`" in said
    assert not hub.repositories


def test_a_dry_run_asks_nothing(corpus: Path, hub: Hub, conan: Conan) -> None:
    code, out, _ = conan("push", corpus, "--to", "team/zh", "--dry-run")
    assert code == 0 and "would be sent to the private model team/zh" in out and "model.safetensors" in out
    code, out, _ = conan("push", corpus, "--to", "team/zh", "--data", "filter", "--public", "--dry-run", "--json")
    pushed = json.loads(out)
    assert (code, pushed["url"], pushed["private"]) == (0, None, False)
    assert pushed["files"]["README.md"] == len(pushed["card"].encode())
    assert hub.requests == []


def test_a_repository_is_public_only_if_asked(corpus: Path, hub: Hub, conan: Conan) -> None:
    assert conan("push", corpus, "--to", "team/zh", "--public")[0] == 0
    assert not hub.repositories["models/team/zh"].private
    code, _, said = conan("push", corpus, "--to", "team/zh")
    assert (code, "team/zh is there already and is public; pass --public" in said) == (1, True)
    hub.repositories["models/team/zh"].private = True
    code, _, said = conan("push", corpus, "--to", "team/zh", "--public")
    assert (code, "is there already and is private; leave out --public" in said) == (1, True)
    assert len(hub.repositories["models/team/zh"].commits) == 1


def test_what_is_refused_before_anything_is_sent(
    corpus: Path, hub: Hub, conan: Conan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    code, _, said = conan("push", corpus, "--to", "team/zh")
    assert code == 1 and "HF_TOKEN or `hf auth login`" in said and "401" in said
    for arguments, message in (
        (("--to", "zh"), "--to zh: expected the name of a repository on the hub, as in my-team/zh-model"),
        (("--to", "team/zh", "--data", "mine"), "--data mine: expected one of ingest, filter, dedup, score, convert"),
        (("--to", "team/zh", "--data", "score"), "no shards; run `conan score"),
    ):
        code, _, said = conan("push", corpus, *arguments)
        assert (code, message in said) == (1, True), said
    assert conan("push", corpus, "--to", "team/zh", "--rejects")[0] == 2
    shutil.rmtree(corpus / "model")
    code, _, said = conan("push", corpus, "--to", "team/zh")
    assert (code, "no exported model; run `conan export" in said) == (1, True)
    assert not hub.repositories
