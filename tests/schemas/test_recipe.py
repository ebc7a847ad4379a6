"""The recipe: variables, overrides, and errors that say where and what."""

from pathlib import Path
from textwrap import dedent
from typing import Protocol

import pytest
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.recipe import Recipe, dump, load

RECIPES = Path(__file__).parents[2] / "recipes"


class Write(Protocol):
    def __call__(self, text: str) -> Path: ...


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(dedent(text), "utf-8")
        return path

    return write


SOURCE = """\
sources:
  - name: web
    files: ${root}/web/*.json
    read: json
"""


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as raised:
        load(path, overrides)
    return str(raised.value)


def test_an_empty_recipe_is_all_defaults(write: Write) -> None:
    assert load(write("")) == load(write("# nothing\n")) == Recipe()


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("dedup:\n  treshold: 0.8\n", 2, "unknown key `dedup.treshold`; did you mean `threshold`?"),
        ("scores: {}\n", 1, "unknown key `scores`; did you mean `score`?"),
        ("score:\n  zzz: 1\n", 2, "unknown key `score.zzz`; choose from model, "),
        ("finetune:\n  hard_negative_mining:\n    cieling: 1\n", 3, "did you mean `ceiling`?"),
        ("bootstrap:\n  training:\n    batchsize: 4\n", 3, "did you mean `batch_size`?"),
        ("sources:\n  - name: a\n    files: x\n    read: json\n    fromm: rows\n", 5, "did you mean `from`?"),
        ("sources:\n  - name: a\n    files: x\n    read: csv\n    options: {colums: [a]}\n", 5, "`columns`?"),
        ("evaluation:\n- name: a\n  files: x\n  read: csv\n  passage: y\n", 5, "did you mean `passages`?"),
    ],
)
def test_an_unknown_key_names_the_nearest_and_its_place(write: Write, text: str, line: int, said: str) -> None:
    path = write(text)
    assert message(path).startswith(f"{path}:{line}: ")
    assert said in message(path)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (
            "dedup:\n  on: pair\n  threshold: 1.5\n",
            3,
            "dedup.threshold: Input should be less than or equal to 1, found 1.5",
        ),
        ("dedup:\n  on: pears\n", 2, "'pair', 'query' or 'positive'"),
        ("score:\n  cutoff: .nan\n", 2, "finite number"),
        ("sources:\n  - {name: a, files: x, read: json, task: sts}\n", 2, "source a has task sts and needs `label:`"),
        ("sources:\n  - name: a\n    files: x\n", 2, "sources.0.read: Field required"),
        ("sources: web\n", 1, "should be a valid list"),
        ("variables: [a]\n", 1, "should be a valid dictionary"),
        ("variables:\n  root:\n", 2, "should be a valid string"),
    ],
)
def test_a_bad_value_is_named_with_its_place(write: Write, text: str, line: int, said: str) -> None:
    path = write(text)
    assert message(path).startswith(f"{path}:{line}: ")
    assert said in message(path)


def test_all_mistakes_are_told_at_once(write: Write) -> None:
    told = message(write("dedup: {treshold: 1}\nscore: {cutof: 1}\n")).splitlines()
    assert len(told) == 2


def test_names_of_sources_differ(write: Write) -> None:
    entry = "  - {name: web, files: x, read: json}\n"
    assert "sources: the name web appears twice" in message(write("sources:\n" + entry * 2))
    assert "evaluation: the name web appears twice" in message(write("evaluation:\n" + entry * 2))
    assert load(write("sources:\n" + entry + "evaluation:\n" + entry))


@pytest.mark.parametrize(
    "text", ["dedup: [", "a: b: c", "a:\n\t- x", "sources: *nothing", "a: !!python/object:os.system {}"]
)
def test_broken_yaml(write: Write, text: str) -> None:
    assert "not valid YAML" in message(write(text))


@pytest.mark.parametrize("text", ["- a\n", "just text", "3"])
def test_a_recipe_is_a_mapping(write: Write, text: str) -> None:
    assert "expected a mapping" in message(write(text))


def test_a_key_that_stands_twice_is_an_error(write: Write) -> None:
    told = message(write("dedup:\n  threshold: 0.8\nscore: {}\ndedup:\n  recall: 0.9\n"))
    assert "the key `dedup` appears twice" in told
    assert "`${name}` is a variable" in message(write("sources:\n  - name: a\n    files: {{root}}\n"))
    assert "line 4" in told


def test_an_anchor_may_be_merged(write: Write) -> None:
    recipe = load(
        write("""\
        sources:
          - &base {name: a, files: x, read: json, category: news}
          - {<<: *base, name: b}
        """)
    )
    assert [(source.name, source.category) for source in recipe.sources] == [("a", "news"), ("b", "news")]


@pytest.mark.parametrize("value", ["query", "positive"])
def test_on_is_a_key_and_not_true(write: Write, value: str) -> None:
    assert load(write(f"dedup:\n  on: {value}\n")).dedup.on == value
    assert load(write("filter:\n  rules: {mojibake: off, length: 3e-1}\n")).filter.rules == {
        "mojibake": False,
        "length": 0.3,
    }


