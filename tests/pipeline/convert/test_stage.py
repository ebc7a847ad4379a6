"""The convert stage: what becomes of each task, and that every pair is accounted for."""

from collections import Counter, defaultdict
from pathlib import Path

import polars as pl
import pytest
from conan_embedding.pipeline.convert.stage import convert, response_reason
from conan_embedding.pipeline.engine.calls import Engine
from conan_embedding.schemas.recipe import Recipe
from conan_embedding.schemas.settings import ConvertSettings

ONE = Engine(workers=1)
PROMPT, RESPONSE = "怎样做番茄炒蛋？", "先把鸡蛋打散炒熟，再放番茄，最后加盐。"


def recipe(**settings) -> Recipe:
    ranges = [{"name": "five", "files": "x", "read": "csv", "task": "sts", "label": "s", "label_range": [-1, 4]}]
    return Recipe.model_validate({"sources": ranges, "convert": settings})


def accounted(read, corpus: Path, kind: str) -> list[str]:
    """The pairs that made records."""
    return sorted(read(corpus, f"convert/{kind}")["pair_ids"].explode(empty_as_null=False).to_list())


@pytest.mark.parametrize(
    ("reason", "bad", "good"),
    [
        ("tool_call", '{"name": "search", "arguments": {"q": "番茄"}}', '名字写成 {"name": "番茄"} 即可。'),
        ("tool_call", "<tool_call>查找番茄</tool_call>", "标签 <tool_call> 用来调用工具。"),
        ("tool_call", '[{"type": "function", "parameters": {"q": "番茄"}}]', '{"name": "番茄", "color": "红"}'),
        ("tool_call", "<｜tool▁calls▁begin｜>查找番茄", "<b>番茄</b>是蔬菜。"),
        ("tool_call", "Action: 查找\nAction Input: 番茄", "Action: 是动作的意思。"),
        ("refusal", "作为一个AI语言模型，我没有做过菜。", "作为一名厨师，我没有失手过。"),
        ("refusal", "很抱歉，我无法品尝。" + "汤" * 240, "很抱歉，我无法品尝。" + "汤" * 241),
        ("pleasantry", "不谢！祝您用餐愉快。", "不客气！" + "下次做菜时可以先放糖。" * 10),
        ("pleasantry", "再见，祝您好胃口。", "我们再见面时一起做菜。"),
        ("refusal", "作为人工智能，我不会做饭。", "机器学习作为人工智能的一个分支，正在兴起。"),
        ("refusal", "很抱歉，我无法帮助您做菜。", "他很抱歉，没有把菜做好。"),
        ("refusal", "As an AI, I can't cook 番茄.", "它 was an aid 帮助厨师。"),
        ("refusal", "作为由某公司训练的语言模型，不便回答。", RESPONSE * 6 + "作为AI语言模型，我说完了。"),
        ("refusal", "作为一款计算机程序，我没有味觉。", "作为一名计算机程序员，我没有时间做饭。"),
        ("refusal", "好的。作为一名中立的AI语言模型，我不能评价这道菜。", "作为一个数学模型，我们的方程没有解。"),
        ("refusal", "由于我是一个人工智能助手，我无法为您做菜。", "我是一名人工智能工程师，没有做过菜。"),
        ("refusal", "很抱歉，我目前无法预订餐厅。", "很抱歉我之前的回答有误，应当先打蛋。"),
        ("refusal", "对不起，我不太明白您的问题。", "听到您难过，我很抱歉。做菜也许能让您好受一点。"),
        ("refusal", "很抱歉，提供这样的做法是不合适的。", "对不起，但这是一个错误的做法，应当先打蛋。"),
        ("template_slot", "您好，{{name}}，请先打蛋。", "集合 {1, 2} 与 {a} 不同。"),
        ("template_slot", "此致\n敬礼\n[潜在客户的姓名]", "参考文献见[12]，又见[附录名]。"),
        ("template_slot", "【输入您的名字】，您好。", "【公司名称】番茄有限公司"),
        ("template_slot", "菜单如下：（在此处插入图片）", "画面切到厨房（插入音乐）。"),
        ("template_slot", "我叫（您的姓名），我会做菜。", "会（你的世界中）做菜。"),
        ("template_slot", "名字是 {FULL_NAME} 先生。", "在终端里写 ${FULL_NAME} 即可。"),
        ("template_slot", "{{name}} 你好", "模板写成 `{{name}}`，或：\n```\n{{name}}\n```"),
        ("template_slot", ("给{{name}}写信", RESPONSE), ("给[插入姓名]写信", RESPONSE)),
        ("template_slot", RESPONSE * 2 + "[您的姓名]", RESPONSE * 3 + "[您的姓名]"),
        ("template_slot", "亲爱的 {USER_NAME}：你好。", r"线段 $\overline{AB}$ 与 $x_{AB}$ 等长。"),
        ("prompt_length", ("问" * 2001, RESPONSE), ("问" * 2000, RESPONSE)),
        ("code_only", "```python\nprint(1)\n```", "这样写：\n```python\nprint(1)\n```"),
        ("code_only", "```python\nprint(1)", "```python\nprint(1)\n```\n就可以了"),
        ("code_only", "def cook(eggs):\n    return eggs", "def 是 Python 的关键字。"),
        ("code_only", "import os\nprint(1)", "import os\n这一行导入模块。"),
        ("code_only", "SELECT name FROM dishes", "SELECT the freshest 番茄。"),
        ("number_only", "3.14159", "约为3.14159"),
        ("response_length", "好。", "氟西汀"),
        ("echo", "怎样做「番茄炒蛋」", "怎样做番茄炒蛋都可以"),
    ],
)  # fmt: skip
def test_responses(reason: str, bad: str | tuple[str, str], good: str | tuple[str, str], pair) -> None:
    frame = pl.DataFrame([pair(*((PROMPT, each) if isinstance(each, str) else each)) for each in (bad, good)])
    assert frame.select(reason=response_reason(ConvertSettings()))["reason"].to_list() == [reason, None]


