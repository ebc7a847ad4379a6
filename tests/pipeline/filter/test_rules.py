"""Every rule: a pair it keeps, a pair it rejects, and the threshold itself."""

from random import Random

import polars as pl
import pytest
from conan_embedding.pipeline.filter.rules import RULES, find_first_failing, judge, measure, select_rules
from conan_embedding.pipeline.filter.titles import strip_title
from conan_embedding.pipeline.text.personal_data import MASKS
from conan_embedding.schemas.errors import RecipeError
from conan_embedding.schemas.settings import ClassifierSettings

QUERY = "北京今天的天气怎么样"
PROSE = "今天北京晴转多云，最高气温二十六度，最低气温十五度，东北风三级，适合外出活动。"
WORDS = (
    "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈"
    "剑号巨阙珠称夜光果珍李柰菜重芥姜海咸河淡鳞潜羽翔"
)


def pairs(*sides: tuple[str, str], **columns: str) -> pl.DataFrame:
    given = {"format": "title_content", "task": "pretrain", "meta": "{}"} | columns
    return pl.DataFrame({"query": [q for q, _ in sides], "positive": [p for _, p in sides]}).with_columns(
        pl.lit(value).alias(name) for name, value in given.items()
    )


def words(characters: int) -> str:
    """Return this many characters without punctuation, the first 72 all different."""
    return (WORDS * (characters // len(WORDS) + 1))[:characters]


LINES = "\n".join(f"第{number}行，{words(20 + number)}。" for number in range(10))

# name → a pair that is kept, one that is rejected, one that is exactly at the threshold.
EXAMPLES: dict[str, tuple[tuple[str, str], tuple[str, str], tuple[str, str]]] = {
    "empty_side": ((QUERY, PROSE), (QUERY, ""), (QUERY, "好")),
    "same_sides": ((QUERY, PROSE), (QUERY, QUERY + "？"), (QUERY + "1.5", QUERY + "15")),
    "query_length": ((QUERY, PROSE), ("吃", PROSE), ("吃饭", PROSE)),
    "query_limit": ((QUERY, PROSE), (words(8_193), PROSE), (words(8_192), PROSE)),
    "title_limit": ((QUERY, PROSE), (words(513), PROSE), (words(512), PROSE)),
    "positive_length": ((QUERY, PROSE), (QUERY, "晴"), (QUERY, "晴天")),
    "positive_limit": ((QUERY, PROSE), (QUERY, words(100_001)), (QUERY, words(100_000))),
    "content_length": ((QUERY, PROSE), (QUERY, words(9)), (QUERY, words(10))),
    "wordless": (("几点开门？", "早上 8:00 - 17:00"), ("电话是多少？", "010-6513 2255"), ("几点开门？", "8 点")),
    "null_word": ((QUERY, "没有"), (QUERY, "NaN"), (QUERY, "none of them")),
    "title_leak": (
        (QUERY, QUERY + "是很多人关心的事。"),
        (QUERY, QUERY + "\n" + words(9)),
        (QUERY, QUERY + "\n" + words(10)),
    ),
    "mojibake": ((QUERY, PROSE), (QUERY, words(98) + "銆鈥"), (QUERY, words(99) + "銆")),
    "damaged_characters": (
        ("李\ufffd讲述父子间的故事", PROSE + "\ue107\ue107"),
        (QUERY, words(15) + "\ufffd\ue107\ue001\ufffd"),
        (QUERY, words(16) + "\ufffd\ue107\ue001\ufffd"),
    ),
    "alphanumeric_ratio": ((QUERY, PROSE), (QUERY, "，" * 10 + "好"), (QUERY, "，" * 9 + "好")),
    "han_ratio": (("问 a+b", PROSE), ("the first", "中" + "b" * 20), ("the first", "中文" + "b" * 23)),
    "digit_ratio": ((QUERY, PROSE), (QUERY, "1234567890123" + words(12)), (QUERY, "123456789012" + words(12))),
    "symbol_ratio": ((QUERY, PROSE), (QUERY, "★" * 5 + words(11)), (QUERY, "★" * 6 + words(14))),
    "punctuation_ratio": ((QUERY, PROSE), (QUERY, "，。！？、；" * 2 + words(11)), (QUERY, "，。！？、；" + words(6))),
    "unpunctuated": ((QUERY, words(200)), (QUERY, "，，" + words(300)), (QUERY, "，，，" + words(297))),
    "dominant_character": ((QUERY, "哈" * 10), (QUERY, "哈" * 11 + words(14)), (QUERY, "哈" * 10 + words(15))),
    "character_repetition": ((QUERY, PROSE), (QUERY, "哈" * 25 + words(10)), (QUERY, "哈" * 24 + words(10))),
    "repeated_ngrams": ((QUERY, PROSE), (QUERY, words(40) * 2), (QUERY, words(22) + WORDS[30:38] + words(22))),
    "line_repetition": (
        (QUERY, LINES),
        (QUERY, "甲乙丙丁戊己\n" + words(5) + "\n甲乙丙丁戊己"),
        (QUERY, "甲乙丙\n" + words(2) + "\n甲乙丙"),
    ),
    "line_length": ((QUERY, LINES), (QUERY, "\n".join([words(8)] * 30)), (QUERY, "\n".join([words(9)] * 25) + "。")),
    "finished_lines": (
        (QUERY, "首页\n\n" * 4 + "一句。"),
        (QUERY, "首页\n\n" * 9 + "一句。"),
        (QUERY, "首页\n" * 447 + "一句。\n" * 53),
    ),
    "ellipsis_lines": (
        (QUERY, "嗯…\n好\n行…\n走"),
        (QUERY, "嗯…\n好...\n行\n走\n来"),
        (QUERY, "\n".join(["嗯…"] * 3 + ["好"] * 7)),
    ),
    "separator_ratio": ((QUERY, PROSE), (QUERY, "=" * 15 + words(20)), (QUERY, "-" * 20 + words(30))),
    "url_density": (
        (QUERY, "见 https://example.com ，" + PROSE),
        (QUERY, "见 https://example.com/a/b"),
        (QUERY, "https://a.cn" + words(8)),
    ),
    "markup_density": ((QUERY, "若 a<b 则 " + PROSE), (QUERY, "{{name}}是{{title}}"), (QUERY, "{{ab}}" + words(24))),
    "chat_tokens": ((QUERY, "[图片] a<|b"), (QUERY, "晴天。<|im_end|>"), (QUERY, "<|imend|>")),
    "boilerplate": (
        (QUERY, "平台发放优惠券，" + PROSE),
        (QUERY, "扫码关注公众号领优惠券"),
        (QUERY, "优惠券" + words(27)),
    ),
}


def test_every_rule_has_examples() -> None:
    assert list(EXAMPLES) == list(RULES)
    assert all(rule.origin for rule in RULES.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_rule(name: str) -> None:
    judged = judge(pairs(*EXAMPLES[name]), [RULES[name]])
    assert judged["reason"].to_list() == [None, name, None], judged["detail"].to_list()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_third_example_is_at_the_threshold(name: str) -> None:
    rule = RULES[name]
    assert measure(pairs(EXAMPLES[name][2]), [rule])[name].item() == pytest.approx(rule.threshold, abs=1e-12)


@pytest.mark.parametrize(
    "text", ["锟斤拷锟斤拷", "烫烫烫烫烫", "ä½ å¥½ä¸–ç•Œ", "cafÃ©", "浣犲ソ锛屼笘鐣屻€銆", "Stalloneâ€™s son"]
)
def test_mojibake_in_all_its_shapes(text: str) -> None:
    assert judge(pairs((QUERY, text)), [RULES["mojibake"]])["reason"].item() == "mojibake"


@pytest.mark.parametrize("text", ["水烫，小心烫！", "一锛两斧头", "Café «naïve» élève", "屯里的年轻人", "½ × 2 = 1°"])
def test_mojibake_spares_real_text(text: str) -> None:
    assert judge(pairs((QUERY, text)), [RULES["mojibake"]])["reason"].item() is None


NULL_WORDS = ["nan", "None", "NULL。", "N/A", "#N/A", "#REF!", "(null)", "undefined", "[object Object]"]
NULL_WORDS += ["暂无", "略", "答：略。", "[图片]", "【图片】", "[图片][图片]", "[语音]"]
NULL_WORDS += [
    "NA",
    "NaT",
    "[UNK]",
    "（略）",
    "暂无回答",
    "暫無內容",
    "[圖片]",
    "［图片］",
    "（图片）",
    "[Image]",
    "![](a.png)",
    r"\N",
    "转发微博",
    "此用户没有填写评价。",
    "该用户未填写评价内容",
    "评价方未及时做出评价,系统默认好评!",
    "抱歉，该微博已被作者删除",
]


@pytest.mark.parametrize("text", NULL_WORDS)
def test_null_words(text: str) -> None:
    pair = pairs((QUERY, text), (text, PROSE), (QUERY, text + "，" + PROSE), format="question_answer")
    assert judge(pair, [RULES["null_word"]])["reason"].to_list() == ["null_word", "null_word", None]
    assert judge(pairs(("", text), task="passage"), [RULES["null_word"]])["reason"].item() == "null_word"


CHAT_TOKENS = ["<|im_start|>", "<|endoftext|>", "<|eot_id|>", "[/INST]", "<<SYS>>", "<｜end▁of▁sentence｜>"]


@pytest.mark.parametrize("token", CHAT_TOKENS)
def test_tokens_of_chat_templates(token: str) -> None:
    for task in ("pretrain", "retrieval", "passage"):
        judged = judge(pairs((QUERY, PROSE + token), task=task), [RULES["chat_tokens"]])
        assert judged["reason"].item() == "chat_tokens"


def test_no_mask_is_boilerplate() -> None:
    masks = pairs(*((QUERY, f"请联系{mask}。") for mask in MASKS.values()))
    assert measure(masks, [RULES["boilerplate"]])["boilerplate"].to_list() == [0.0] * len(MASKS)


def test_first_failing_rule_is_the_reason() -> None:
    judged = judge(pairs((QUERY, PROSE), ("吃", "！"), (QUERY, "！？，。"), ("吃", "")), RULES.values())
    assert judged["reason"].to_list() == [None, "query_length", "content_length", "empty_side"]
    assert judged["detail"].to_list() == [None, "1 < 2", "4 < 10", "0 < 1"]
    assert judge(pairs((QUERY, "！" * 30 + "一二")), RULES.values())["detail"].item() == "0.0625 < 0.1"


def test_judge_keeps_rows_and_columns() -> None:
    frame = pairs((QUERY, PROSE), (QUERY, ""))
    judged = judge(frame, RULES.values())
    assert judged.drop("reason", "detail").equals(frame)
    assert judge(frame.clear(), RULES.values()).schema == judged.schema


@pytest.mark.parametrize("task", ["sts", "classification"])
def test_labelled_tasks_lose_only_what_is_broken(task: str) -> None:
    short = pairs(("好", "好"), ("哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈", "正面"), ("good", "体育"), task=task)
    assert judge(short, RULES.values())["reason"].null_count() == 3
    assert judge(pairs(("好", ""), ("锟斤拷", "好"), task=task), RULES.values())["reason"].to_list() == [
        "empty_side",
        "mojibake",
    ]


def test_a_passage_is_judged_by_its_text_alone() -> None:
    of_two_texts = {"empty_side", "same_sides", "title_leak"}
    for name, (kept, thrown, _) in EXAMPLES.items():
        is_judged = RULES[name].side != "query" and name not in of_two_texts
        found = judge(pairs(("", kept[1]), ("", thrown[1]), task="passage"), [RULES[name]])["reason"].to_list()
        assert found == [None, name if is_judged else None], name
    texts = [PROSE, "", "晴", "烫烫烫烫" + PROSE, "English only, and nothing else in this text."]
    reasons = judge(pairs(*(("", each) for each in texts), task="passage"), RULES.values())["reason"].to_list()
    assert reasons == [None, "positive_length", "positive_length", "mojibake", "han_ratio"]


def test_formats_decide_which_rules_apply() -> None:
    short = (QUERY, "晴天")
    assert judge(pairs(short, format="title_content"), RULES.values())["reason"].item() == "content_length"
    assert judge(pairs(short, format="question_answer"), RULES.values())["reason"].item() is None
    assert measure(pairs(short, format="question_answer"), RULES.values())["content_length"].item() is None


def test_a_chinese_question_may_have_code_for_an_answer() -> None:
    code = "def area(radius):\n    return 3.14159 * radius ** 2"
    asked = pairs(("怎么用代码算圆的面积？", code), ("How to compute an area?", code), format="prompt_response")
    assert judge(asked, RULES.values())["reason"].to_list() == [None, "han_ratio"]


def test_settings_change_thresholds_and_switch_rules_off() -> None:
    rules = select_rules({"query_length": 20, "han_ratio": False, "mojibake": None, "line_length": True})
    named = {rule.name: rule for rule in rules}
    assert named["query_length"].threshold == 20 and "han_ratio" not in named
    assert named["mojibake"].threshold == RULES["mojibake"].threshold
    assert len(rules) == len(RULES) - 1
    assert judge(pairs((QUERY, PROSE)), rules)["detail"].item() == "10 < 20"
    assert {rule.name: rule.threshold for rule in select_rules({"han_ratio": 0})}["han_ratio"] == 0  # no off switch


def test_code_and_logs_may_repeat_themselves() -> None:
    log = "\n".join(
        f"Jan  1 10:00:{second:02d} host kernel: usb 1-1: new device found, id=1d6b" for second in range(30)
    )
    article = "用 dmesg 命令查看内核日志，输出如下：\n" + log + "\n" + log
    prose = (PROSE + "\n") * 3
    for rule in (RULES["repeated_ngrams"], RULES["line_repetition"]):
        judged = judge(pairs((QUERY, article), (QUERY, prose)), [rule])
        assert judged["reason"].to_list() == [None, rule.name]


def test_short_lines_are_no_fault_of_a_list_that_was_asked_for() -> None:
    shopping = "\n".join(f"- 第{number}种水果" for number in range(40))
    for form, reason in (("title_content", "line_length"), ("prompt_response", None)):
        assert judge(pairs((QUERY, shopping), format=form), [RULES["line_length"]])["reason"].item() == reason


def test_no_rules_keep_all() -> None:
    judged = judge(pairs((QUERY, ""), ("", "")), select_rules(dict.fromkeys(RULES, False)))
    assert judged["reason"].to_list() == judged["detail"].to_list() == [None, None]


def test_classifiers_are_the_last_rules() -> None:
    advert = ClassifierSettings(model="anywhere", label="clean", min=0.7, side="query", tasks=["pretrain", "sts"])
    *_, blocked, rule = select_rules({}, words=["赌场"], classifiers={"advert": advert})
    assert (blocked.name, rule.name, rule.side, rule.bound, rule.threshold) == (
        "blocked_words",
        "advert",
        "query",
        "min",
        0.7,
    )
    assert rule.tasks == ("pretrain", "sts")
    assert select_rules({"advert": 0.9}, classifiers={"advert": advert})[-1].threshold == 0.9
    assert select_rules({"advert": False}, classifiers={"advert": advert})[-1].name == "boilerplate"
    with pytest.raises(RecipeError, match="'advert'"):
        select_rules({"adverd": 0.9}, classifiers={"advert": advert})
    with pytest.raises(RecipeError, match="a classifier can't be called 'mojibake'"):
        select_rules({}, classifiers={"mojibake": advert})


def test_first_failing_is_of_the_values_alone() -> None:
    rules = select_rules({}, classifiers={"advert": ClassifierSettings(model="anywhere", label=0)})[-1:]
    found = find_first_failing(pl.DataFrame({"advert": [0.123456, 0.5, None, 0.0]}), rules)
    assert found.rows() == [("advert", "0.1235 < 0.5"), (None, None), (None, None), ("advert", "0 < 0.5")]


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'han_rato'.*'han_ratio'"):
        select_rules({"han_rato": 0.5})


def test_blocked_words() -> None:
    rules = select_rules({}, words=["赌场", "Casino"])
    judged = judge(pairs((QUERY, PROSE), (QUERY, PROSE + "澳门赌场，网上CASINO"), ("赌场在哪", PROSE)), rules)
    assert judged["reason"].to_list() == [None, "blocked_words", "blocked_words"]
    assert judged["detail"].to_list() == [None, "2 > 0", "1 > 0"]
    allowed = select_rules({"blocked_words": 1}, words=["赌场", "Casino"])
    assert judge(pairs(("赌场在哪", PROSE)), allowed)["reason"].item() is None


def test_blocked_words_are_found_wherever_they_stand_and_not_across_texts() -> None:
    generator = Random(0)
    texts = ["".join(generator.choices("赌场博Ab ", k=generator.randint(0, 6))) for _ in range(4_000)]
    frame = pairs(*zip(texts[::2], texts[1::2], strict=True))
    words = ["赌场", "博A", "ab b", "场博a赌"]
    (*_, rule) = select_rules({}, words=words)
    expected = [
        any(word.lower() in side.lower() for word in words for side in (query, positive))
        for query, positive in frame.select("query", "positive").iter_rows()
    ]
    found = frame.select(rule.value).to_series() > 0
    assert found.to_list() == expected
    assert (
        frame[100:200].select(rule.value).to_series().to_list()
        == frame.select(rule.value).to_series()[100:200].to_list()
    )
    assert frame[:0].select(rule.value).is_empty()


def test_blocked_domains() -> None:
    rules = select_rules({}, domains=["bad.com"])
    texts = [
        "http://bad.com",
        "见https://www.BAD.com/x?y",
        "http://bad.com.cn/",
        "http://notbad.com",
        "bad.com",
        "//bad.com:80",
    ]
    judged = judge(pairs(*((QUERY, PROSE + text) for text in texts)), rules)
    assert judged["reason"].is_not_null().to_list() == [True, True, False, False, False, True]
    assert (
        judge(pairs((QUERY, PROSE), meta='{"url": "http://a.bad.com/1"}'), rules)["reason"].item() == "blocked_domains"
    )


def test_strip_title_cuts_a_heading_only() -> None:
    title = "长江大桥"
    texts = ["长江大桥\n" + PROSE, "长江大桥：" + PROSE, "长江大桥位于南京，" + PROSE, "长江大桥\n很长", PROSE]
    stripped = strip_title(pairs(*((title, text) for text in texts)))
    assert stripped["positive"].to_list() == [PROSE, PROSE, texts[2], texts[3], PROSE]
    assert judge(stripped, RULES.values())["reason"].to_list() == [None, None, None, "content_length", None]
    questions = pairs((title, texts[0]), format="question_answer")
    assert strip_title(questions).equals(questions)
