"""How records are understood: by the names of columns, by their values, and by the shapes that readers know."""

from typing import Any

import pytest
from conan_embedding.pipeline.recipe_writer.samples import Sample
from conan_embedding.pipeline.recipe_writer.shapes import NoShapeError, Shape, decide

ROWS = 30
ASKED = [f"第{number}号商品怎么退货？" for number in range(ROWS)]
ANSWERED = [
    f"第{number}号商品请在签收以后七天内联系客服，说明订单的号码和退货的原因，商品完好就可以办理。"
    for number in range(ROWS)
]
TITLES = [f"第{number}号商品" for number in range(ROWS)]
LIKE = [f"有人在弹第{number}把吉他" for number in range(ROWS)]
CLASSES = ["好评", "差评"] * (ROWS // 2)
BITS = [0, 1] * (ROWS // 2)
IDS = [f"a{number:04}" for number in range(ROWS)]
LINKS = [f"https://a.cn/{number}" for number in range(ROWS)]
DATES = ["2024-01-02 10:00:00"] * (ROWS - 1) + ["2024-01-03 10:00:00"]
ITEMS = [{"input": "", "output": answer} for answer in ANSWERED]


def look(read: str = "jsonl", **columns: list[Any]) -> Shape:
    names = [name.replace("__", " ") for name in columns]
    return decide(Sample(read, [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]))


def sql(shape: Shape) -> tuple[str, str, str | None, str | None]:
    return shape.task, shape.format, shape.query, shape.positive


QA = ("pretrain", "question_answer")
TITLED = ("pretrain", "title_content")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"id": IDS, "question": ASKED, "answer": ANSWERED, "url": LINKS}, (*QA, "question", "answer")),
        ({"q": ASKED, "a": ANSWERED, "created_at": DATES}, (*QA, "q", "a")),
        ({"编号": IDS, "问": ASKED, "答": ANSWERED}, (*QA, "问", "答")),
        ({"用户问题": ASKED, "标准答案": ANSWERED}, (*QA, "用户问题", "标准答案")),
        ({"riddle": TITLES, "answer": ANSWERED}, (*QA, "riddle", "answer")),
        ({"question": ASKED, "order": ANSWERED}, (*QA, "question", '"order"')),
        ({"title": TITLES, "ask": ASKED, "answer": ANSWERED}, (*QA, "concat_ws(' ', title, ask)", "answer")),
        ({"title": TITLES, "content": ANSWERED, "author": TITLES}, (*TITLED, "title", "content")),
        ({"videoTitle": TITLES, "正文": ANSWERED}, (*TITLED, "videoTitle", "正文")),
        ({"text": ANSWERED, "label": CLASSES}, ("classification", "input_output", "text", "label")),
        ({"review": ANSWERED, "stars": BITS}, ("classification", "input_output", "review", "stars")),
        (
            {"label": BITS, "label_name": CLASSES, "text": LIKE},
            ("classification", "input_output", "text", "label_name"),
        ),
        ({"input": ASKED, "output": ANSWERED}, ("pretrain", "prompt_response", "input", "output")),
        ({"query": ASKED, "positive": ANSWERED}, ("retrieval", "question_answer", "query", "positive")),
        (
            {"question": ASKED, "context": ANSWERED, "answer": TITLES},
            ("retrieval", "question_answer", "question", "context"),
        ),
        # by values
        ({"x": ASKED, "y": ANSWERED}, (*QA, "x", "y")),
        ({"y": ANSWERED, "x": ASKED}, (*QA, "x", "y")),
        ({"x": ANSWERED, "y": TITLES, "z": IDS}, (*TITLED, "y", "x")),
        ({"x": ANSWERED, "y": CLASSES}, ("classification", "input_output", "x", "y")),
        ({"text": ANSWERED, "url": LINKS}, ("passage", "title_content", None, "text")),
        ({"x": ANSWERED}, ("passage", "title_content", None, "x")),
        ({"x": LIKE, "y": LIKE[::-1]}, ("pretrain", "input_output", "x", "y")),
    ],
)
def test_columns(columns: dict[str, list[Any]], expected: tuple[str, ...]) -> None:
    assert sql(look("hf", **columns)) == expected


def test_two_sentences() -> None:
    score = [number % 26 / 5 for number in range(ROWS)]
    for names in (("sentence1", "sentence2"), ("text_a", "text_b"), ("句子1", "句子2"), ("句子一", "句子二")):
        shape = look("csv", **{names[0]: LIKE, names[1]: ASKED, "score": [str(one) for one in score]})
        assert (*sql(shape), shape.label, shape.label_range) == (
            "sts", "input_output", *names, "score::FLOAT", (0, 5),
        )  # fmt: skip
    unnamed = look("tsv", column1=LIKE, column2=ASKED, column3=[str(one) for one in BITS])
    assert (*sql(unnamed), unnamed.label) == ("sts", "input_output", "column1", "column2", "column3::FLOAT")
    assert look(q1=LIKE, q2=ASKED, label=BITS).label == "label"
    assert sql(look(sentence1=LIKE, sentence2=ASKED)) == ("pretrain", "input_output", "sentence1", "sentence2")


