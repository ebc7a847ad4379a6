"""conan init: the recipes that it writes for small folders, and that every file of a folder is accounted for once."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
from conan_embedding.pipeline.ingest.preview import preview
from conan_embedding.pipeline.ingest.splits import list_source_files
from conan_embedding.pipeline.recipe_writer.draft import Draft, draft_recipe
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.recipe import Recipe, load
from document_files import docx, paragraph
from hub import Repository, serve_hub
from object_store import serve_s3

QUESTIONS = [f"{goods}坏了怎么修理？" for goods in ("水壶", "风扇", "台灯", "电饭煲", "收音机", "吸尘器")]
ANSWERS = [f"先拔下插头，再把{number}号螺丝拧开，换上新的零件；保修期内可以免费送修。" for number in range(6)]

TRAINING = """
# Training (docs/training.md). `conan run` does all of it; `conan train --dry-run` counts the steps.
score: {model: "${model}", max_length: "${max_length}", cutoff: null}    # cuts nothing: look at the scores first
"""


ENDS = ("\n# Training", "\n# No file looks")


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def write_table(path: Path, rows: Sequence[Sequence[str]], delimiter: str = ",", encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(delimiter.join(row) + "\r\n" for row in rows).encode(encoding))


def sources_of(text: str) -> str:
    """The part of a recipe between its head and the sections of training."""
    return text[text.index("sources:") : min(text.find(end) for end in ENDS if end in text)]


def draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str = "raw") -> tuple[Draft, str, Recipe]:
    monkeypatch.chdir(tmp_path)
    drafted = draft_recipe(place, Path("recipe.yaml"))
    return drafted, Path("recipe.yaml").read_text("utf-8"), load(Path("recipe.yaml"))


def test_a_shop_s_faq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CSV in GB18030, and what Excel saves as Unicode text: UTF-16 with tabs, and quotes around quotes."""
    shop = tmp_path / "raw"
    rows = [[str(number), *pair, "2024-05-01"] for number, pair in enumerate(zip(QUESTIONS, ANSWERS, strict=True))]
    write_table(shop / "faq.csv", [["编号", "问题", "答案", "更新日期"], *rows], encoding="gb18030")
    quoted = [[question, f'"{answer}详见""说明书""。"'] for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]
    write_table(shop / "售后2024.txt", [["提问", "回复"], *quoted], "\t", "utf-16")
    (shop / "LICENSE").write_text("MIT")

    drafted, text, recipe = draft(tmp_path, monkeypatch)

    assert (
        sources_of(text)
        == """sources:
  # `问题` is answered by `答案`.
  # Else: `task: retrieval` if people have checked the pairs: then they are neither scored nor judged as titles.
  - name: faq
    category: community_qa
    format: question_answer
    files: ${root}/faq.csv
    read: csv
    query: 问题
    positive: 答案

  # `提问` is answered by `回复`.
  # Else: `task: retrieval` if people have checked the pairs: then they are neither scored nor judged as titles.
  - name: raw_2024
    category: community_qa
    format: question_answer
    files: ${root}/售后2024.txt
    read: tsv
    options: {quote: "\\""}
    query: 提问
    positive: 回复
"""
    )
    assert text.startswith("""# Written by `conan init`: guesses, to be read and corrected. This shows what they give:
#   conan ingest corpora/raw --recipe recipe.yaml --dry-run
""")
    assert TRAINING in text
    assert recipe.holdout is not None
    assert recipe.finetune is not None
    assert (recipe.finetune.model, recipe.finetune.max_length) == (recipe.score.model, recipe.score.max_length)
    assert (recipe.finetune.retrieval_batch, recipe.finetune.in_batch_positives) == (32, True)
    assert not recipe.finetune.hard_negative_mining.enabled  # or a first run would begin with a warning
    assert {recipe.finetune.model, "finetune"} == set(recipe.evaluate.models)
    assert text.endswith("\n# Not read:\n# LICENSE: describes the other files\n")
    assert drafted.unplaced == {"LICENSE": "describes the other files"}
    assert [source.paths for source in drafted.sources] == [["faq.csv"], ["售后2024.txt"]]
    assert drafted.can_train
    looked = list(preview(recipe))
    assert [(one.kept, one.rejected) for one in looked] == [(6, {}), (6, {})]
    assert looked[1].pairs[0] == (QUESTIONS[0], f'{ANSWERS[0]}详见"说明书"。')


