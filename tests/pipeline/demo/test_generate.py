"""The sample, read back with nothing but the standard library."""

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
import yaml
import zstandard
from conan_embedding.pipeline.demo import world
from conan_embedding.pipeline.demo.generate import BOILERPLATE, Pair, Planted, write_sample

RECIPE = Path(__file__).parents[3] / "recipes" / "demo.yaml"
Sample = tuple[Path, Planted]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder = tmp_path_factory.mktemp("sample")
    return folder, write_sample(folder)


def lines(data: bytes) -> list[str]:
    # Not splitlines(): mojibake contains U+0085, which ends a line for Python but not in JSON lines.
    return data.decode().removesuffix("\n").split("\n")


def plain(html: str) -> str:
    return re.sub(r"<[^>]*>|&nbsp;|\r\n|\n", "", html)


def table(path: Path, encoding: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_bytes().decode(encoding), newline="")))[1:]


def read_pairs(folder: Path) -> dict[str, list[Pair]]:
    """Return the pairs of the sources that have damage and duplicates, by source."""
    archive = zstandard.decompress((folder / "news/archive.jsonl.zst").read_bytes())
    broadcasts = {
        "news": [json.loads(path.read_bytes()) for path in sorted((folder / "news").glob("*.json"))],
        "news_archive": [json.loads(line) for line in lines(archive)],
    }
    pairs = {
        source: [
            (video["video_title"].removeprefix("[视频]"), plain(video["video_detail"]["content"]))
            for broadcast in found
            for video in broadcast["videoList"]
        ]
        for source, found in broadcasts.items()
    }
    posts = [json.loads(line) for line in lines(gzip.decompress((folder / "posts.jsonl.gz").read_bytes()))]
    titles = [json.loads(line) for line in lines((folder / "titles.jsonl").read_bytes())]
    instructions = json.loads((folder / "instructions.json").read_bytes())
    generated = [json.loads(line)["messages"] for line in lines((folder / "generated.jsonl").read_bytes())]
    articles = [path.read_text("utf-8") for path in sorted((folder / "wiki").glob("*.md"))]
    return pairs | {
        "community_qa": [(title, answer.replace("\n", "")) for title, answer in table(folder / "qa.csv", "gb18030")],
        "web_posts": [(post["title"], plain(post["html"])) for post in posts],
        "social_posts": [(title["topic"].strip("#"), title["post"].replace("\n", "")) for title in titles],
        "papers": [tuple(line.split("\t")) for line in lines((folder / "papers.tsv").read_bytes())],
        "instructions": [(entry["instruction"], entry["output"]) for entry in instructions],
        "generated": [tuple(message["content"] for message in messages) for messages in generated],
        "wiki": [tuple(re.split(r"\n+", article, maxsplit=1)) for article in articles if article],
    }


def all_pairs(folder: Path) -> list[Pair]:
    return [pair for pairs in read_pairs(folder).values() for pair in pairs]


def whole_conversations(folder: Path) -> list[list[str]]:
    found = []
    for line in (folder / "chats.jsonl").read_bytes().split(b"\n")[:-1]:
        try:
            found.append([turn["value"] for turn in json.loads(line)["conversations"]])
        except ValueError:
            continue
    return found


def evaluation(folder: Path) -> tuple[list[str], list[str]]:
    """Return the questions, and the passages: first those that answer the questions, in order, then the others."""
    questions, others = (
        [json.loads(line) for line in lines((folder / "evaluation" / name).read_bytes())]
        for name in ("questions.jsonl", "passages.jsonl")
    )
    return [one["query"] for one in questions], [one["pos"][0] for one in questions + others]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes(sample: Sample, tmp_path: Path) -> None:
    folder, planted = sample
    assert write_sample(tmp_path / "again") == planted
    assert bytes_of(tmp_path / "again") == bytes_of(folder)
    write_sample(tmp_path / "other", seed=1)
    assert bytes_of(tmp_path / "other") != bytes_of(folder)


@pytest.mark.parametrize("rows", [300, 4000])
def test_smallest_and_largest(rows: int, tmp_path: Path) -> None:
    planted = write_sample(tmp_path, rows)
    records = sum(count for kind, count in planted.items() if kind.startswith("records/"))
    assert rows <= records <= 1.3 * rows
    assert min(planted.values()) > 0


@pytest.mark.parametrize("rows", [0, 299, 4001])
def test_too_few_or_too_many_rows(rows: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="between 300 and 4000"):
        write_sample(tmp_path, rows)