def test_unreadable(tmp_path: Path) -> None:
    assert "can't be read" in message(tmp_path / "nowhere.yaml")
    assert "can't be read" in message(tmp_path)
    (tmp_path / "gbk.yaml").write_bytes("corpus: 语料".encode("gb18030"))
    assert "can't be read" in message(tmp_path / "gbk.yaml")


def test_variables(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONAN_TEST_ROOT", "/env")
    recipe = load(write("variables: {root: /data, year: 2024}\ncorpus: ${root}/${year}\n" + SOURCE))
    assert recipe.corpus == "/data/2024"
    assert recipe.sources[0].files == ["/data/web/*.json"]
    assert load(write("corpus: ${CONAN_TEST_ROOT}/x\n")).corpus == "/env/x"
    assert load(write("variables: {CONAN_TEST_ROOT: /own}\ncorpus: ${CONAN_TEST_ROOT}/x\n")).corpus == "/own/x"


def test_variables_are_made_of_variables_in_any_order(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONAN_TEST_ROOT", "/env")
    path = write("variables: {root: '${base}/data', base: '${CONAN_TEST_ROOT}/base'}\n" + SOURCE)
    assert load(path).sources[0].files == ["/env/base/data/web/*.json"]
    assert load(path).variables == {"root": "/env/base/data", "base": "/env/base"}
    assert load(path, ["variables.base=/b"]).sources[0].files == ["/b/data/web/*.json"]


def test_an_undefined_variable_names_the_nearest(write: Write) -> None:
    assert "${rot} is not defined; did you mean ${root}?" in message(write("variables: {root: /x}\ncorpus: ${rot}\n"))
    assert "it} is not defined. Define it under " in message(write("corpus: ${conan_nothing_like_it}\n"))


@pytest.mark.parametrize("variables", ["{conan_a: '${conan_a}/x'}", "{conan_a: '${conan_b}', conan_b: '${conan_a}'}"])
def test_a_variable_is_not_made_of_itself(write: Write, variables: str) -> None:
    assert "is not defined" in message(write(f"variables: {variables}\ncorpus: ${{conan_a}}\n"))


def test_overrides(write: Write) -> None:
    path = write("dedup: {threshold: 0.8}\nvariables: {root: /x}\n" + SOURCE)
    recipe = load(
        path,
        [
            "dedup.recall=0.95",
            "variables.root=2024",
            "score.cutoff=0.5",
            "bootstrap.layers=3",
            "corpus=/c=d",
            "dedup.on=query",
        ],
    )
    assert (recipe.dedup.threshold, recipe.dedup.recall, recipe.dedup.on) == (0.8, 0.95, "query")
    assert recipe.sources[0].files == ["2024/web/*.json"]
    assert recipe.score.cutoff == 0.5
    assert recipe.bootstrap is not None
    assert recipe.bootstrap.layers == 3
    assert recipe.corpus == "/c=d"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dedup.recall", "expected key.key=value"),
        ("=3", "expected key.key=value"),
        ("dedup.recall=[", "not a YAML value"),
        ("dedup.recal=0.9", "did you mean `recall`?"),
        ("sources.0.read=csv", "sources is a list and has no keys"),
        ("corpus.x=1", "corpus is a str and has no keys"),
        ("convert.seed=none", "convert.seed: Input should be a valid integer"),
    ],
)
def test_a_bad_override(write: Write, override: str, said: str) -> None:
    assert said in message(write("corpus: c\nvariables: {root: /x}\n" + SOURCE), override)


def test_what_an_override_gives_is_said_of_it(write: Write) -> None:
    """And of the last one for a key; what the file gives is said of its line."""
    path = write("dedup:\n  threshold: 0.7\n  recall: 7\n")
    found = message(path, "dedup.threshold=3", "score.cutof=1", "dedup.threshold=5").splitlines()
    assert [line.partition(": ")[0] for line in found] == [
        "--set dedup.threshold=5",
        f"{path}:3",
        "--set score.cutof=1",
    ]
    assert message(path, "score={max_length: -1}", "dedup.recall=0.9").startswith("--set score={max_length: -1}: ")


@pytest.mark.parametrize("name", ["demo.yaml", "zh-real.yaml"])
def test_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load(RECIPES / name, ["variables.root=/数据", "dedup.on=query", "finetune.seed=3"])
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe), "utf-8")
    assert load(path) == recipe
    assert load(path).dedup.on == "query"


@pytest.mark.parametrize(
    ("task", "section", "stage"),
    [
        ("pretrain", "pretrain: {%s}", "pretrain"),
        ("retrieval", "pretrain: {on: dedup, %s}", "pretrain"),
        ("retrieval", "bootstrap: {training: {%s}}", "bootstrap.training"),
    ],
)
def test_pretraining_needs_the_negatives_of_other_queries(write: Write, task: str, section: str, stage: str) -> None:
    source = f"{SOURCE}    task: {task}\n    query_only_negatives: true\nvariables: {{root: r}}\n"
    said = f"leave it out: `{stage}.mixing.sources: {{web: 0}}`"
    assert said in message(write(source + section % ""))
    assert load(write(source + section % "mixing: {sources: {web: 0}}"))
    assert load(write(source.replace(task, "classification") + section % ""))
