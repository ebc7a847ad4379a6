"""`conan check`: every fault of a recipe is told once, with its key and the cure; nothing is written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Conan
from conan_embedding import check as module
from conan_embedding.check import check_recipe
from cross_encoders import write_cross_encoder

PAIRS = '{"question": "怎么泡茶", "answer": "用热水泡"}\n{"question": "怎么煮饭", "answer": "用电饭锅"}\n'
FAQ = {"files": "faq.jsonl", "read": "jsonl", "task": "retrieval", "query": "question", "positive": "answer"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "faq.jsonl").write_text(PAIRS, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def check(recipe: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Check a recipe; return the level of each finding, its key, and what was found."""
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    before = sorted(Path().rglob("*"))
    found = check_recipe(Path("recipe.yaml"))
    assert sorted(Path().rglob("*")) == before
    return [(each.level, each.check.rpartition(": ")[2], each.found) for each in found]


def errors(recipe: dict[str, Any]) -> dict[str, str]:
    """Return the errors of a recipe by key."""
    return {key: found for level, key, found in check(recipe) if level == "error"}


def test_a_recipe_without_faults_can_begin(folder: Path, tiny: Path) -> None:
    recipe = {
        "sources": [{"name": "faq", **FAQ}],
        "evaluation": [{"name": "exam", **FAQ, "passages": "faq.jsonl"}],
        "score": {"model": str(tiny)},
        "mine": {"model": f"{tiny}[:1]"},
        "finetune": {"model": str(tiny), "matryoshka_dims": [16]},
        "evaluate": {"models": ["finetune", "bm25", str(tiny)]},
    }
    ready = "ingest, filter, dedup, score, convert, mine, finetune, evaluate, export can begin"
    assert check(recipe) == [("ok", "recipe.yaml", ready)]


def test_every_fault_of_the_settings_is_told_at_its_key(folder: Path, tiny: Path) -> None:
    found = errors(
        {
            "plugins": ["no_such_plugin", "json"],
            "sources": [{"name": "faq", **FAQ}, {"name": "typo", **FAQ, "read": "josnl"}],
            "evaluation": [{"name": "exam", **FAQ}],
            "holdout": {},
            "filter": {
                "rules": {"hanratio": 0.2},
                "sources": {"fq": {"han_ratio": 0.1}},
                "blocked_words": "words.txt",
                "classifiers": {"fluent": {"model": str(tiny), "label": "good"}},
            },
            "dedup": {"decontaminate": ["exm", "faq.jsonl"]},
            "bootstrap": {"vocabulary": "vocab.txt", "training": {"on": "score", "matryoshka_dims": [2000]}},
            "score": {"model": "pretrain"},
            "mine": {"method": "topk-percos", "model": "no/such/model"},
            "pretrain": {"model": "bootstrap", "projection_dim": 512, "matryoshka_dims": [256]},
            "finetune": {
                "model": f"{tiny}[:1]",
                "queries": ["pretrain"],
                "validation": {"every": 1, "sets": ["exom", "faq.jsonl", "faq"]},
                "mixing": {"sources": {"fqa": 2}},
                "loss_terms": {"nix": 1},
            },
            "evaluate": {"models": ["finetune", f"{tiny}[:3]"], "matryoshka_dims": [33]},
        }
    )
    expected = {
        "plugins": "no_such_plugin can't be imported",
        "sources.1.read": "no reader is called 'josnl'; did you mean 'jsonl'?",
        "filter": "filter.rules: no filter rule is called 'hanratio'; did you mean 'han_ratio'?",
        "filter.sources": "no source is called 'fq'; did you mean 'faq'?",
        "filter.blocked_words": "words.txt can't be read as UTF-8 text",
        "filter.classifiers.fluent": f"{tiny} is not a classifier",
        "dedup.decontaminate": "exm is neither a Parquet or JSONL file nor an evaluation set of the corpus",
        "bootstrap.vocabulary": "there is no file vocab.txt",
        "bootstrap.training.on": "score comes after bootstrap; name an earlier stage",
        "bootstrap.training.matryoshka_dims": "the vectors of bootstrap have 1792 dimensions, but",
        "score.model": "names the model of pretrain, which is trained later than score",
        "mine.method": "no mining method is called 'topk-percos'; did you mean 'topk-percpos'?",
        "mine.model": "no/such/model is not a folder, nor a name that a model on the hub may have",
        "pretrain.on": "no source has `task: pretrain`, so there is nothing to train on",
        "pretrain.projection_dim": "the linear layer of bootstrap has width 1792, not 512",
        "finetune.queries": "no source has `task: pretrain`, so convert/pretrain is empty",
        "finetune.validation.sets": "no file or evaluation set is called 'exom'; did you mean 'exam'?",
        "finetune.mixing.sources": "no source is called 'fqa'; did you mean 'faq'?",
        "finetune.loss_terms": "no loss term is called 'nix'",
        "finetune.matryoshka_dims": f"the vectors of {tiny}[:1] have 32 dimensions, but finetune.matryoshka_dims lists",
        "evaluate.models.1": f"{tiny} has 2 layers; ask for 1 to 2 of them",
        "evaluate.matryoshka_dims": "the vectors of finetune have 32 dimensions, but evaluate.matryoshka_dims lists 33",
    }
    assert found.keys() == expected.keys()
    assert [key for key, start in expected.items() if not found[key].startswith(start)] == []