def test_recipe_reads_every_file_once(sample: Sample) -> None:
    folder, _ = sample
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
    assert {source["category"] for source in recipe["sources"]} == {
        "news",
        "knowledge_base",
        "social_media",
        "web_page",
        "academic_paper",
        "community_qa",
        "instruction",
        "llm_generated",
    }
    tasks = {source.get("task", "pretrain") for source in recipe["sources"]}
    assert tasks == {"pretrain", "retrieval", "sts", "classification"}
    globs = [recipe["judge"]["scores"]]
    for entry in recipe["sources"] + recipe["evaluation"]:
        for key in ("files", "passages"):
            globs += [entry[key]] if isinstance(entry.get(key), str) else entry.get(key, [])
    read = Counter(path for glob in globs for path in folder.glob(glob.removeprefix("${root}/")))
    assert read == Counter(path for path in folder.rglob("*") if path.is_file())


def test_recipe_names_are_the_counted_sources(sample: Sample) -> None:
    _, planted = sample
    sources = yaml.safe_load(RECIPE.read_text("utf-8"))["sources"]
    names = {source["name"] for source in sources if "files" in source}
    assert {kind.removeprefix("records/") for kind in planted if kind.startswith("records/")} == names


def test_records_are_counted(sample: Sample) -> None:
    folder, planted = sample
    found = {source: len(pairs) for source, pairs in read_pairs(folder).items()} | {
        "chats": len(whole_conversations(folder)),
        "triples": len(lines((folder / "triples.jsonl").read_bytes())),
        "reviews": len(lines((folder / "reviews.tsv").read_bytes())) - 1,
        "sts": len(table(folder / "sts.csv", "utf-8-sig")),
    }
    assert {f"records/{source}": count for source, count in found.items()} == {
        kind: count for kind, count in planted.items() if kind.startswith("records/")
    }


def test_the_teacher_knows_answers_that_no_label_names(sample: Sample) -> None:
    folder, planted = sample
    triples = [json.loads(line) for line in lines((folder / "triples.jsonl").read_bytes())]
    labelled = {triple["query"]: triple for triple in triples}
    posts = {json.loads(line)["post"] for line in lines((folder / "titles.jsonl").read_bytes())}
    found = [json.loads(line) for line in lines((folder / "scores.jsonl").read_bytes())]
    answers = [(one["query"], one["passage"]) for one in found if one["passage"] in posts]
    assert planted["unlabelled_answers"] == len(answers) == len({query for query, _ in answers}) > 0
    for query, passage in answers:
        assert passage not in labelled[query]["pos"] + labelled[query]["neg"]
        assert set(combinations(query)) <= set(combinations(passage))
    for one in found:
        assert (one["score"] > 0.5) == (one["passage"] not in labelled[one["query"]]["neg"])


def test_broken_files(sample: Sample) -> None:
    folder, planted = sample
    with pytest.raises(EOFError):
        gzip.decompress((folder / "news/2024-13.json.gz").read_bytes())
    assert planted["truncated_files"] == len(list((folder / "news").glob("*.json.gz"))) == 1
    empty = [path for path in (folder / "wiki").glob("*.md") if path.stat().st_size == 0]
    assert planted["empty_files"] == len(empty) == 1


def test_broken_lines(sample: Sample) -> None:
    folder, planted = sample
    chats = (folder / "chats.jsonl").read_bytes().split(b"\n")[:-1]
    whole, zeroed = whole_conversations(folder), [line for line in chats if b"\0" in line]
    assert planted["nul_lines"] == len(zeroed) == 1
    assert planted["broken_lines"] == len(chats) - len(whole) - len(zeroed) == 1
    assert len(chats) // 3 < chats.index(zeroed[0]) < 2 * len(chats) // 3
    assert all(len(turns) == 4 for turns in whole)


def test_encodings(sample: Sample) -> None:
    folder, _ = sample
    with pytest.raises(UnicodeDecodeError):
        (folder / "qa.csv").read_text("utf-8")
    answers = [answer for _, answer in table(folder / "qa.csv", "gb18030")]
    assert sum("\n" in answer for answer in answers) > len(answers) / 2
    assert (folder / "sts.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert not (folder / "evaluation/sts.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert b"\\r\\n" in (folder / "news/2024-01.json").read_bytes()


def test_stray_quotes_lose_lines_to_a_quoting_reader(sample: Sample) -> None:
    folder, planted = sample
    header, *reviews = lines((folder / "reviews.tsv").read_bytes())
    assert header == "label\ttext_a"
    assert len({review.split("\t")[0] for review in reviews}) == 5
    assert planted["stray_quotes"] == sum(review.count('"') % 2 for review in reviews) > 0
    assert len(list(csv.reader(reviews, delimiter="\t"))) < len(reviews)


def is_mojibake(text: str) -> bool:
    return bool(re.search("[\x80-\x9f]|锛|銆", text))


DETECTORS: dict[str, Callable[[str, str], bool]] = {
    "mojibake": lambda _, text: is_mojibake(text),
    "adverts": lambda _, text: bool(re.search("加微信|包邮|扫码", text)),
    "mobile_numbers": lambda _, text: bool(re.search(r"联系电话：1[3-9]\d{9}。", text)),
    "emails": lambda _, text: "@example.com" in text,
    "id_cards": lambda _, text: bool(re.search(r"\d{17}[\dX]", text)),
    "too_short": lambda _, text: len(text) == 1,
    "too_long": lambda _, text: len(text) > 5000,
    "too_latin": lambda _, text: len(re.findall("[a-z]", text)) > len(text) / 2,
    "symbols": lambda _, text: len(re.findall("[★☆◆◇■□]", text)) > len(text) / 5,
    "repeated_ngrams": lambda _, text: len(text) > 48 and text[:24] == text[24:48],
    "empty_positives": lambda _, text: text == "",
    "title_leaks": lambda query, text: text.startswith(query) and text != query,
    "refusals": lambda _, text: "AI语言模型" in text or "人工智能助手" in text,
    "template_slots": lambda query, text: "{{name}}" in query and "{{name}}" in text,
    "numeric_answers": lambda _, text: text.isdecimal(),
    "boilerplate": lambda _, text: text.endswith(BOILERPLATE),
}


@pytest.mark.parametrize("kind", DETECTORS)
def test_damage_is_there_as_often_as_counted(kind: str, sample: Sample) -> None:
    folder, planted = sample
    assert planted[kind] == sum(DETECTORS[kind](*pair) for pair in all_pairs(folder)) > 0


def test_echoes(sample: Sample) -> None:
    folder, planted = sample
    echoes = sum(query == text for query, text in all_pairs(folder))
    assert planted["query_equals_positive"] + planted["prompt_echoes"] == echoes > 0


def test_id_cards_have_valid_check_digits(sample: Sample) -> None:
    folder, _ = sample
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2, 1)  # GB 11643-1999, appendix A
    numbers = [number for _, text in all_pairs(folder) for number in re.findall(r"\d{17}[\dX]", text)]
    for number in numbers:
        values = [10 if digit == "X" else int(digit) for digit in number]
        assert sum(np.multiply(values, weights)) % 11 == 1
    assert len(set(numbers)) == len(numbers) > 0


def test_exact_duplicates(sample: Sample) -> None:
    folder, planted = sample
    copies = sum(count - 1 for count in Counter(all_pairs(folder)).values())
    assert planted["exact_duplicates"] == copies > 0


def test_near_duplicates_are_the_planted_ones_alone(sample: Sample) -> None:
    """Compute the Jaccard similarity of character 5-grams for all pairs of texts."""
    folder, planted = sample
    texts = sorted({f"{query}\n{text}" for query, text in all_pairs(folder)})
    grams = [{text[i : i + 5] for i in range(len(text) - 4)} for text in texts]
    columns = {gram: i for i, gram in enumerate(sorted(set().union(*grams)))}
    indices = [columns[gram] for one in grams for gram in sorted(one)]
    sizes = np.array([len(one) for one in grams])
    matrix = scipy.sparse.csr_array(
        (np.ones(len(indices), np.int32), indices, np.r_[0, sizes.cumsum()]), shape=(len(texts), len(columns))
    )
    shared = scipy.sparse.triu(matrix @ matrix.T, k=1).tocoo()
    jaccard = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    assert planted["near_duplicates"] == int((jaccard >= 0.7).sum()) > 0
    assert not ((jaccard > 0.65) & (jaccard < 0.75)).any()


def combinations(text: str) -> Iterator[tuple[str, str]]:
    """Yield the combinations of entity and place that share a sentence, in the wording of queries."""
    for sentence in re.split("[。！？\n]", text):
        entities = [word.asked for word in world.ENTITIES if any(form in sentence for form in word)]
        places = [word.asked for word in world.PLACES if any(form in sentence for form in word)]
        yield from product(entities, places)


