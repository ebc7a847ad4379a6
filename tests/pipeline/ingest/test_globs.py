"""Globs match what Python's glob matches; what they leave out is named."""

import glob
import os
from pathlib import Path

import pytest
from conan_embedding.pipeline.ingest import globs
from conan_embedding.pipeline.ingest.globs import expand_braces, match
from hypothesis import given
from hypothesis import strategies as st
from properties import max_examples

names = st.sampled_from(["a", "b", "c.x", ".h", "A.X"])
places = st.lists(names, min_size=1, max_size=3).map("/".join)
parts = st.sampled_from(["**", "*", "a", "b", "c.x", "*.x", "?", "[ab]", "[!b]", ".*", ".h", "**.x"])


def paths(pattern: str) -> list[str]:
    return [path for path, why in match(pattern) if not why]


@max_examples(60)
@given(
    some_files=st.sets(places, min_size=1, max_size=5),
    links=st.dictionaries(places, st.sampled_from(["a", "b", "elsewhere", "a/b", "nowhere", "b/c.x"]), max_size=2),
    loop=st.none() | places,
    pattern=st.lists(parts, min_size=1, max_size=4).map("/".join),
)
def test_the_files_are_those_of_pythons_glob(
    some_files: set[str],
    links: dict[str, str],
    loop: str | None,
    pattern: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    top = tmp_path_factory.mktemp("tree")
    for file in [*some_files, "elsewhere/a/b", "elsewhere/c.x"]:
        make(top / file)
    for link, target in [*links.items(), *([(loop, ".")] if loop else [])]:
        make(top / link, top / target)
    python = {path for path in glob.glob(f"{top}/{pattern}", recursive=True) if os.path.isfile(path)}  # noqa: PTH113, PTH207
    ours = {path for path in paths(f"{top}/{pattern}") if os.path.isfile(path)}  # noqa: PTH113
    assert {os.path.realpath(path) for path in ours} == {os.path.realpath(path) for path in python}


def make(path: Path, target: Path | None = None) -> None:
    """Make a file, or a link to a target, unless something is in the way."""
    if any(above.is_symlink() or above.is_file() for above in [path, *path.parents]) or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target) if target else path.write_text("x")


def test_links_in_circles_end(tmp_path: Path) -> None:
    """Python's glob would try billions of ways through these."""
    for name in "abcdefgh":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_text("x")
        for other in "abcdefgh":
            (tmp_path / name / f"to_{other}").symlink_to(f"../{other}")
    (tmp_path / "self").symlink_to("self")
    assert sorted(paths(f"{tmp_path}/**/*.jsonl")) == [f"{tmp_path}/{name}/x.jsonl" for name in "abcdefgh"]
    assert paths(f"{tmp_path}/a/to_b/to_c/*.jsonl") == [f"{tmp_path}/a/to_b/to_c/x.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("data[1].jsonl", ["data1.jsonl", "data[1].jsonl"]),
        ("data[2].jsonl", ["data2.jsonl"]),
        ("[zh]/*.jsonl", ["[zh]/a.jsonl", "z/a.jsonl"]),
        ("what?.jsonl", ["what?.jsonl"]),
        ("{a,b}.jsonl", ["{a,b}.jsonl"]),
        ("a*b.jsonl", ["a*b.jsonl"]),
        ("**/a.jsonl", ["[zh]/a.jsonl", "z/a.jsonl"]),
        ("./z//*.jsonl", ["z/a.jsonl"]),
        ("z/../data1.jsonl", ["z/../data1.jsonl"]),
        ("nowhere/*", []),
        ("data1.jsonl/*", []),
    ],
)
def test_names_with_wildcards_in_them(pattern: str, expected: list[str], tmp_path: Path) -> None:
    for name in ("data[1].jsonl", "data1.jsonl", "data2.jsonl", "what?.jsonl", "{a,b}.jsonl", "a*b.jsonl"):
        (tmp_path / name).write_text("x")
    for folder in ("[zh]", "z"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_text("x")
    assert sorted(paths(f"{tmp_path}/{pattern}")) == [f"{tmp_path}/{name}" for name in expected]


def test_what_is_left_out_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (".git/a.jsonl", ".DS_Store", "b/._a.jsonl", "b/A.JSONL", "b/a.jsonl", "locked/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    scan = globs._scan
    monkeypatch.setattr(globs, "_scan", lambda folder: None if folder.endswith("locked") else scan(folder))
    reasons = {os.path.relpath(path, tmp_path): why for path, why in match(f"{tmp_path}/**/*.jsonl")}
    assert reasons == {
        ".git": "hidden",
        "b/._a.jsonl": "hidden",
        "b/A.JSONL": "in another case",
        "b/a.jsonl": "",
        "locked": "unreadable",
    }
    assert dict(match(f"{tmp_path}/*")) == {
        f"{tmp_path}/{name}": "hidden" if name.startswith(".") else "" for name in (".DS_Store", ".git", "b", "locked")
    }
    assert paths(f"{tmp_path}/.git/*") == [f"{tmp_path}/.git/a.jsonl"]
    assert paths(f"{tmp_path}/b/.*") == [f"{tmp_path}/b/._a.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.csv", ["a.csv"]),
        ("{train,dev}.csv", ["train.csv", "dev.csv"]),
        ("s3://b/{a,b}/{1,2}.csv", ["s3://b/a/1.csv", "s3://b/a/2.csv", "s3://b/b/1.csv", "s3://b/b/2.csv"]),
        ("x{,.gz}", ["x", "x.gz"]),
        ("{a,{b,c}}", ["a", "b", "a", "c"]),
        ("{a}.csv", ["{a}.csv"]),
    ],
)
def test_braces(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected
