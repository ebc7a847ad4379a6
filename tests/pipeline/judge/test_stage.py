"""conan judge with each kind of judge; what is judged once is never judged again, whatever happens in between."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from command_line import Conan
from conan_embedding.pipeline.corpus import judgements as store
from conan_embedding.pipeline.corpus.catalog import query
from conan_embedding.pipeline.corpus.judgements import list_parts
from conan_embedding.pipeline.encoder.model_folder import ModelError
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.pipeline.engine.stage import StageError
from conan_embedding.pipeline.judge import cross_encoder
from conan_embedding.pipeline.judge import scorers as module
from conan_embedding.pipeline.judge.stage import judge
from conan_embedding.schemas.errors import ConanError
from conan_embedding.schemas.judge_settings import JudgeSettings
from conan_embedding.schemas.outcomes import Summary
from cross_encoders import write_cross_encoder
from judged_pools import POOLS, asked_pairs, read_judgements, write_judged_pools
from model_folders import add_modules, write_plain
from sentence_transformers import CrossEncoder, SentenceTransformer


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cross_encoder(tmp_path_factory.mktemp("models") / "reranker")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_judged_pools(folder)
    return folder


def run(corpus: Path, **settings: object) -> Summary:
    given = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    return judge(corpus, JudgeSettings.model_validate(given), Engine(workers=1))


def test_a_cross_encoder_judges_positives_and_first_candidates(corpus: Path, reranker: Path) -> None:
    summary = run(corpus, model=reranker, candidates=2)
    found = read_judgements(corpus, summary.notes["judge"])
    pairs = asked_pairs(2)
    assert sorted(found) == pairs and len(pairs) == 11
    expected = CrossEncoder(str(reranker), device="cpu").predict(pairs)
    np.testing.assert_allclose([found[pair] for pair in pairs], expected, atol=1e-5)
    assert (summary.rows_in, summary.rows_out) == (11, 11)
    assert summary.notes["scored"] == 11 and summary.notes["judge"].startswith("cross-encoder-")
    columns = query(corpus, "SELECT * FROM pools.judgements").column_names
    assert columns == ["query_id", "passage_id", "judge", "score", "verdict", "created_at"]


def test_only_further_pairs_are_asked(corpus: Path, reranker: Path) -> None:
    run(corpus, model=reranker, candidates=1)
    before = read_judgements(corpus)
    summary = run(corpus, model=reranker, candidates=3)
    assert summary.notes["scored"] == len(asked_pairs(3)) - len(asked_pairs(1))
    after = read_judgements(corpus)
    assert sorted(after) == asked_pairs(3) and before.items() <= after.items()
    assert run(corpus, model=reranker, candidates=3).notes["scored"] == 0


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make every model fail if it is asked."""

    def fail(*_: object) -> None:
        raise AssertionError("a pair is judged again")

    return lambda: monkeypatch.setattr(cross_encoder, "score_pairs", fail)


def test_judgements_outlive_new_pools_and_ids(corpus: Path, reranker: Path, silent: Callable[[], None]) -> None:
    run(corpus, model=reranker)
    before = read_judgements(corpus)
    backwards = {query: POOLS[query] for query in reversed(POOLS)}
    write_judged_pools(corpus, {"新": (["很"], [])} | backwards, first=40)  # as mining again does
    assert read_judgements(corpus) == before
    new = run(corpus, model=reranker)
    assert new.notes["scored"] == 1 and read_judgements(corpus).items() > before.items()
    silent()
    write_judged_pools(corpus)
    assert run(corpus, model=reranker, batch_tokens=99).notes["scored"] == 0
    assert read_judgements(corpus) == before