def test_only_responses_are_judged(tmp_path: Path, pair, write_shards, read) -> None:
    refusal = "作为一个AI语言模型，我没有做过菜。"
    rows = [
        pair(PROMPT, refusal, format="prompt_response"),
        pair(PROMPT, refusal, format="question_answer", source="forum"),
        pair(PROMPT, RESPONSE, format="prompt_response"),
    ]
    write_shards(tmp_path, "score", rows)
    summary = convert(tmp_path, recipe(), ONE)
    assert (summary.rows_in, summary.rows_out, summary.rejected) == (3, 2, {"refusal": 1})
    records = {record["pair_ids"][0]: record for record in read(tmp_path, "convert/pretrain").to_dicts()}
    assert records.keys() == {rows[1]["pair_id"], rows[2]["pair_id"]}
    for row in rows[1:]:
        for column in ("query", "positive", "cluster_id", "source", "category"):
            assert records[row["pair_id"]][column] == row[column]
    [thrown] = read(tmp_path, "convert/pretrain/rejected").to_dicts()
    assert thrown["pair_id"] == rows[0]["pair_id"] and thrown["detail"] == refusal


def test_a_query_and_all_its_positives_are_one_record(tmp_path: Path, pair, write_shards, read) -> None:
    rows = [
        pair("问", "甲", "exam", "retrieval", negatives=["丁", "乙", "丙"]),
        pair("另问", "戊", "exam", "retrieval"),
        pair("问", "乙", "exam", "retrieval", negatives=["丙", "己", "甲"]),
        pair("问", "甲", "other", "retrieval", negatives=["庚"]),
        pair("又问", "辛", "exam", "retrieval", negatives=["辛"]),
    ]
    write_shards(tmp_path, "score", rows[:2], rows[2:])
    summary = convert(tmp_path, recipe(), ONE)
    assert (summary.rows_in, summary.rows_out) == (5, 5)
    found = {(record["source"], record["query"]): record for record in read(tmp_path, "convert/retrieval").to_dicts()}
    assert len(found) == 4
    record = found["exam", "问"]
    assert record["positives"] == ["甲", "乙"]
    assert record["negatives"] == ["丁", "丙", "己"]
    assert record["pair_ids"] == [rows[0]["pair_id"], rows[2]["pair_id"]]
    assert record["cluster_ids"] == [rows[0]["cluster_id"], rows[2]["cluster_id"]]
    assert found["exam", "另问"]["negatives"] == found["exam", "又问"]["negatives"] == []
    assert found["other", "问"]["negatives"] == ["庚"]
    assert accounted(read, tmp_path, "retrieval") == sorted(row["pair_id"] for row in rows)


@pytest.fixture
def classes(pair) -> list[dict]:
    """Three classes of one source and two of another; some texts that can't be used."""
    named = [("news", "体育"), ("news", "财经"), ("news", "科技"), ("mood", "喜"), ("mood", "怒")]
    rows = [
        pair(f"第{number}篇", name, source, "classification", cluster_id=place)
        for place, (source, name) in enumerate(named)
        for number in range(place * 20, place * 20 + 10 + place)
    ]
    return [
        *rows,
        pair("独一篇", "冷门", "news", "classification"),
        pair("两可", "体育", "news", "classification"),
        pair("两可", "财经", "news", "classification"),
        *(pair(f"全是{number}", "唯一", "single", "classification") for number in range(3)),
        *(pair(f"剩下{number}", "多", "left", "classification") for number in range(3)),
        pair("剩一个", "少", "left", "classification"),
    ]


