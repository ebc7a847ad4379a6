"""Triples and questions about passages, in the forms in which people publish them."""

from pathlib import Path

from read_files import read_named, read_records, reader

TRIPLES = {
    "FlagEmbedding": ({"query": "问", "pos": ["甲"], "neg": ["丙", "丁"]}, "甲", ["丙", "丁"]),
    "texts instead of lists": ({"query": "问", "pos": "甲", "neg": "丙"}, "甲", ["丙"]),
    "no negatives": ({"query": "问", "pos": ["甲"]}, "甲", []),
    "null for negatives": ({"query": "问", "pos": ["甲"], "neg": None}, "甲", []),
    "sentence-transformers": ({"anchor": "问", "positive": "甲", "negative": "丙"}, "甲", ["丙"]),
    "n-tuple": ({"query": "问", "positive": "甲", "negative_1": "丙", "negative_2": "丁"}, "甲", ["丙", "丁"]),
    "objects": ({"query": "问", "pos": [{"text": "甲", "id": 3}], "neg": [{"content": "丙"}]}, "甲", ["丙"]),
    "Tevatron": (
        {
            "query_id": "1",
            "query": "问",
            "positive_passages": [{"docid": "2", "title": "题", "text": "甲"}],
            "negative_passages": [{"docid": "3", "title": "", "text": "丙"}, {"title": "-", "text": "丁"}],
        },
        "题\n甲",
        ["丙", "丁"],
    ),
    "DPR": (
        {
            "question": "问",
            "positive_ctxs": [{"title": "题", "text": "甲", "score": 1.5}],
            "negative_ctxs": [{"title": "题", "text": "丙"}],
            "hard_negative_ctxs": [{"title": None, "text": "丁"}],
        },
        "题\n甲",
        ["题\n丙", "丁"],
    ),
    "DuReader": ({"question": "问", "answer_paragraphs": [{"paragraph_id": "1", "paragraph_text": "甲"}]}, "甲", []),
    "ms-swift": (
        {
            "messages": [{"role": "system", "content": "系"}, {"role": "user", "content": "问"}],
            "positive_messages": [[{"role": "user", "content": "甲"}]],
            "negative_messages": [[{"role": "user", "content": "丙"}], [{"role": "user", "content": "丁"}]],
        },
        "甲",
        ["丙", "丁"],
    ),
    "uniem": ({"text": "问", "text_pos": "甲", "text_neg": "丙"}, "甲", ["丙"]),
    "hard negatives": ({"query": "问", "positive": "甲", "hard_negatives": ["丙"], "negs": ["丁"]}, "甲", ["丁", "丙"]),
    "scalars": ({"query": "问", "pos": [200], "neg": [True]}, "200", ["true"]),
    "texts that look like JSON": ({"query": "问", "pos": ["[1]"], "neg": ['{"a": 1}']}, "[1]", ['{"a": 1}']),
    "lists in strings of JSON": ({"query": "问", "pos": '["甲"]', "neg": '["丙", "丁"]'}, "甲", ["丙", "丁"]),
    "an empty list in a string": ({"query": "问", "pos": "甲", "neg": "[]"}, "甲", []),
    "a text with a bracket": ({"query": "问", "pos": "[1] 甲", "neg": "[1]"}, "[1] 甲", ["[1]"]),
    "content parts": ({"query": [{"type": "text", "text": "问"}], "pos": "甲"}, "甲", []),
    "a label that says yes": ({"query": "问", "pos": ["甲"], "label": 1}, "甲", []),
}

REFUSED_TRIPLES = {
    "field_type: query: expected text, found an object": {"query": {"a": 1}, "pos": ["甲"]},
    "field_type: query: expected text, found a list": {"query": ["问", "题"], "pos": ["甲"]},
    "field_type: positive 1: expected text, found a list": {"query": "问", "pos": [["甲"]]},
    "field_type: negative 1: expected text, found an object": {
        "messages": [{"role": "user", "content": "问"}],
        "positive_messages": [[{"role": "user", "content": "甲"}]],
        "negative_messages": [[{"role": "user"}]],
    },
    "field_type: positive 1: expected text, found an object": {"query": "问", "pos": {"id": 3}},
    "field_type: negative 2: expected text, found an object": {"query": "问", "pos": ["甲"], "neg": ["丙", {"id": 3}]},
    "field_type: negative 1: expected text, found a list": {"query": "问", "pos": ["甲"], "negative_1": ["丙"]},
    "excluded_by_data: `label` is 0": {"query": "问", "pos": ["甲"], "label": 0},
    "no_pair: contains no pair in the shape triples": {"query": "问", "pos": [], "neg": ["丙"]},
}


def test_triples(tmp_path: Path) -> None:
    found = read_named(tmp_path, "triples", {name: record for name, (record, *_) in TRIPLES.items()})
    assert found == ([(name, "问", *texts) for name, (_, *texts) in TRIPLES.items()], [])