def test_what_only_some_models_and_sets_allow_is_told(folder: Path, tiny: Path) -> None:
    pairs = {"name": "pairs", **FAQ, "task": "sts", "label": "1.0"}
    model = {"model": str(tiny), "matryoshka_dims": []}
    recipe = {
        "sources": [{"name": "faq", **FAQ}, {"name": "raw", **FAQ, "task": "pretrain"}],
        "evaluation": [pairs],
        "score": {"model": str(tiny)},
        "mine": {"model": str(tiny)},
        "pretrain": {**model, "attention": "bidirectional", "lora": None},
        "finetune": {**model, "lora": {"targets": ["q_proj"]}},
        "evaluate": {"quantize": ["int8"]},
    }
    found = errors(recipe)
    assert found.keys() == {"pretrain.model", "finetune.model", "evaluate.quantize"}
    assert found["pretrain.model"].startswith("pretrain.attention: can be chosen for decoders only")
    assert found["finetune.model"].startswith("finetune.lora.targets: ")
    assert found["evaluate.quantize"].startswith("no evaluation set has questions to search passages for")
    assert errors({**recipe, "bootstrap": {"heads": 3}}).keys() == {"bootstrap"}


def test_the_beginnings_of_the_files_of_every_source_are_tried(folder: Path) -> None:
    Path("table.csv").write_text("q,a\n怎么泡茶,用热水\n", "utf-8")
    Path("header.csv").write_text("q,a\n", "utf-8")
    Path("some").mkdir()
    Path("some", "1.jsonl").write_text(PAIRS, "utf-8")
    Path("some", "2.jsonl").write_bytes(b"\x80\x81\xff\xfe\x9f" * 40)
    table = {"files": "table.csv", "read": "csv", "query": "q", "positive": "a"}
    found = check(
        {
            "sources": [
                {"name": "column", **FAQ, "positive": "anwser"},
                {"name": "sql", **table, "positive": "lower(a"},
                {"name": "gone", **table, "files": "gone*.csv"},
                {"name": "glob", **table, "files": ["table.csv", "more.csv"]},
                {"name": "one_broken", **FAQ, "files": "some/*.jsonl"},
                {"name": "condition", **FAQ, "where": "question = 'x'"},
                {"name": "protocol", **FAQ, "files": "s4://bucket/x.jsonl"},
                {"name": "joined", **FAQ, "join": {"more": "lost.txt"}},
                {"name": "no_rows", **table, "files": "header.csv"},
                {"name": "fine", **FAQ},
            ],
            "evaluation": [{"name": "exam", **FAQ, "passages": "lost.jsonl"}],
            "evaluate": {"models": []},
        }
    )
    started = [(level, key, found[:60]) for level, key, found in found if key.startswith(("sources", "evaluation"))]
    assert started == [
        ("error", "sources.0.files", "column: none of the first 2 rows is a pair: 2 as projection,"),
        ("error", "sources.1.files", "sql: none of the first 1 rows is a pair: 1 as projection, su"),
        ("error", "sources.2.files", "gone: no file matches gone*.csv"),
        ("warning", "sources.3.files", "glob: no file matches more.csv"),
        ("warning", "sources.4.files", f"one_broken: {folder}/some/2.jsonl has no readable row"[:60]),
        ("warning", "sources.5.files", "condition: `where` leaves no pair of the first 2 rows"),
        ("error", "sources.6.files", "ValueError: Protocol not known: s4"),
        ("error", "sources.7.files", "joined: none of the first 2 rows is a pair: 2 as projection,"),
        ("error", "sources.8.files", "no_rows: no row in its files"),
        ("error", "evaluation.0.passages", "exam: no file matches lost.jsonl"),
    ]
    told = " ".join(text for _, _, text in found)
    for reason in ("these rows have no column anwser", "syntax error", "lost.txt: FileNotFoundError"):
        assert reason in told