def test_a_second_corpus_takes_the_files_over(
    corpus: Path, reranker: Path, tmp_path: Path, silent: Callable[[], None]
) -> None:
    run(corpus, model=reranker)
    other = tmp_path / "other"
    (other / "judgements").mkdir(parents=True)
    write_judged_pools(other, dict(reversed(POOLS.items())), first=7)
    for _ in range(2):
        for part in list_parts(corpus):
            shutil.copy(part, other / "judgements")
    silent()
    copied = shutil.copytree(reranker, tmp_path / "renamed")
    assert run(other, model=copied).notes["scored"] == 0
    assert read_judgements(other) == read_judgements(corpus)


def test_another_model_is_another_judge(corpus: Path, reranker: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reranker, tmp_path / "model"))
    first = run(corpus, model=folder).notes["judge"]
    write_cross_encoder(folder, seed=1)  # in its place
    second = run(corpus, model=folder).notes["judge"]
    third = run(corpus, model=reranker, max_length=8).notes["judge"]
    assert len({first, second, third}) == 3
    each = [read_judgements(corpus, name) for name in (first, second, third)]
    assert len({tuple(sorted(found)) for found in each}) == 1
    assert each[0] != each[1] != each[2]


@pytest.mark.parametrize("when, parts", [("before", 0), ("within", 1), ("after", 2)])
def test_a_killed_run_loses_at_most_a_part(
    when: str, parts: int, corpus: Path, reranker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 4)
    replacing, done = store.replacing, []

    def killed(path: Path):  # type: ignore[no-untyped-def]
        if len(done) == parts and when == "before":
            raise KeyboardInterrupt
        if len(done) == parts and when == "within":
            path.with_name(f".{path.name}.1.tmp").write_bytes(b"PAR1 and no more")  # as SIGKILL leaves it
            raise KeyboardInterrupt
        done.append(path)
        return replacing(path)

    def stopped(corpus: Path) -> None:
        if len(done) == parts + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "replacing", killed)
        if when == "after":
            write = store.write_part
            patch.setattr(module, "write_part", lambda *given: (write(*given), stopped(corpus)))
        with pytest.raises(KeyboardInterrupt):
            run(corpus, model=reranker, candidates=3)
    kept = 4 * (parts + (when == "after"))
    pairs = len(asked_pairs(3))
    assert run(corpus, model=reranker, candidates=3).notes["scored"] == max(0, pairs - kept)
    assert sorted(read_judgements(corpus)) == asked_pairs(3)
    assert not list((corpus / "judgements").glob(".*.tmp"))


def test_a_model_that_fails_keeps_what_it_has_judged(
    corpus: Path, reranker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 4)
    scored = cross_encoder.score_pairs

    def once(*given: object) -> np.ndarray:
        monkeypatch.setattr(cross_encoder, "score_pairs", broken)
        return scored(*given)

    def broken(*_: object) -> np.ndarray:
        raise ModelError("out of memory")

    monkeypatch.setattr(cross_encoder, "score_pairs", once)
    with pytest.raises(StageError, match=r"judge, part 1 of 4: ModelError: out of memory"):
        run(corpus, model=reranker)
    monkeypatch.setattr(cross_encoder, "score_pairs", scored)
    assert run(corpus, model=reranker).notes["scored"] == len(asked_pairs(3)) - 4


def test_a_bi_encoder_judges_by_its_cosines(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 4)
    folder = add_modules(write_plain(tmp_path / "bi"), {"pooling_mode_mean_tokens": True})
    prompts = {"query": "问：", "passage": "答："}
    summary = run(corpus, model=folder, candidates=2, prompts=prompts)
    found, pairs = read_judgements(corpus), asked_pairs(2)
    assert summary.notes["judge"].startswith("bi-encoder-") and sorted(found) == pairs
    model = SentenceTransformer(str(folder), device="cpu")
    queries, passages = (
        model.encode([pair[side] for pair in pairs], prompt=prompt, normalize_embeddings=True)
        for side, prompt in enumerate(prompts.values())
    )
    np.testing.assert_allclose([found[pair] for pair in pairs], (queries * passages).sum(axis=1), atol=1e-5)
    assert run(corpus, model=folder, candidates=2, prompts=prompts).notes["scored"] == 0
    assert run(corpus, model=folder, candidates=2).notes["scored"] == len(pairs)


