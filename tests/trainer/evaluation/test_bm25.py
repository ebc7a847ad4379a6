"""BM25 against its formula in plain loops; and its tokens."""

import math

import numpy as np
import pytest
from conan_embedding.trainer.evaluation.bm25 import bm25, tokens


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("红楼梦", ["红楼", "楼梦"]),
        ("红", ["红"]),
        ("《红楼梦》作者，曹", ["红楼", "楼梦", "作者", "曹"]),
        ("iPhone手机2019", ["iphone", "手机", "2019"]),
        ("Ünïcode_und Кошка", ["ünïcode", "und", "кошка"]),
        ("𠀀𠀁㐀", ["𠀀𠀁", "𠀁㐀"]),
        ("……！？ \n", []),
    ],
)
def test_tokens_are_pairs_of_han_characters_and_words(text: str, wanted: list[str]) -> None:
    assert list(tokens(text)) == wanted


def test_scores_are_the_formulas() -> None:
    passages = ["红楼梦的作者是曹雪芹", "西游记的作者是吴承恩 吴承恩", "！！", "iphone的作者", "作者作者作者"]
    queries = ["红楼梦作者", "谁写了iPhone", "吴承恩", "没有的词", "？"]
    scores = bm25(passages, queries)(0, 5)
    assert scores.shape == (5, 5)

    documents = [list(tokens(passage)) or [""] for passage in passages]
    mean = sum(map(len, documents)) / len(documents)
    for query, row in zip(queries, scores, strict=True):
        for document, found in zip(documents, row, strict=True):
            wanted = 0.0
            for word in tokens(query):
                holding = sum(word in other for other in documents)
                rarity = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
                times = document.count(word)
                wanted += rarity * times / (times + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean)) if times else 0
            assert found == pytest.approx(wanted, abs=1e-6), (query, document)


def test_queries_are_scored_from_start_to_stop() -> None:
    score = bm25(["甲乙", "丙丁"], ["甲乙", "丙丁", "甲乙丙丁"])
    assert np.array_equal(score(1, 3), score(0, 3)[1:])


def test_texts_without_a_word_are_no_error() -> None:
    assert bm25(["！", "？"], ["。", "甲"])(0, 2).tolist() == [[0, 0], [0, 0]]