def test_only_some_files_are_read_and_only_their_beginnings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("many").mkdir()
    for number in range(10):
        line = PAIRS if number % 5 == 0 else "broken\n"
        Path("many", f"{number}.jsonl").write_text(PAIRS.splitlines()[0] + "\n" + line, "utf-8")
    monkeypatch.setattr(module, "MOST_FILES", 2)
    source = {"name": "many", **FAQ, "files": "many/*.jsonl"}
    assert [level for level, _, _ in check({"sources": [source]}) if level != "warning"] == ["ok"]
    seen: list[int] = []
    monkeypatch.setattr(
        "conan_embedding.pipeline.ingest.preview.preview_source",
        lambda one, files, splits, sample: seen.extend([files, len(splits), sample]) or 1 / 0,
    )
    check({"sources": [source]})
    assert seen == [10, 2, module.SAMPLE_BYTES]


def test_a_model_that_must_be_downloaded_is_told_and_not_downloaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"sources": [{"name": "faq", **FAQ}], "score": {"model": "nobody/nothing"}}
    missing = "nobody/nothing is neither a folder nor in the local cache of the Hugging Face hub"
    assert check(recipe)[0] == ("warning", "score.model", f"{missing}, so it is not checked; it will be downloaded")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert errors(recipe) == {"score.model": f"{missing}, and HF_HUB_OFFLINE is set"}


def test_a_models_folder_is_read_by_the_whitelist_and_needs_no_weights_in_memory(folder: Path, tiny: Path) -> None:
    shutil.copytree(tiny, "model")
    recipe = {"sources": [{"name": "faq", **FAQ}], "score": {"model": "model"}}
    Path("model", "model.safetensors").write_bytes(b"")  # not read
    assert errors(recipe) == {}
    Path("model", "model.safetensors").unlink()
    assert errors(recipe)["score.model"].startswith("model: no weights in the format safetensors")
    Path("model", "modules.json").write_text('[{"type": "pylate.models.ColBERT", "path": ""}]')
    assert "is not understood" in errors(recipe)["score.model"]


def test_a_judge_is_a_cross_encoder_a_bi_encoder_or_a_file(folder: Path, tiny: Path) -> None:
    recipe: dict[str, Any] = {"sources": [{"name": "faq", **FAQ}]}
    recipe |= {"finetune": {"model": str(tiny), "matryoshka_dims": []}}
    recipe |= {"mine": {"model": str(tiny)}, "score": {"model": str(tiny)}}
    good = write_cross_encoder(folder / "good")
    (good / "model.safetensors").write_bytes(b"")  # not read
    (folder / "scores.jsonl").write_text("", "utf-8")
    for judge in ({"model": str(good)}, {"model": str(tiny)}, {"scores": "scores.jsonl"}):
        assert errors(recipe | {"judge": judge}) == {}
    several = write_cross_encoder(folder / "several", labels=3)
    for judge, message in (
        ({"model": str(several)}, "the classifier has 3 labels"),
        ({"scores": "gone.jsonl"}, "there is no file gone.jsonl"),
        ({"scores": "scores.csv"}, "expected a file that ends in .parquet or .jsonl"),
    ):
        (found,) = errors(recipe | {"judge": judge}).values()
        assert message in found