def test_inference() -> None:
    numbers = look(premise=LIKE, hypothesis=ASKED, label=[0, 1, 2] * 10)
    assert numbers.label == "CASE label::INT WHEN 0 THEN 1 WHEN 1 THEN 0.5 WHEN 2 THEN 0 END"
    words = look(premise=LIKE, hypothesis=ASKED, gold_label=["entailment", "neutral", "contradiction"] * 10)
    assert words.label == (
        "CASE lower(gold_label) WHEN 'entailment' THEN 1 WHEN 'neutral' THEN 0.5 WHEN 'contradiction' THEN 0 END"
    )
    assert (words.task, words.label_range) == ("sts", None)


def test_what_comes_with_pairs() -> None:
    judged = look("csv", query=ASKED, passage=ANSWERED, label=[str(bit) for bit in BITS])
    assert (*sql(judged), judged.where) == ("retrieval", "question_answer", "query", "passage", "label::INT = 1")
    hard = look("csv", query=ASKED, positive=ANSWERED, negative_1=LIKE, negative_2=TITLES)
    assert (hard.task, hard.negatives) == ("retrieval", "[negative_1] || [negative_2]")
    lists = look("hf", query=ASKED, pos=[[answer] for answer in ANSWERED], neg=[LIKE[:2]] * ROWS)
    assert (lists.select, lists.positive, lists.negatives) == ("unnest(pos) AS item", "item", "neg")
    split = look("csv", sentence1=LIKE, sentence2=ASKED, score=BITS, split=["train", "train", "test"] * 10)
    assert split.where == "split <> 'test'"


@pytest.mark.parametrize(
    ("columns", "read", "task", "format_"),
    [
        ({"instruction": ASKED, "input": [""] * ROWS, "output": ANSWERED}, "alpaca", "pretrain", "prompt_response"),
        ({"prompt": ASKED, "completion": ANSWERED}, "alpaca", "pretrain", "prompt_response"),
        ({"prompt": ASKED, "chosen": ANSWERED, "rejected": LIKE}, "alpaca", "retrieval", "prompt_response"),
        ({"conversations": [[{"from": "human", "value": "问"}]] * ROWS}, "sharegpt", "pretrain", "prompt_response"),
        ({"messages": [[{"role": "user", "content": "问"}]] * ROWS}, "messages", "pretrain", "prompt_response"),
        ({"role": ["user", "assistant"] * 15, "content": ANSWERED}, "messages", "pretrain", "prompt_response"),
        ({"question": ASKED, "context": ANSWERED, "answers": [["答"]] * ROWS}, "squad", "retrieval", "question_answer"),
        (
            {"query": ASKED, "pos": [[one] for one in ANSWERED], "neg": [[]] * ROWS},
            "triples",
            "retrieval",
            "question_answer",
        ),
        ({"anchor": LIKE, "positive": LIKE[::-1]}, "triples", "retrieval", "input_output"),
        (
            {
                "messages": [[{"role": "user", "content": one}] for one in ASKED],
                "positive_messages": [[[{"role": "user", "content": one}]] for one in ANSWERED],
            },
            "triples",
            "retrieval",
            "question_answer",
        ),
    ],
)
def test_shapes_that_readers_know(columns: dict[str, list[Any]], read: str, task: str, format_: str) -> None:
    for file in ("jsonl", "parquet"):
        shape = look(file, **columns)
        assert (shape.read, shape.task, shape.format, shape.query, shape.positive) == (read, task, format_, None, None)


def test_lists_of_objects() -> None:
    inside = look(
        code=[0] * ROWS,
        data=[[{"video_title": t, "detail": {"content": a}}] for t, a in zip(TITLES, ANSWERED, strict=True)],
    )
    assert (inside.select, *sql(inside)[2:]) == ("unnest(data) AS item", "item.video_title", "item.detail.content")
    beside = look(title=TITLES, replies=[[{"text": answer, "votes": 1}] for answer in ANSWERED])
    assert (beside.select, *sql(beside)[2:]) == ("unnest(replies) AS item", "title", "item.text")
    prompts = look(
        instruction=ASKED,
        instances=[[{"input": ask, "output": answer}] for ask, answer in zip(LIKE, ANSWERED, strict=True)],
    )
    assert (prompts.query, prompts.positive) == (
        "concat_ws(E'\\n', nullif(instruction, ''), nullif(item.input, ''))",
        "item.output",
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": IDS, "url": LINKS, "n": BITS}, r"no column holds texts: id \(text\), url \(text\), n \(number\)"),
        ({"query": ASKED}, "`query` holds questions, and nothing there answers them"),
    ],
)
def test_no_text_to_embed(columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(NoShapeError, match=f"^{message}$"):
        look(**columns)


def test_documents() -> None:
    headed = [{"headings": ["安装"], "positive": answer} for answer in ANSWERED]
    assert sql(decide(Sample("documents", headed))) == ("pretrain", "title_content", None, None)
    bare = [{"headings": [], "positive": answer} for answer in ANSWERED]
    assert sql(decide(Sample("documents", bare))) == ("passage", "title_content", None, None)
