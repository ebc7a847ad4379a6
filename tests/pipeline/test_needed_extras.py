"""The extras that a recipe needs, and the packages of an extra that are missing."""

from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from conan_embedding.pipeline.needed_extras import missing_packages, needed_extras
from conan_embedding.schemas.errors import ConanError
from conan_embedding.schemas.recipe import Recipe, load

ReadRecipe = Callable[[str], Recipe]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReadRecipe]:
    monkeypatch.chdir(tmp_path)

    def recipe(text: str) -> Recipe:
        Path("r.yaml").write_text(text, "utf-8")
        return load(Path("r.yaml"))

    yield recipe


def test_each_extra_comes_with_the_first_key_that_needs_it(read: ReadRecipe) -> None:
    recipe = read(
        """\
sources:
  - {name: plain, files: a.jsonl, read: jsonl}
  - {name: crawl, files: "*.warc.gz", read: warc}
  - {name: pages, files: "*.html", read: html, simplify: true}
  - {name: remote, files: "s3://bucket/*.csv", read: csv}
pretrain: {lora: {rank: 4}, track: [a_plugins_own]}
bootstrap: {training: {track: [mlflow]}}
finetune: {lora: {rank: 4}}
export: {onnx: true}
"""
    )
    assert needed_extras(recipe) == {
        "web": "r.yaml:3: sources.1.read",
        "zh": "r.yaml:4: sources.2.simplify",
        "s3": "r.yaml:5: sources.3.files",
        "mlflow": "r.yaml:7: bootstrap.training.track",
        "lora": "r.yaml:6: pretrain.lora",
        "onnx": "r.yaml:9: export.onnx",
    }
    assert needed_extras(read("finetune: {}")) == {}


def test_documents_need_what_their_files_are(read: ReadRecipe) -> None:
    for name in ("a.md", "b.HTML", "kept/c.pdf.gz", "left_out/d.docx"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x")
    source = "sources: [{name: s, files: '**/*.*', exclude: 'kept/*', read: documents}]"
    assert needed_extras(read(source.replace("**/*.*", "*.md"))) == {}
    assert needed_extras(read(source.replace("**/*.*", "*.{md,HTML}"))).keys() == {"web"}
    assert needed_extras(read(source)).keys() == {"web", "documents"}
    assert needed_extras(read(source.replace("kept", "*"))).keys() == {"web"}
    assert needed_extras(read("sources: [{name: s, files: '*/c.*', read: documents}]")).keys() == {"documents"}


def test_evaluation_sets_count_too_with_all_their_files(read: ReadRecipe) -> None:
    Path("a.md").write_text("x")
    Path("b.pptx").write_text("x")
    remote = read("evaluation: [{name: e, files: a.jsonl, read: jsonl, passages: [b.jsonl, 's3://c/*.jsonl']}]")
    assert needed_extras(remote) == {"s3": "r.yaml:1: evaluation.0.passages"}
    local = needed_extras(read("evaluation: [{name: e, files: a.md, read: documents, passages: b.pptx}]"))
    assert local == {"documents": "r.yaml:1: evaluation.0.read"}


def test_files_that_cant_be_listed_name_their_source(read: ReadRecipe) -> None:
    recipe = read("sources: [{name: s, files: 'nowhere://bucket/*.pdf', read: documents}]")
    with pytest.raises(
        ConanError, match=r"^r\.yaml:1: sources\.0\.files: can't be listed: ValueError: Protocol not known"
    ):
        needed_extras(recipe)


INSTALLED = {"torch": "2.5.0", "polars": "2.1", "markitdown": "0.1.9", "mammoth": "1.0"}
REQUIRED = {
    "conan-embedding": [
        "torch>=2.6",
        "polars>=2",
        "tomli; python_version < '3'",
        'markitdown[docx,pptx]>=0.1.9; extra == "documents"',
        'pdfplumber>=0.11; extra == "documents"',
        'peft>=0.21; extra == "lora"',
        'conan-embedding[documents,lora]; extra == "test"',
    ],
    "markitdown": ['mammoth>=0.5; extra == "docx"', 'python-pptx; extra == "pptx"', 'xlrd; extra == "xls"'],
}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what is installed by INSTALLED, and what packages require by REQUIRED."""

    def version(name: str) -> str:
        if name not in {**INSTALLED, "conan-embedding": "0.1"}:
            raise metadata.PackageNotFoundError(name)
        return INSTALLED.get(name, "0.1")

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", REQUIRED.get)


def test_packages_that_are_missing_or_too_old_are_listed(installed: None) -> None:
    assert missing_packages() == ["torch>=2.6"]
    assert missing_packages("lora") == ["peft>=0.21"]
    assert missing_packages("documents") == ["python-pptx", "pdfplumber>=0.11"]
    assert missing_packages("test") == ["python-pptx", "pdfplumber>=0.11", "peft>=0.21"]


def test_an_extra_that_the_installed_version_does_not_have_is_missing() -> None:
    assert missing_packages("telepathy") == ["conan-embedding[telepathy]"]


def test_here_nothing_is_missing() -> None:
    assert missing_packages() == []