def test_a_company_s_manuals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manuals = tmp_path / "manuals"
    (manuals / "a").mkdir(parents=True)
    (manuals / "a" / "kettle.md").write_text("# 水壶\n\n## 除垢\n\n每月用柠檬酸煮一次。\n", "utf-8")
    (manuals / "fan.html").write_text(
        "<html><head><title>风扇</title></head><body><article><h1>风扇</h1><h2>清洗</h2><p>拆下网罩，用软毛刷清洗扇叶，"
        "晾干以后再装回去，不要用汽油或者酒精擦拭外壳，以免变形；电机每年加一次油，加油以前要断电。</p></article></body></html>",
        "utf-8",
    )
    style = [("Heading1", "heading 1", "0", "")]
    (manuals / "rice.docx").write_bytes(
        docx(paragraph("电饭煲", "Heading1"), paragraph("米和水的比例是一比一点二。"), styles=style)
    )
    (manuals / "README.md").write_text("# 这是什么\n", "utf-8")
    (manuals / "photo.png").write_bytes(b"\x89PNG")
    (manuals / "~$rice.docx").write_bytes(b"\0" * 162)

    drafted, text, recipe = draft(tmp_path, monkeypatch, "manuals/")

    assert (
        sources_of(text)
        == """sources:
  # 3 files: documents, cut at their headings; the path of headings is the query.
  # Else: `task: passage` if nobody would ask for such headings: then the chunks are only searched.
  - name: manuals
    category: knowledge_base
    format: title_content
    files: ${root}/**/*.{docx,html,md}
    exclude:
      - ${root}/README.md
      - ${root}/~$rice.docx
    read: documents
"""
    )
    assert drafted.unplaced == {
        "README.md": "describes the other files",
        "photo.png": "a picture or a recording",
        "~$rice.docx": "left behind by Office or Windows",
    }
    (looked,) = preview(recipe)
    assert (looked.files, looked.kept, looked.rejected) == (3, 3, {})
    assert looked.pairs[0] == ("水壶 > 除垢", "每月用柠檬酸煮一次。")