def test_a_source_that_a_language_model_writes(folder: Path, tiny: Path) -> None:
    """It has no files to be tried; what it names is looked at, its server is not asked."""
    asked = {"server": {"url": "http://127.0.0.1:9", "model": "m"}, "budget": {"requests": 1, "tokens": 1}}

    def recipe(**more: Any) -> dict[str, Any]:
        written = {"name": "w", "format": "question_answer", "task": "retrieval", "synthesize": asked | more}
        return {"sources": [{"name": "faq", **FAQ}, written], "score": {"model": str(tiny)}}

    ready = "ingest, filter, dedup, synthesize, score, convert can begin"
    assert check(recipe(round_trip={"model": str(tiny)})) == [("ok", "recipe.yaml", ready)]
    wrong = recipe(
        language="xx", personas="none.txt", passages={"sql": "SELECT text FROM dedup"}, round_trip={"model": "finetune"}
    )
    found = errors(wrong)
    at = "sources.1.synthesize"
    assert set(found) == {f"{at}.{key}" for key in ("language", "personas", "passages.sql", "round_trip.model")}
    assert "no language is called 'xx'" in found[f"{at}.language"]
    assert "none.txt can't be read" in found[f"{at}.personas"]
    assert "expected the columns text, pair_id, each VARCHAR" in found[f"{at}.passages.sql"]
    assert "there is no `finetune:`" in found[f"{at}.round_trip.model"]


def test_models_of_an_earlier_run_are_looked_for_in_the_corpus(folder: Path, tiny: Path) -> None:
    recipe = {"sources": [{"name": "faq", **FAQ}], "score": {"model": "pretrain"}, "corpus": "corpus"}
    cure = "name another stage, a folder or a hub name"
    assert errors(recipe) == {"score.model": f"names the model of pretrain, but there is no `pretrain:`; {cure}"}
    Path("corpus/train/pretrain").mkdir(parents=True)
    shutil.copytree(tiny, "corpus/train/pretrain/model")
    assert errors(recipe) == {}


def test_missing_extras_are_told_with_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "missing_packages", lambda extra: [f"package-of-{extra}"])
    Path("recipe.yaml").write_text(yaml.safe_dump({"sources": [{"name": "faq", **FAQ, "simplify": True}]}), "utf-8")
    (found,) = [each for each in check_recipe(Path("recipe.yaml")) if each.level == "error"]
    assert (found.check.rpartition(": ")[2], found.found) == (
        "sources.0.simplify", "needs the extra zh; missing: package-of-zh"
    )  # fmt: skip
    assert found.cure == "pip install 'conan-embedding[zh]'"


def test_the_command_prints_a_line_for_each_finding_and_ends_with_1_if_there_is_an_error(
    conan: Conan, folder: Path
) -> None:
    Path("recipe.yaml").write_text("sources:\n- {name: a, nam: b}\nfilter: {rules: 5}\n", "utf-8")
    code, out, _ = conan("check", "recipe.yaml")
    assert code == 1
    assert [line.split()[:2] for line in out.splitlines()] == [["error", "recipe.yaml:2:"]] * 2 + [
        ["error", "recipe.yaml:2"],
        ["error", "recipe.yaml:3:"],
    ]
    code, out, _ = conan("check", "recipe.yaml", "--json", "--set", "filter.rules=7")
    assert code == 1
    assert json.loads(out)[-1] == {
        "check": "--set filter.rules=7: filter.rules",
        "level": "error",
        "found": "Input should be a valid dictionary, found 7",
        "cure": "",
    }
    Path("recipe.yaml").write_text(yaml.safe_dump({"sources": [{"name": "faq", **FAQ}]}), "utf-8")
    assert conan("check", "recipe.yaml")[0] == 0