def test_classes_become_retrieval(tmp_path: Path, classes, write_shards, read) -> None:
    write_shards(tmp_path, "score", classes)
    summary = convert(tmp_path, recipe(class_negatives=3), ONE)
    records = read(tmp_path, "convert/retrieval").to_dicts()
    by_text = {(row["source"], row["query"]): row for row in classes}
    assert len(records) == 60
    for record in records:
        own = by_text[record["source"], record["query"]]
        [positive] = [by_text[record["source"], text] for text in record["positives"]]
        assert positive["positive"] == own["positive"] and positive is not own
        assert record["cluster_ids"] == [own["cluster_id"]]
        assert 1 <= len(record["negatives"]) <= 3
        assert len(set(record["negatives"])) == len(record["negatives"])
        for text in record["negatives"]:
            assert by_text[record["source"], text]["positive"] != own["positive"]

    thrown = read(tmp_path, "convert/retrieval/rejected")
    reasons = defaultdict(set)
    for row in thrown.to_dicts():
        reasons[row["reason"]].add((row["query"], row["positive"], row["detail"]))
    assert reasons["lonely_class"] == {("独一篇", "冷门", "class 冷门"), ("剩一个", "少", "class 少")}
    assert reasons["ambiguous_class"] == {("两可", name, "class 体育, 财经") for name in ("体育", "财经")}
    assert {query for query, _, _ in reasons["one_class"]} == {
        f"{kind}{i}" for kind in ("全是", "剩下") for i in range(3)
    }
    assert summary.rejected == {reason: len(found) for reason, found in reasons.items()}
    assert accounted(read, tmp_path, "retrieval") == sorted(
        {row["pair_id"] for row in classes} - set(thrown["pair_id"])
    )


def test_negatives_come_from_all_other_classes(tmp_path: Path, pair, write_shards, read) -> None:
    rows = [pair(f"{name}{number}", name, "s", "classification") for name in "甲乙丙丁" for number in range(50)]
    write_shards(tmp_path, "score", rows)
    convert(tmp_path, recipe(), ONE)
    met = defaultdict(int)
    positives = set()
    for record in read(tmp_path, "convert/retrieval").to_dicts():
        positives.update(record["positives"])
        for negative in record["negatives"]:
            met[record["query"][0], negative[0]] += 1
    assert len(positives) == 200  # a ring: each text is the positive of one other
    assert len(met) == 12
    assert all(40 < count < 95 for count in met.values())  # 66 expected
    spread = Counter(
        negative for record in read(tmp_path, "convert/retrieval").to_dicts() for negative in record["negatives"]
    )
    assert len(spread) > 190  # 4 expected of each


@pytest.mark.parametrize("positives", [1, 3, 50])
@pytest.mark.parametrize("negatives", [1, 7, 50])
def test_classes_never_leak(positives: int, negatives: int, tmp_path: Path, pair, write_shards, read) -> None:
    """Small classes, texts that differ by a mark alone, a name of two clusters, two names of one cluster."""
    sizes = {"甲": 2, "乙": 3, "丙": 9, "丁": 40}
    rows = [
        pair(f"{name}{number}", name, "s", "classification", cluster_id=place)
        for place, (name, size) in enumerate(sizes.items())
        for number in range(size)
    ]
    rows += [pair(f"{row['query']}！", row["positive"], "s", "classification", cluster_id=3) for row in rows[-5:]]
    rows += [pair(f"戊{number}", "戊", "s", "classification", cluster_id=0) for number in range(4)]
    rows += [pair("甲0。", "乙", "s", "classification", cluster_id=1)]  # which makes 甲0 ambiguous
    write_shards(tmp_path, "score", rows)
    convert(tmp_path, recipe(class_positives=positives, class_negatives=negatives), ONE)
    assert set(read(tmp_path, "convert/retrieval/rejected")["query"]) == {"甲0", "甲0。"}

    class_of = {row["query"].rstrip("！"): "甲" if row["positive"] == "戊" else row["positive"] for row in rows}
    members = {name: {text for text, own in class_of.items() if own == name} - {"甲0", "甲0。"} for name in sizes}
    records = read(tmp_path, "convert/retrieval").to_dicts()
    assert len(records) == len(rows) - 2
    for record in records:
        text = record["query"].rstrip("！")
        own = class_of[text]
        shown, opposed = ([each.rstrip("！") for each in record[side]] for side in ("positives", "negatives"))
        assert set(shown) <= members[own] - {text}
        assert len(shown) == len(set(shown)) == min(positives, len(members[own]) - 1)
        others = set().union(*members.values()) - members[own]
        assert set(opposed) <= others
        assert len(opposed) == len(set(opposed)) <= negatives
        if len(others) >= negatives:
            assert len(opposed) == negatives
        assert len(set(record["cluster_ids"])) == 1 and len(record["cluster_ids"]) == len(shown)