def test_evaluation_combinations_are_in_no_training_text(sample: Sample) -> None:
    folder, _ = sample
    questions, passages = evaluation(folder)
    scored = [sentence for row in table(folder / "evaluation/sts.csv", "utf-8") for sentence in row[:2]]
    tested = {pair for text in questions + passages + scored for pair in combinations(text)}
    training = [text for pair in all_pairs(folder) for text in pair]
    training += [turn for turns in whole_conversations(folder) for turn in turns]
    training += [sentence for row in table(folder / "sts.csv", "utf-8-sig") for sentence in row[:2]]
    for line in lines((folder / "triples.jsonl").read_bytes()):
        triple = json.loads(line)
        training += [triple["query"], *triple["pos"], *triple["neg"]]
    trained = {pair for text in training for pair in combinations(text)}
    assert len(tested) > 200
    assert not tested & trained
    # Every single word occurs in training.
    for position in (0, 1):
        assert {pair[position] for pair in tested} <= {pair[position] for pair in trained}


def test_evaluation_has_one_answer_a_question(sample: Sample) -> None:
    questions, passages = evaluation(sample[0])
    assert (len(set(questions)), len(set(passages))) == (120, 360)
    for question, passage in zip(questions, passages, strict=False):
        assert set(combinations(question)) == set(combinations(passage.split("。")[0]))
    assert all(8 <= len(question) <= 30 for question in questions)
    assert all(60 <= len(passage) <= 250 for passage in passages)


def test_clean_texts_have_the_lengths_of_queries_and_passages(sample: Sample) -> None:
    for query, text in read_pairs(sample[0])["papers"]:
        assert 8 <= len(query) <= 30
        assert 60 <= len(text) <= 250


def shared_slots(first: str, second: str) -> int:
    """Count how many of entity, change, cause, place and time two sentences share, by their words."""

    def slots(sentence: str) -> list[world.Word]:
        def stands(words: list[world.Word]) -> world.Word:
            found = [word for word in words if any(form in sentence for form in word)]
            return max(found, key=lambda word: max(len(form) for form in word if form in sentence))

        topic = next(
            topic for topic in world.TOPICS if any(form in sentence for word in topic.entities for form in word)
        )
        slots = (topic.entities, topic.changes, topic.causes, world.PLACES, world.TIMES)
        return [stands(words) for words in slots]

    return sum(one == other for one, other in zip(slots(first), slots(second), strict=True))


@pytest.mark.parametrize(("path", "encoding"), [("sts.csv", "utf-8-sig"), ("evaluation/sts.csv", "utf-8")])
def test_sts_score_is_the_number_of_shared_slots(path: str, encoding: str, sample: Sample) -> None:
    rows = table(sample[0] / path, encoding)
    assert len(rows) >= 100
    assert {row[2] for row in rows} == set("012345")
    for first, second, score in rows:
        assert shared_slots(first, second) == int(score)


def test_a_small_model_learns_what_the_evaluation_asks(sample: Sample) -> None:
    """Train a bag of character bigrams with in-batch negatives: nDCG@10 on unseen combinations rises."""
    folder, _ = sample
    pairs = [(query, text) for query, text in all_pairs(folder) if 60 <= len(text) <= 250]
    questions, passages = evaluation(folder)
    grams = {text[i : i + 2] for pair in pairs for text in pair for i in range(len(text) - 1)}
    vocabulary = {gram: i for i, gram in enumerate(sorted(grams))}
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.Parameter(torch.randn(len(vocabulary), 64, generator=generator) * 0.1)

    def encode(texts: list[str]) -> torch.Tensor:
        bags = [[vocabulary[t[i : i + 2]] for i in range(len(t) - 1) if t[i : i + 2] in vocabulary] for t in texts]
        offsets = torch.tensor([0, *np.cumsum([len(bag) for bag in bags])[:-1]])
        flat = torch.tensor([gram for bag in bags for gram in bag])
        return torch.nn.functional.normalize(
            torch.nn.functional.embedding_bag(flat, vectors, offsets, mode="mean"), dim=1
        )

    def ndcg() -> float:
        with torch.no_grad():
            scores = encode(questions) @ encode(passages).T
        ranks = (scores > scores.diagonal()[:, None]).sum(1)
        return float(torch.where(ranks < 10, 1 / torch.log2(ranks + 2), 0).mean())

    before = ndcg()
    optimizer = torch.optim.Adam([vectors], 0.02)
    for _ in range(60):
        batch = [pairs[i] for i in torch.randperm(len(pairs), generator=generator)[:128].tolist()]
        scores = encode([query for query, _ in batch]) @ encode([text for _, text in batch]).T
        loss = torch.nn.functional.cross_entropy(scores / 0.05, torch.arange(len(batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = ndcg()
    assert after > before + 0.25, f"nDCG@10 {before:.3f} before, {after:.3f} after"