def test_a_support_desk_s_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chats = [
        {"id": number, "messages": [{"sender": "customer", "text": ask}, {"sender": "agent", "text": answer}]}
        for number, (ask, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    for month in (1, 2, 10):
        write_lines(tmp_path / "raw" / f"chats-2024-{month:02}.jsonl", chats)
    write_lines(tmp_path / "raw" / "chats-test.jsonl", chats[:2])

    _, text, recipe = draft(tmp_path, monkeypatch)

    assert (
        sources_of(text)
        == """sources:
  # 3 files: `messages` holds the messages of a chat; each reply is a positive, what was said before it the query.
  # Else: `options: {turns: 1}` if only the last question matters.
  - name: chats
    category: instruction
    format: prompt_response
    files: ${root}/chats-2024-*.jsonl
    read: messages

evaluation:
  # `messages` holds the messages of a chat; each reply is a positive, what was said before it the query.
  # Else: `passages:` names more texts to search among.
  - name: chats_test
    category: instruction
    format: prompt_response
    task: retrieval
    files: ${root}/chats-test.jsonl
    read: messages
"""
    )
    assert text.endswith('evaluate: {models: ["${model}", finetune], max_length: "${max_length}"}\n')
    assert [one.kept for one in preview(recipe)] == [18, 2]


def write_faq(folder: Path) -> None:
    write_table(folder / "faq.csv", [["question", "answer"], *map(list, zip(QUESTIONS, ANSWERS, strict=True))])


def write_pages(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, answer in enumerate(ANSWERS):
        (folder / f"page {number}.md").write_text(f"# 第{number}章\n\n{answer}\n", "utf-8")


def write_splits(folder: Path) -> None:
    for split in ("train", "dev", "test"):
        rows = [{"text": answer, "label": number % 2} for number, answer in enumerate(ANSWERS)]
        write_lines(folder / f"{split}.jsonl", rows)


def write_parquet(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame({"query": QUESTIONS, "pos": [[answer] for answer in ANSWERS]})
    for number in range(4):
        frame.write_parquet(folder / f"train-{number:05}-of-00004.parquet")


def write_packed(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": ask, "output": answer} for ask, answer in zip(QUESTIONS, ANSWERS, strict=True)]
    (folder / "sft.json.gz").write_bytes(gzip.compress(json.dumps(rows, ensure_ascii=False).encode()))
    (folder / "data[1].txt").write_text("\n".join(ANSWERS), "utf-8")


def write_no_data(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        "README.md",
        "train.py",
        "dataset_infos.json",
        ".hidden",
        "a,b.bin",
        "names.txt",
        "empty.jsonl",
        "{a,b}.csv",
    ):
        (folder / name).write_text("" if name == "empty.jsonl" else "甲\n乙\n丙\n", "utf-8")
    write_lines(folder / "numbers.jsonl", [{"id": number, "url": f"https://a.cn/{number}"} for number in range(9)])
    (folder / "broken.json").write_text("{", "utf-8")
    (folder / "graph.json").write_text(json.dumps({f"实体{number}": [] for number in range(300)}), "utf-8")


WRITERS: list[Callable[[Path], None]] = [
    write_faq,
    write_pages,
    write_splits,
    write_parquet,
    write_packed,
    write_no_data,
]


@pytest.mark.parametrize("seed", range(3))
def test_every_file_is_placed_once_or_listed_with_a_reason(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = random.Random(seed)
    for write in [WRITERS[0], *choose.choices(WRITERS, k=5)]:
        write(tmp_path / "raw" / choose.choice(["", "a", "a/b", "数据", "c 1/d", "part3", "part4"]))
    drafted, _, recipe = draft(tmp_path, monkeypatch)
    files = Counter(
        path.relative_to(tmp_path / "raw").as_posix() for path in tmp_path.glob("raw/**/*") if path.is_file()
    )
    assert Counter([*drafted.unplaced, *(path for source in drafted.sources for path in source.paths)]) == files
    assert all(drafted.unplaced.values())
    read = Counter(
        Path(file.path).relative_to(tmp_path / "raw").as_posix()
        for source in (*recipe.sources, *recipe.evaluation)
        for file in list_source_files(source, source.files).files
    )
    assert read == files - Counter(drafted.unplaced.keys())
    assert all(one.kept for one in preview(recipe))


def test_a_recipe_that_is_there_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_faq(tmp_path / "raw")
    (tmp_path / "recipe.yaml").write_text("mine", "utf-8")
    with pytest.raises(RecipeError, match=r"^recipe\.yaml exists and is left as it is; name another file with -o$"):
        draft(tmp_path, monkeypatch)
    assert (tmp_path / "recipe.yaml").read_text("utf-8") == "mine"


def test_nothing_to_embed_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(
        RecipeError, match=r"^raw: nothing to embed in 1 files:\n  a\.png: a picture or a recording\nA sou"
    ):
        draft(tmp_path, monkeypatch)
    with pytest.raises(RecipeError, match=r"^nowhere: nothing there; expected a folder with data, a file, a glob"):
        draft(tmp_path, monkeypatch, "nowhere")
    assert not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize("place", ["raw/faq.csv", "raw/*.csv", "memory://init/faq.csv", "memory://init"])
def test_places_other_than_folders(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_faq(tmp_path / "raw")
    fsspec.filesystem("memory").pipe("/init/faq.csv", (tmp_path / "raw" / "faq.csv").read_bytes())
    drafted, text, recipe = draft(tmp_path, monkeypatch, place)
    assert [source.paths for source in drafted.sources] == [["faq.csv"]]
    assert f"\n  root: {'raw' if place.startswith('raw') else 'memory://init'}\n" in text
    assert [one.kept for one in preview(recipe)] == [6]


def test_a_dataset_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_faq(tmp_path / "raw")
    with serve_hub(monkeypatch) as hub:
        files = {"README.md": b"# FAQ", "data/faq.csv": (tmp_path / "raw" / "faq.csv").read_bytes()}
        hub.repositories["datasets/team/faq"] = Repository(files=files)
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        drafted, text, recipe = draft(tmp_path, monkeypatch, "hf://datasets/team/faq")
        assert [source.paths for source in drafted.sources] == [["data/faq.csv"]]
        assert "\n  root: hf://datasets/team/faq\n" in text
        assert [one.kept for one in preview(recipe)] == [6]
    fsspec.get_filesystem_class("hf").clear_instance_cache()


def test_a_prefix_in_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_faq(tmp_path / "raw")
    with serve_s3() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        store.mkdir("shop")
        store.pipe("shop/raw/faq.csv", (tmp_path / "raw" / "faq.csv").read_bytes())
        drafted, text, recipe = draft(tmp_path, monkeypatch, "s3://shop/raw")
        assert [source.paths for source in drafted.sources] == [["faq.csv"]]
        assert "\n  root: s3://shop/raw\n" in text
        assert [one.kept for one in preview(recipe)] == [6]


def test_broken_files_are_listed_with_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "raw"
    write_faq(raw)
    write_table(raw / "long.csv", [["question", "answer"], ["问？", f'"{"答" * 200_000}"'], ["再问？", "答"]])
    (raw / "junk.txt").write_bytes(bytes(range(128, 256)) * 40)
    (raw / "header.csv").write_text("question,answer", "utf-8")
    (raw / "broken.parquet").write_bytes(b"PAR1PAR1")
    (raw / "lfs.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 3\n")
    (raw / "old.docx").write_bytes(b"PK")
    (raw / "scalar.json").write_text("3")
    drafted, _, _ = draft(tmp_path, monkeypatch)
    assert [source.paths for source in drafted.sources] == [["faq.csv", "long.csv"]]
    assert {path: reason[:36] for path, reason in drafted.unplaced.items()} == {
        "broken.parquet": "unreadable, ArrowInvalid: Parquet fi",
        "header.csv": "no record in it",
        "junk.txt": "looked like text, but gives no pair:",
        "lfs.jsonl": "a Git LFS pointer, not the file itse",
        "old.docx": "looked like documents, but gives no ",
        "scalar.json": "lines of about 1 characters: words o",
    }


def test_the_members_of_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    write_faq(tmp_path)
    (tmp_path / "raw").mkdir()
    for name, others in (("all.zip", []), ("some.zip", ["README.md"])):
        with zipfile.ZipFile(tmp_path / "raw" / name, "w") as archive:
            for member in ("x/faq.csv", *others):
                archive.write(tmp_path / "faq.csv", member)
    drafted, _, recipe = draft(tmp_path, monkeypatch)
    assert [source.files for source in drafted.sources] == [["all.zip"], ["zip://x/faq.csv::raw/some.zip"]]
    assert drafted.unplaced == {"some.zip/README.md": "describes the other files"}
    assert [one.kept for one in preview(recipe)] == [6, 6]
