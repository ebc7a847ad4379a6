"""The known faults of generated queries, and sound queries that look like them."""

import polars as pl
from conan_embedding.pipeline.synthesize.faults import LENGTHS, REASONS, faults
from conan_embedding.pipeline.synthesize.languages import LANGUAGES
from conan_embedding.pipeline.synthesize.prompts import KINDS

PASSAGE = "长江全长六千三百余公里，是亚洲第一长河。《水经注》称之为“江水”；三峡大坝于 2006 年建成。"
COLUMNS = ("passage", "query", "answer", "kind", "language")


def judge(
    queries: list[str], kind: str = "question", language: str = "zh", **same: str | None
) -> dict[str, str | None]:
    """The reason for each query."""
    row = {"passage": PASSAGE, "answer": None, "kind": kind, "language": language, **same}
    frame = pl.DataFrame([{**row, "query": query} for query in queries]).select(COLUMNS)
    return dict(zip(queries, faults(frame), strict=True))


NAME_IT = [
    "本文主要讲了什么内容？",
    "文中提到的归纳偏置例子叫什么？",
    "在文中，长江被称为什么？",
    "根据上述材料，长江有多长？",
    "上述河流的长度是多少？",
    "根据文章内容，三峡大坝何时建成？",
    "这篇文章的作者是谁？",
    "该段落介绍了哪条河？",
    "这段话所在的这段文字说了什么？",
    "材料中提到的大坝叫什么？",
    "作者认为长江有多长？",
    "第二段讲了什么？",
    "以上内容说明了什么？",
    "给定的文本中有几条河？",
    "提供的文本里大坝建于哪年？",
]
DO_NOT_NAME_IT = [
    "日本文化有什么特点？",
    "基本文件权限怎么设置？",
    "红楼梦的作者是谁？",
    "英文中怎么表示长江？",
    "复合材料中纤维起什么作用？",
    "Word 文档中如何插入图片？",
    "史前文化有哪些？",
    "以上海为起点的高铁有哪些？",
    "报销要提供资料吗？",
    "文本框怎么删除？",
    "网上文章能不能转载？",
    "文中子是谁？",
    "新闻联播几点开始？",
    "论文中图表怎么编号？",
    "申请人提供的材料不全怎么办？",
    "从新闻中能学到什么？",
    "如何从文本中提取关键词？",
    "第二段婚姻的财产怎么分？",
    "阅读文章有什么技巧？",
]
NAME_IT_IN_ENGLISH = [
    "What is the main idea of the passage?",
    "According to the text, how long is the river?",
    "What does the author say about the dam?",
    "Which rivers are mentioned in the article?",
    "Based on the provided context, when was the dam built?",
    "How is the dam described in this paragraph?",
]
DO_NOT_NAME_IT_IN_ENGLISH = [
    "How do I change the text color in CSS?",
    "How do I change the color of the text?",
    "What is a context menu?",
    "Who is the author of Walden?",
    "How is a river's passage through limestone formed?",
    "What does article 5 of the treaty say?",
]


def test_queries_that_name_the_passage() -> None:
    assert judge(NAME_IT) == dict.fromkeys(NAME_IT, "names_the_passage")
    assert judge(DO_NOT_NAME_IT) == dict.fromkeys(DO_NOT_NAME_IT)
    found = judge(NAME_IT_IN_ENGLISH + DO_NOT_NAME_IT_IN_ENGLISH, language="en")
    assert found == dict.fromkeys(NAME_IT_IN_ENGLISH, "names_the_passage") | dict.fromkeys(DO_NOT_NAME_IT_IN_ENGLISH)


def test_queries_whose_subject_only_the_passage_names() -> None:
    unnamed = [
        "他在大学任教时提出了什么理论？",
        "该频道播放什么剧？",
        "这张专辑的主题是什么？",
        "此次比赛有几天？",
        "为什么该站叫这个名字？",
    ]
    named = [
        "该怎么退货？",
        "其实长江有多长？",
        "此外还要带什么？",
        "这个软件叫什么？",
        "他汀类药有何副作用？",
        "该选哪种茶？",
    ]
    assert judge(unnamed + named) == dict.fromkeys(unnamed, "unnamed_subject") | dict.fromkeys(named)
    english = judge(["When did he build the dam?", "His theory was rejected."], "statement", "en")
    assert set(english.values()) == {"unnamed_subject"}
    assert set(judge(["How long is it to the moon?", "Is there a dam?"], language="en").values()) == {None}
    assert judge(["他的一生"], "title") == {"他的一生": None}


def test_a_response_must_not_begin_with_the_passage() -> None:
    def of(answer: str) -> str | None:
        return judge(["长江有多长？请简要回答。"], "prompt", answer=answer)["长江有多长？请简要回答。"]

    assert of("根据材料，长江全长六千三百余公里。") == "names_the_passage"
    assert of("先量干流，再量支流。上述步骤可以重复。") is None
    assert of("对不起，我无法回答这个问题。") == "refusal"


def test_refusals() -> None:
    refusals = [
        "作为一个AI语言模型，我不能生成问题。",
        "抱歉，我无法根据这段材料提出问题。",
        "I'm sorry, but I can't help with that.",
    ]
    assert judge(refusals) == dict.fromkeys(refusals, "refusal")
    assert judge(["我无法登录微信怎么办？"]) == {"我无法登录微信怎么办？": None}