def test_classes_do_not_depend_on_the_shards_but_on_the_seed(tmp_path: Path, classes, write_shards, read) -> None:
    for name, shards, seed in (
        ("a", [classes], 0),
        ("b", [classes[::-1][:30], [], classes[::-1][30:]], 0),
        ("c", [classes], 1),
    ):
        write_shards(tmp_path / name, "score", *shards)
        convert(tmp_path / name, recipe(seed=seed), ONE)
    frames = {name: read(tmp_path / name, "convert/retrieval").sort("source") for name in "abc"}
    assert frames["a"].equals(frames["b"])
    assert not frames["a"].equals(frames["c"])
    assert accounted(read, tmp_path / "a", "retrieval") == accounted(read, tmp_path / "c", "retrieval")


def test_labels_are_scaled(tmp_path: Path, pair, write_shards, read) -> None:
    labels = [-1.0, 4.0, 1.5, 4.1, -1.1, float("nan"), None]
    rows = [pair(f"甲{number}", f"乙{number}", "five", "sts", label=label) for number, label in enumerate(labels)]
    write_shards(tmp_path, "score", [*rows, pair("丙", "丁", "unlisted", "sts", label=0.25)])
    summary = convert(tmp_path, recipe(), ONE)
    records = read(tmp_path, "convert/sts")
    found = dict(records.select(pl.col("pair_ids").list.first(), "label").iter_rows())
    assert [found[row["pair_id"]] for row in rows[:3]] == pytest.approx([0, 1, 0.5])
    given = dict(records.select(pl.col("pair_ids").list.first(), "original_label").iter_rows())
    assert [given[row["pair_id"]] for row in rows[:3]] == labels[:3]
    assert records.filter(source="unlisted").select("text_a", "text_b", "label").rows() == [("丙", "丁", 0.25)]
    assert summary.rejected == {"label_range": 4}
    details = read(tmp_path, "convert/sts/rejected").sort("pair_id")["detail"]
    assert set(details) == {f"{value} is not in -1…4; set label_range" for value in ("4.1", "-1.1", "NaN", "null")}


def test_all_tasks_in_one_shard(tmp_path: Path, pair, write_shards, read) -> None:
    kinds = ["pretrain", "retrieval", "sts"]
    rows = [pair(f"{kind}{number}", RESPONSE, "mixed", kind, label=0.5) for kind in kinds for number in range(4)]
    rows += [pair(f"文{number}", "甲乙"[number % 2], "mixed", "classification") for number in range(4)]
    write_shards(tmp_path, "score", rows[::2], rows[1::2], [])
    summary = convert(tmp_path, recipe(), Engine(workers=2))
    assert (summary.rows_in, summary.rows_out, summary.rejected.total()) == (16, 16, 0)
    assert summary.notes == {"convert/pretrain": 4, "convert/retrieval": 8, "convert/sts": 4}
    everything = [pair_id for kind in kinds for pair_id in accounted(read, tmp_path, kind)]
    assert sorted(everything) == sorted(row["pair_id"] for row in rows)


def test_only_what_changed_is_done_again(tmp_path: Path, classes, pair, write_shards) -> None:
    write_shards(tmp_path, "score", classes, [pair(PROMPT, RESPONSE)], [pair("甲", "乙", "five", "sts", label=1.0)])
    shards = convert(tmp_path, recipe(), ONE).shards
    assert shards == 4 + 1 + 1
    assert convert(tmp_path, recipe(), ONE).skipped == shards
    assert convert(tmp_path, recipe(seed=1), ONE).skipped == 2
    assert convert(tmp_path, recipe(seed=1, min_response_chars=1), ONE).skipped == shards - 1


def test_a_task_without_pairs_has_no_shards(tmp_path: Path, pair, write_shards) -> None:
    write_shards(tmp_path, "score", [pair(PROMPT, RESPONSE)], [])
    assert convert(tmp_path, recipe(), ONE).rows_out == 1
    assert not list((tmp_path / "convert" / "sts").glob("*.parquet"))
