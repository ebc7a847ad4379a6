"""Tell from the names of columns and files what they are for, in English and in Chinese."""

import re

ROLES = {
    "question": "question questions q query queries ask inquiry anchor problem"
    " 问题 问 提问 问句 问法 咨询 查询 标准问 相似问 疑问",
    "title": "title headline subject heading caption summary 标题 题目 题名 主题 题",
    "answer": "answer answers a reply response completion output target best_answer 答案 答 回答 回复 解答 答复 标准答",
    "content": "content contents body text abstract article passage document doc paragraph context description review"
    " comment sentence post tweet 内容 正文 文本 摘要 文章 段落 详情 描述 简介 评论 评价 原文 句子 说明",
    "positive": "positive positives pos positive_passages positive_ctxs positive_messages answer_paragraphs"
    " text_pos 正例 正样本 相关文档",
    "negative": "negative negatives neg negs hard_negative hard_negatives rejected negative_passages negative_ctxs"
    " negative_messages text_neg 负例 负样本",
    "label": "label labels class category score scores similarity sim rating stars star sentiment emotion polarity gold"
    " relevance intent is_duplicate duplicate 标签 类别 分类 类型 类 得分 分数 评分 打分 相似度 情感 意图 星级",
    "instruction": "instruction prompt 指令 提示",
    "input": "input 输入",
    "other": "id ids idx index no number num url urls uri link href date time timestamp year month day created updated"
    " source author user username nickname uid guid uuid split lang language file filename path page count views likes"
    " speaker sender role"
    " md5 hash image images meta metadata version 编号 序号 链接 网址 日期 时间 来源 作者 用户 用户名 昵称 浏览量 页码",
}
"""Chosen here, from the data sets of Hugging Face, C-MTEB and of Chinese repositories: the names of a column's role."""

_ROLE_OF = {name: role for role, names in ROLES.items() for name in names.split()}
_HAN_NAMES = sorted((name for name in _ROLE_OF if not name.isascii()), key=len, reverse=True)
_FILLERS = {"text", "texts", "txt", "str", "string", "zh", "cn", "en", "raw", "clean", "name", "list", "1", "a", "0"}
"""Last parts of names that say nothing about the role, as in `question_text`, `answer_zh` and `label_name`."""

UNNAMED = "column"
"""With a number after it, the name of a column of a table without a header."""

SPLITS = {
    "train": ("train", "training", "训练", "训练集"),
    "dev": ("dev", "val", "valid", "validation", "验证", "验证集", "开发集"),
    "test": ("test", "testing", "eval", "evaluation", "trial", "测试", "测试集", "评测"),
}
"""Words in the names of a split's files: the keywords of Hugging Face `datasets` (data_files.py), `trial` of shared
tasks, and the Chinese words."""
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}

PAIRED = (("premise", "hypothesis"), ("前提", "假设"), ("sentence", "paraphrase"), ("left", "right"))
_FIRST_AND_SECOND = (("1", "2"), ("a", "b"), ("0", "1"), ("一", "二"), ("left", "right"))

CATEGORIES = {
    "academic_paper": "paper papers abstract arxiv thesis academic journal 论文 学术 摘要",
    "news": "news headline 新闻 资讯",
    "social_media": "weibo tweet tweets twitter review reviews comment comments posts reddit 微博 评论 帖子 点评",
    "llm_generated": "llm gpt gpt4 chatgpt synthetic generated distill 合成 生成",
    "knowledge_base": "wiki wikipedia baike knowledge manual manuals handbook docs policies 百科 知识 手册 说明书",
    "community_qa": "qa faq forum bbs zhihu 问答 客服 论坛",
    "web_page": "web crawl html cc warc pages 网页",
}
"""Chosen here: words in the names of files and columns that tell a category of the paper's Table 1."""


def split_name(name: str) -> list[str]:
    """Split a name into its words and numbers: `videoTitle`, `video_title` and `video-title` are the same."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|[\u4e00-\u9fff]+", name)
    return [part.lower() for part in parts]


def find_role(name: str) -> tuple[str, bool] | None:
    """Tell the role of a column by its name, and whether the whole name says so or only its last word."""
    words = split_name(name)
    if role := _ROLE_OF.get("_".join(words)):
        return role, True
    while len(words) > 1 and words[-1] in _FILLERS:
        words = words[:-1]
        if role := _ROLE_OF.get("_".join(words)):
            return role, True
    if not words:
        return None
    if words[-1].isdecimal() and len(words) > 1:
        words = words[:-1]
    known = _ROLE_OF.get(words[-1]) or next((_ROLE_OF[end] for end in _HAN_NAMES if words[-1].endswith(end)), None)
    return (known, False) if known else None


def are_first_and_second(one: str, other: str) -> bool:
    """Whether two names are those of two like columns: `sentence1` and `sentence2`, `premise` and `hypothesis`."""
    first, second = split_name(one), split_name(other)
    if first[:1] == [UNNAMED]:
        return False
    if len(first) != len(second) or not first:
        return False
    differing = [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]]
    if len(differing) != 1:
        return False
    known = _FIRST_AND_SECOND if len(first) > 1 else (*PAIRED, *_FIRST_AND_SECOND)
    return differing[0] in known or (differing[0][0][:-1] == differing[0][1][:-1] and differing[0] in _in_han(first))


def _in_han(words: list[str]) -> list[tuple[str, str]]:
    return [(f"{word[:-1]}一", f"{word[:-1]}二") for word in words] + [
        (f"{word[:-1]}甲", f"{word[:-1]}乙") for word in words
    ]


def find_split(name: str) -> tuple[str, str] | None:
    """Tell the split that a file or folder is named after, and its name without that word."""
    for found in re.finditer(r"[^\W\d_]+", name):
        word = found[0].lower()
        if word in _SPLIT_OF:
            return _SPLIT_OF[word], f"{name[: found.start()]}{name[found.end() :]}".strip("-._ ")
    return None


def find_category(*names: str) -> str | None:
    """Guess the category from names of files and columns."""
    words = {word for name in names for word in split_name(name)}
    joined = " ".join(names)
    for category, known in CATEGORIES.items():
        if any(word in words if word.isascii() else word in joined for word in known.split()):
            return category
    return None