def write_scores(file: Path, rows: list[dict[str, object]]) -> Path:
    if file.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(file)
    else:
        file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return file


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_file_of_scores_judges(suffix: str, corpus: Path, tmp_path: Path) -> None:
    rows = [{"query": query, "passage": text, "score": len(text) / 8, "rank": 1} for query, text in asked_pairs(2)]
    file = write_scores(
        tmp_path / f"scores.{suffix}", [*rows[1:], {"query": "他", "passage": "别", "score": 1.0}, rows[1]]
    )
    summary = run(corpus, scores=file, candidates=2)
    assert read_judgements(corpus) == {(row["query"], row["passage"]): row["score"] for row in rows[1:]}
    assert (summary.rows_in, summary.rows_out, summary.notes["without_score"]) == (11, 11, 1)
    run(corpus, scores=file, candidates=2)
    assert len(list_parts(corpus)) == 1
    write_judged_pools(corpus, {"他": (["别"], [])})
    assert read_judgements(corpus) == {("他", "别"): 1.0}  # kept although there was no such query
    (part,) = list_parts(corpus)
    pl.read_parquet(part).head(4).write_parquet(part)  # as `conan sample` takes a part of them over
    write_judged_pools(corpus)
    assert run(corpus, scores=file, candidates=2).notes["without_score"] == 1


def test_deeper_candidates_with_scores_are_decided_on_and_counted(corpus: Path, tmp_path: Path) -> None:
    rows = [{"query": query, "passage": text, "score": 0.9} for query, text in asked_pairs(3)]
    file = write_scores(tmp_path / "scores.parquet", rows)
    summary = run(corpus, scores=file, candidates=1, set_aside={"margin": 0})
    assert (summary.rows_in, summary.rows_out, summary.rejected) == (14, 5, {"ambiguous": 9})


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("scores.csv", "query,passage,score", "expected a file that ends in .parquet or .jsonl"),
        ("scores.jsonl", '{"query": "a", "score": 1}', "1 rows have no query, no passage or no finite score"),
        ("scores.jsonl", '{"query": "a", "passage": "b", "score": "x"}', "expected the columns query, passage"),
        (
            "scores.jsonl",
            '{"query": "a", "passage": "b", "score": 1}\n{"query": "a", "passage": "b", "score": 2}',
            "a passage has two scores for the query 'a'",
        ),
        ("scores.jsonl", '{"query": "a", "passage": "b", "score": 1}', "has no pair of the pools"),
        ("gone.jsonl", None, "there is no file"),
        ("scores[12].jsonl", "", r"must not contain \[; move or rename"),
    ],
)
def test_other_files_are_refused(name: str, content: str | None, message: str, corpus: Path, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(ConanError, match=message):
        run(corpus, scores=tmp_path / name)


def test_numbers_in_place_of_texts_are_refused(corpus: Path, tmp_path: Path) -> None:
    file = write_scores(tmp_path / "scores.parquet", [{"query": 1, "passage": "a", "score": 0.5}])
    with pytest.raises(ConanError, match="expected the columns query, passage"):
        run(corpus, scores=file)


def test_from_the_command_line(conan: Conan, corpus: Path, reranker: Path, tmp_path: Path) -> None:
    (corpus / "recipe.yaml").write_text("{}", "utf-8")
    code, _, errors = conan("judge", corpus)
    assert code == 2 and "the recipe has no `judge:`" in errors
    code, output, _ = conan("judge", corpus, "--model", reranker, "--set", "judge.candidates=1", "--json")
    summary = json.loads(output)
    assert code == 0 and summary["stage"] == "judge" and summary["rows_out"] == len(asked_pairs(1))
    code, _, errors = conan("judge", tmp_path, "--recipe", corpus / "recipe.yaml", "--model", reranker)
    assert code == 1 and "conan mine" in errors