def test_refused_triples(tmp_path: Path) -> None:
    found = read_named(tmp_path, "triples", REFUSED_TRIPLES)
    assert found == ([], [(name, *name.split(": ", 1)) for name in REFUSED_TRIPLES])


def test_a_triple_gives_a_pair_per_positive(tmp_path: Path) -> None:
    record = {"query": "问", "pos": ["甲", {"id": 1}, "乙", None], "neg": ["丙"], "pos_scores": [0.9, float("nan")]}
    found = read_records(tmp_path, "triples", record | {"neg_scores": [0.1], "prompt": "找出答案", "type": "normal"})
    assert found.values("query", "positive") == [("问", "甲"), ("问", "乙"), ("问", None)]
    assert found.details == ["positive 2: expected text, found an object"]
    meta = {"teacher_scores": [0.9, None], "negative_scores": [0.1], "prompt": "找出答案", "type": "normal"}
    assert found.values("meta") == [meta] * 3


# SQuAD

QA = {"question": "问", "id": "1", "answers": [{"text": "答", "answer_start": 0}]}


QUESTIONS = {
    "SQuAD": ({"data": [{"title": "题", "paragraphs": [{"context": "文", "qas": [QA]}]}]}, "题"),
    "an article of SQuAD": ({"title": "题", "paragraphs": [{"context": "文", "qas": [QA]}]}, "题"),
    "SQuAD 2.0": ({"data": [{"paragraphs": [{"context": "文", "qas": [QA | {"is_impossible": False}]}]}]}, None),
    "Hugging Face": (
        {"id": 1, "title": "题", "context": "文", "question": "问", "answers": {"text": ["答"], "answer_start": [0]}},
        "题",
    ),
    "MRQA": ({"context": "文", "qas": [{"question": "问", "qid": "1", "answers": ["答"]}]}, None),
    "CMRC 2018": (
        {
            "context_id": "T",
            "context_text": "文",
            "title": "题",
            "qas": [{"query_id": "1", "query_text": "问", "answers": ["答"]}],
        },
        "题",
    ),
}

REFUSED_QUESTIONS = {
    "excluded_by_data: `is_impossible` is true": {"context": "文", "qas": [QA | {"is_impossible": True}]},
    "excluded_by_data: `answers` is empty": {"context": "文", "question": "问", "answers": {"text": []}},
    "field_type: context: expected text, found a list": {"context": ["文"], "qas": [QA]},
    "field_type: question: expected text, found an object": {"context": "文", "question": {"a": 1}},
    "no_pair: contains no pair in the shape squad": {"context": "文", "qas": []},
}


def test_squad(tmp_path: Path) -> None:
    found = read_named(tmp_path, "squad", {name: record for name, (record, _) in QUESTIONS.items()})
    assert found == ([(name, "问", "文", []) for name in QUESTIONS], [])


def test_meta_of_squad(tmp_path: Path) -> None:
    found = read_records(tmp_path, "squad", *(record for record, _ in QUESTIONS.values()))
    assert found.values("meta") == [{"id": "1", "title": title, "answers": ["答"]} for _, title in QUESTIONS.values()]


def test_a_flat_question_without_answers(tmp_path: Path) -> None:
    found = read_records(tmp_path, "squad", {"context": "文", "question": "问", "answers": []})
    assert (found.rows, found.details) == ([], ["`answers` is empty"])


def test_refused_questions(tmp_path: Path) -> None:
    found = read_named(tmp_path, "squad", REFUSED_QUESTIONS)
    assert found == ([], [(name, *name.split(": ", 1)) for name in REFUSED_QUESTIONS])


def test_a_document_of_squad(tmp_path: Path) -> None:
    asked = [QA | {"question": f"问{number}", "is_impossible": number % 2 == 1} for number in range(4)]
    paragraphs = [{"context": "文一", "qas": asked}, {"context": "文二", "qas": [{"question": "问四"}, {"id": "5"}]}]
    found = read_records(tmp_path, "squad", {"version": "2.0", "data": [{"title": "题", "paragraphs": paragraphs}]})
    assert found.values("query", "positive") == [("问0", "文一"), ("问2", "文一"), ("问四", "文二"), (None, "文二")]
    first, second = (record for _, _, record in found.problems)
    assert first is not None and first.startswith('{"version"')  # the document, but only once
    assert second == '{"query":"问3","positive":"文一","negatives":[]}'


def test_numbers_keep_their_digits(tmp_path: Path) -> None:
    text = '{"query": 3.140, "pos": [1e400, 12345678901234567890], "neg": -0.10, "pos_scores": [1e400, 0.50]}'
    found = reader(tmp_path)(text, "a.jsonl", read="triples")
    assert found.values("query", "positive", "negatives") == [
        ("3.140", "1e400", ["-0.10"]),
        ("3.140", "12345678901234567890", ["-0.10"]),
    ]
    assert [meta["teacher_scores"] for meta in found.values("meta")] == [[None, 0.5]] * 2