def test_several_questions() -> None:
    several = ["长江有多长？黄河呢有多长？", "1. 长江有多长\n2. 黄河有多长", "How long is it? Where does it end?"]
    assert judge(several[:2]) == dict.fromkeys(several[:2], "several_questions")
    assert judge(several[2:], language="en") == {several[2]: "several_questions"}
    one = ["长江到底有多长？？", "什么是“为什么？”效应", "版本 2.0 有什么变化？"]
    assert judge(one) == dict.fromkeys(one)
    assert judge(several[:1], "prompt", answer="六千三百余公里。") == {several[0]: None}


def test_copies_of_a_sentence() -> None:
    copies = ["长江全长六千三百余公里", "全长六千三百余公里，是亚洲第一长河。", "三峡大坝于2006年建成", PASSAGE]
    assert judge(copies, "statement") == dict.fromkeys(copies, "copied_sentence")
    own = ["长江全长六千多公里", "长江全长六千三百余公里吗？", "亚洲第一长河", "全长六千三百余公里是多少里"]
    assert judge(own, "statement") == dict.fromkeys(own)
    assert judge(copies[:1], "keyword") == judge(copies[:1], "title") == {copies[0]: None}


def test_echoes() -> None:
    for kind in ("question", "prompt"):
        assert judge(["长江有多长？"], kind, answer="长江有多长") == {"长江有多长？": "echo"}


def test_answers_are_quotes_of_the_passage() -> None:
    quotes = ["六千三百余公里", "“江水”", "2006年", "是亚洲第一长河。《水经注》", None]
    others = ["六千三百公里", "2009 年", "长江"[::-1]]
    kinds, answers = ("question", "paraphrase"), quotes + others
    rows = [(PASSAGE, "长江有多长？", answer, kind, "zh") for kind in kinds for answer in answers]
    found = faults(pl.DataFrame(rows, schema=COLUMNS, orient="row")).to_list()
    assert found == ([None] * len(quotes) + ["answer_not_in_passage"] * len(others)) * 2
    assert judge(["长江有多长？"], "prompt", answer=others[0]) == {"长江有多长？": None}


IN_THEIR_LANGUAGE = {
    "zh": "长江有多长？",
    "en": "How long is the river?",
    "ja": "川の長さはどのくらいですか",
    "ko": "강의 길이는 얼마입니까?",
    "ru": "Какова длина реки?",
    "ar": "كم يبلغ طول النهر؟",
    "hi": "नदी कितनी लंबी है?",
    "th": "แม่น้ำยาวเท่าไร",
    "de": "Wie lang ist der Fluss?",
}


def test_languages() -> None:
    """English and German are both in Latin letters, which rules don't tell apart."""
    rows = [
        (PASSAGE, query, None, "translation", asked, own == asked or {own, asked} == {"en", "de"})
        for own, query in IN_THEIR_LANGUAGE.items()
        for asked in IN_THEIR_LANGUAGE
    ]
    frame = pl.DataFrame(rows, schema=[*COLUMNS, "right"], orient="row")
    right = pl.when(~pl.col("right")).then(pl.lit("wrong_language"))
    assert faults(frame).to_list() == frame.select(right).to_series().to_list()
    mixed = ["Python 的 GIL 是什么？", "长江 length"]
    assert judge(mixed) == dict.fromkeys(mixed)
    assert judge(["长江全长是多少公里？"], language="en") == {"长江全长是多少公里？": "wrong_language"}


def test_a_name_of_the_passage_is_in_no_language() -> None:
    assert judge(["Bourne shell"], "keyword", passage="Bourne shell 是一种命令行解释器。") == {"Bourne shell": None}
    assert judge(["Korn shell"], "keyword", passage="Bourne shell 是一种命令行解释器。") == {
        "Korn shell": "wrong_language"
    }


def test_lengths() -> None:
    assert set(LENGTHS) == set(KINDS)
    rows = [
        ("无关", query, "无关", kind, "zh", reason)
        for kind, (least, most) in LENGTHS.items()
        for query, reason in (
            ("河" * (least - 1), "too_short"),
            ("河" * least, None),
            ("河" * most, None),
            ("江" + "river " * (most - 1), "too_long" if most < 5 else "wrong_language"),
            ("江river" * (most // 2) + "2006", "too_long"),
            ("河" * (most + 1), "too_long"),
        )
        if query
    ]
    frame = pl.DataFrame(rows, schema=[*COLUMNS, "expected"], orient="row")
    assert faults(frame).to_list() == frame["expected"].to_list()


def test_each_row_is_judged_by_its_own_language_and_kind() -> None:
    rows = [
        (PASSAGE, "长江有多长？", "六千三百余公里", "question", "zh"),
        (PASSAGE, "How long is the Yangtze?", "六千三百余公里", "question", "en"),
        (PASSAGE, "长江有多长？", "六千三百余公里", "question", "en"),
        (PASSAGE, "大熊猫为什么一天到晚都在吃？", None, "question", "zh"),
        (PASSAGE, "亚洲第一长河有多长", "长江有六千公里。", "prompt", "zh"),
    ]
    found = faults(pl.DataFrame(rows, schema=COLUMNS, orient="row"))
    assert found.to_list() == [None, None, "wrong_language", "copied_example", None]
    assert found.dtype == pl.String and set(found.drop_nulls()) <= set(REASONS)


def test_no_rows() -> None:
    assert faults(pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String))).to_list() == []


def test_every_language_has_a_script() -> None:
    frame = pl.DataFrame({"language": list(LANGUAGES)}).with_columns(
        passage=pl.lit(""), query=pl.lit("¿"), answer=pl.lit(None, pl.String), kind=pl.lit("translation")
    )
    assert set(faults(frame)) == {"too_short"}
