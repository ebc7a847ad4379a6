"""The rows of recipes/zh-real.yaml's sources in plain Python: said again without SQL and without a line of Conan's.

`sources` and `evaluation_sets` say which rows the files of each source hold, which of them `where` leaves out, and
which have no query or no positive and so must be rejected.
"""

import csv
import gzip
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

csv.field_size_limit(1 << 30)

KEPT, LEFT_OUT = "kept", "where"
"""The outcomes of a row that is a pair, and of a row that the source's `where` excludes."""


class Pair(NamedTuple):
    """Both sides as the recipe's SQL gives them, before they are normalised; None for NULL. `label` for sts only."""

    query: str | None
    positive: str | None
    label: float | None = None


Row = Pair | str
"""A pair, or the outcome of any other record: LEFT_OUT, or ingest's reason to reject it."""


class Data:
    """The files of DATA; `read` are those that were read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.read: set[str] = set()

    def texts(self, *patterns: str, encoding: str = "utf-8-sig") -> Iterator[str]:
        """The text of each file that matches. Raises FileNotFoundError if none does."""
        for pattern in patterns:
            files = sorted(self.root.glob(pattern))
            if not files:
                raise FileNotFoundError(f"{self.root / pattern}: no such file")
            for file in files:
                self.read.add(file.relative_to(self.root).as_posix())
                content = file.read_bytes()
                text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode(encoding)
                yield text.replace("\r\n", "\n")

    def lines(self, *patterns: str) -> Iterator[str]:
        """The lines that are not blank."""
        return (line for text in self.texts(*patterns) for line in text.split("\n") if line.strip())

    def documents(self, *patterns: str) -> Iterator[Any]:
        """The JSON document that each file is."""
        return map(json.loads, self.texts(*patterns))

    def elements(self, *patterns: str) -> Iterator[Any]:
        """The elements of the JSON array that each file is."""
        return chain.from_iterable(self.documents(*patterns))

    def records(self, *patterns: str) -> Iterator[Any]:
        """The JSON document that each line is."""
        return map(json.loads, self.lines(*patterns))

    def tsv(self, *patterns: str, columns: Sequence[str] = ()) -> Iterator[dict[str, str]]:
        """Lines split at tabs; quotes mean nothing. Raises ValueError at a line with another number of fields."""
        for text in self.texts(*patterns):
            lines = [line.split("\t") for line in text.split("\n") if line.strip()]
            header = columns or lines.pop(0)
            yield from (dict(zip(header, fields, strict=True)) for fields in lines)

    def csv(self, *patterns: str, encoding: str = "utf-8-sig") -> Iterator[dict[str, str]]:
        """Records as the standard library's reader finds them."""
        for text in self.texts(*patterns, encoding=encoding):
            yield from csv.DictReader(io.StringIO(text, newline=""), strict=True)


# ── shapes ────────────────────────────────────────────────────────────────────────────────────────────────


def pairs(
    records: Iterable[Any], query: str, positive: str, label: str | None = None, classes: str | None = None
) -> Iterator[Row]:
    """Two fields of each record, and its label; with `classes` the second is the number of one of them."""
    names = dict(enumerate((classes or "").split()))
    for record in records:
        second = names.get(int(record[positive])) if classes else record[positive]
        yield Pair(record[query], second, float(record[label]) if label else None)


def unnested(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows that one record gives; if there are none, it is rejected."""
    found = list(rows)
    return iter(found or ["no_pair"])


def alpaca(records: Iterable[Any]) -> Iterator[Row]:
    """The instruction and, where there is one, its input."""
    for record in records:
        yield Pair("\n".join(filter(None, (record["instruction"], record.get("input")))), record["output"])


def squad(documents: Iterable[Any]) -> Iterator[Row]:
    """A row for each question about a passage."""
    for document in documents:
        yield from unnested(Pair(question["query_text"], document["context_text"]) for question in document["qas"])


def triples(records: Iterable[Any]) -> Iterator[Row]:
    """A row for each positive of a query."""
    for record in records:
        yield from unnested(Pair(record["query"], positive) for positive in record["pos"])


ASSISTANT, TOOL = {"gpt", "assistant", "counselor"}, {"function_call", "observation"}
EXCHANGES, PROMPT_CHARACTERS = 3, 2000  # a prompt's most, if the recipe names no other


def sharegpt(records: Iterable[Any]) -> Iterator[Row]:
    """The chats in records."""
    return chats(record["conversations"] for record in records)


def chats(conversations: Iterable[Any]) -> Iterator[Row]:
    """A row for each reply to somebody."""
    return chain.from_iterable(unnested(replies(conversation)) for conversation in conversations)


def replies(conversation: Iterable[Mapping[str, str]]) -> Iterator[Row]:
    """Prompts and replies; an exchange begins where the user speaks after somebody else."""
    exchanges: list[list[str]] = []
    user_spoke = False
    for message in conversation:
        role, text = message.get("from", message.get("role")), message.get("value", message.get("content", ""))
        if role == "system":
            continue
        is_user = role not in ASSISTANT | TOOL
        if role in ASSISTANT and exchanges:
            yield Pair(prompt(exchanges), text)
        if is_user and not user_spoke:
            exchanges.append([])
        if role not in TOOL and exchanges:
            exchanges[-1].append(text)
        user_spoke = is_user


def prompt(exchanges: Sequence[Sequence[str]]) -> str:
    """The last exchanges, as many as a prompt may hold; the very last however long."""
    for count in range(EXCHANGES, 0, -1):
        text = "\n".join(turn for exchange in exchanges[-count:] for turn in exchange)
        if len(text) <= PROMPT_CHARACTERS:
            break
    return text


# ── sources that are like no other ────────────────────────────────────────────────────────────────────────

HAN = "々〇㐀-䶿一-鿿豈-﫿𠀀-𲎯"


def xwlb(data: Data, months: Iterable[int]) -> Iterator[Row]:
    """The items of each day's news, without the programme's name; some have no text."""
    for day in data.documents(*(f"xwlb_news/**/2019{month:02}*.json" for month in months)):
        yield from unnested(
            Pair(
                re.sub(r"^\s*\[视频\]\s*", "", item["video_title"]),
                re.sub(r"央视网消息\s*[（(]新闻联播[）)]：", "", item["video_detail"]["content"], count=1)
                if item.get("video_detail")
                else None,
            )
            for item in day["videoList"]
        )


def tidy(passages: Iterable[Any]) -> Iterator[Any]:
    """Passages with the first form in a wiki's language switches, without brackets that lost what they held."""
    for passage in passages:
        text = re.sub(r"-\{(?:zh-[a-z]+:)?([^{}:;]*)[^{}]*\}-", r"\1", passage["context_text"])
        text = re.sub(r"([（(])[\s，,；;、]+|[\s，,；;、]+([）)])", r"\1\2", text)
        text = re.sub(rf" ?[（(]([{HAN}]{{1,4}}[：:])?[\s：:]*[）)]", "", text)
        yield passage | {"context_text": text}


def kdconv(documents: Iterable[Any]) -> Iterator[Row]:
    """A row for each place and attribute, with all values."""
    for place, facts in chain.from_iterable(document.items() for document in documents):
        values = defaultdict(set)
        for _, attribute, value in facts:
            values[attribute].add(value)
        for attribute, answers in values.items():
            query = f"{place}的{attribute.replace('Information', '简介')}"
            asked = attribute in ("Information", "地址", "周边景点")
            yield Pair(query, "、".join(sorted(answers))) if asked else LEFT_OUT


def without_queries(rows: Iterable[Row]) -> Iterator[Row]:
    """The passages that are only searched among."""
    for row in rows:
        yield row._replace(query="") if isinstance(row, Pair) else row


def oi_wiki(texts: Iterable[str]) -> Iterator[Row]:
    """The first paragraph of prose and what follows it. Empty files have no row."""
    address = r"[^()\s]*[./#][^()\s]*(?:\([^()\s]*\)[^()\s]*)*( \"[^\"\n]*\")?"
    for text in filter(None, texts):
        # Bylines and notes, included files and tabs, marks of notes and pictures, empty fences; frames, links.
        text = re.sub(r"(?mi)^(authors?|autor|disqus|前置知识)\s*[:：].*$|^ {0,3}\[[^\]\n]+\]:.*$", "", text)
        text = re.sub(r'(?m)^.*--8<--.*$|^ *=== ".*$', "", text)
        text = re.sub(r"\[\^[^\]\n]+\]|!\[[^\]\n]*\]\([^)\n]*\)(\{[^}\n]*\})?", "", text)
        text = re.sub(r"(?m)^ *```[^\n`]*\n\s*```[ \t]*$", "", text)
        text = re.sub(r'(?m)^( *)(?:\?\?\?\+?|!!!) *\w* *"?(.*?)"?[ \t]*$', r"\1\2", text)
        text = re.sub(rf"\[([^\[\]\n]*(?:\[[^\[\]\n]*\][^\[\]\n]*)*)\]\({address}\)", r"\1", text)
        prose = (part for part in text.split("\n\n") if re.match(r"[^\W\d_]|[*“《「]", part.strip(" \n")))
        lead = next((part for part in prose if re.match(r".[^\n]*[。．.！？：:]", part.strip(" \n"))), None)
        yield Pair(lead, None if lead is None else text.partition(lead)[2])


def weibo_hot(items: Iterable[Any]) -> Iterator[Row]:
    """Titles that are a name and a sentence."""
    for item in items:
        found = re.fullmatch(rf"([{HAN}]{{2,4}})\s+([{HAN}]\S{{5,}})", item["title"].strip(" "), re.ASCII)
        yield Pair(found[1], found[2]) if found else LEFT_OUT


def lctt(texts: Iterable[str]) -> Iterator[Row]:
    """Titles, the first heading of each file, and what follows until the credits; of links their text."""
    end = r"\n[-— ]*\s*(?:via\s*[:：]|作者\s*[:：]\s*\[|译自\s*[:：]|本文由 ?\[?LCTT)"
    link = r"(?a:\B)\[([^\[\]\n]*(?:\[[^\[\]\n]*\][^\[\]\n]*)*)\](?:\([^)\n]*\)|\[[^\]\n]*\]| \[[0-9]+\])"
    for text in texts:
        heading = re.search(r"(?am)^(?:#{1,6}[ \t]+([^\n]+)|(\S[^\n]*)\n(?:=+|-{3,})[ \t]*)$", text)
        body = text[heading.end() :] if heading else text
        body = re.split(end, body, maxsplit=1)[0]
        body = re.sub(r"!\[(\\.|[^\]\\])*\](\([^)]*\)| ?\[[^\]]*\])", "", body)
        body = re.sub(r"(?m)^ {0,3}\[[^\]\n]+\]:.*$", "", body)
        yield Pair(heading and (heading[1] or heading[2]), re.sub(link, r"\1", body))


def clue_corpus_small(lines: Iterable[str]) -> Iterator[Row]:
    """First sentences and the rest of their documents."""
    for line in lines:
        found = re.match(r"(.{4,80}?[。！？!?])\s*(\S.*)$", line, re.ASCII)
        yield Pair(found[1], found[2]) if found else LEFT_OUT


def stsb_en(records: Iterable[Any]) -> Iterator[Row]:
    """English sentence pairs, the test's left out."""
    for record in records:
        pair = Pair(record["sentence1"], record["sentence2"], float(record["score"]))
        yield LEFT_OUT if record["split"] == "test" else pair


def toyhom_medical(records: Iterable[Any]) -> Iterator[Row]:
    """A title, the question if it says more, and the answer."""
    for record in records:
        says_more = record["ask"] not in ("无", record["title"])
        yield Pair(record["title"] + record["ask"] * says_more, record["answer"])


NO_ANSWER = r"(?i)(帮顶|同问|已?收到|请选择最佳答案|赞$)|(可以)?先?(到|搜索).{0,3}(qq|论坛).{0,12}$"


def egret_wenda(posts_lines: Iterable[str], threads: Iterable[str]) -> Iterator[Row]:
    """Posts and the posts that answer them, by their numbers; an answer `null` was deleted."""
    posts = dict(line.split(" +++$+++ ")[::2] for line in posts_lines)
    for line in threads:
        question, answer = (posts.get(str(number)) for number in json.loads(line.split(" +++$+++ ")[5]))
        if answer and re.match(NO_ANSWER, answer):
            yield LEFT_OUT
        else:
            yield Pair(question, None if answer == "null" else answer)


def llama_factory_dpo(records: Iterable[Any]) -> Iterator[Row]:
    """Return the user's message and the answer that was chosen."""
    for record in records:
        said = [turn["value"] for turn in record["conversations"] if turn["from"] == "human"]
        yield Pair("\n".join(said), record["chosen"]["value"])


def belle_seed(records: Iterable[Any]) -> Iterator[Row]:
    """A row for each instance of an instruction."""
    for record in records:
        yield from unnested(Pair(record["instruction"] + one["input"], one["output"]) for one in record["instances"])


CMRC, CSL, LLAMA, SFT = "cmrc2018/data/cmrc2018_", "csl/benchmark/", "llama_factory/data/", "medicalgpt/data/sft/"
STS, THUC, UER = "sohu_match_bge/examples/data/", "thucnews_titles/THUCNews/data/", "uer_datasets/"
SCORED, TITLED = ("sentence1", "sentence2", "label"), ("title", "class")
THUC_CLASSES = "财经 房产 股票 教育 科技 社会 时政 体育 游戏 娱乐"


def sources(data: Data) -> dict[str, Iterator[Row]]:
    """The recipe's sources by name; no file is read before a row is asked for."""
    return {
        "xwlb": xwlb(data, range(1, 12)),
        "thucnews": pairs(data.tsv(THUC + "dev.txt", columns=TITLED), *TITLED, classes=THUC_CLASSES),
        "sohu_match": pairs(data.records(STS + "SOHU/*.jsonl"), *SCORED),
        "cmrc2018": squad(tidy(data.elements(CMRC + "dev.json"))),
        "cmrc2018_title": pairs(tidy(data.elements(CMRC + "dev.json")), "title", "context_text"),
        "kdconv": kdconv(data.documents("kdconv/data/travel/kb_travel.json")),
        "oi_wiki": oi_wiki(data.texts("oi_wiki/docs/**/*.md")),
        "xinhua_xiehouyu": pairs(data.elements("xinhua/data/xiehouyu.json"), "riddle", "answer"),
        "chnsenticorp": pairs(
            data.tsv(UER + "datasets/chnsenticorp/train.tsv"), "text_a", "label", classes="差评 好评"
        ),
        "book_review": pairs(data.tsv(UER + "datasets/book_review/train.tsv"), "text_a", "label", classes="差评 好评"),
        "smp2020_ewect": pairs(
            data.tsv(UER + "datasets/smp2020-ewect/*/*.tsv"),
            "text_a",
            "label",
            classes="无情绪 愤怒 开心 悲伤 恐惧 惊讶",
        ),
        "cold": pairs(data.csv("cold/COLDataset/*.csv"), "TEXT", "label", classes="不冒犯 冒犯"),
        "weibo_hot": weibo_hot(data.elements("weibo_hot/raw/*.json")),
        "lctt": lctt(data.texts("lctt/published/**/*.md")),
        "clue_corpus_small": clue_corpus_small(data.lines(UER + "corpora/CLUECorpusSmall_sampled.txt")),
        "stsb_zh": pairs(
            data.tsv(STS + "STS-B/STS-B.train.data", STS + "STS-B/STS-B.valid.data", columns=SCORED), *SCORED
        ),
        "stsb_en": stsb_en(data.tsv(STS + "English-STS-B/stsbenchmark.tsv.gz")),
        "stsb_zh_triples": triples(data.records(STS + "bge_finetune_data.jsonl")),
        "snli_zh": pairs(data.records(STS + "snli_zh_50.jsonl"), "text1", "text2", "label"),
        "csl_title": pairs(data.tsv(CSL + "ts/*.tsv", columns=("task", "abstract", "title")), "title", "abstract"),
        "csl_keywords": pairs(data.tsv(CSL + "kg/*.tsv", columns=("task", "text", "keywords")), "keywords", "text"),
        "csl_category": pairs(data.tsv(CSL + "cls_ctg/*.tsv", columns=("task", "title", "class")), "title", "class"),
        "csl_discipline": pairs(data.tsv(CSL + "cls_dcp/*.tsv", columns=("task", "text", "class")), "text", "class"),
        "toyhom_medical": toyhom_medical(data.csv("toyhom_medical/*.csv", encoding="gb18030")),
        "egret_wenda": egret_wenda(
            data.lines("egret_wenda/egret_wenda_lines.txt"), data.lines("egret_wenda/egret_wenda_conversations.txt")
        ),
        "sim_webank": pairs(data.csv("sim_webank/Data/corpus/sim_webank.csv", encoding="gb18030"), *SCORED),
        "llama_factory_alpaca": alpaca(data.elements(LLAMA + "alpaca_zh_demo.json", LLAMA + "identity.json")),
        "llama_factory_dpo": llama_factory_dpo(data.elements(LLAMA + "dpo_zh_demo.json")),
        "glaive_toolcall": sharegpt(
            chain(
                data.elements(LLAMA + "glaive_toolcall_zh_demo.json"),
                data.records(SFT + "glaive_toolcall_zh_demo.jsonl"),
            )
        ),
        "medicalgpt_medical": sharegpt(data.records(SFT + "medical_sft_1K_format.jsonl")),
        "medicalgpt_sharegpt": sharegpt(data.records(SFT + "sharegpt_zh_1K_format.jsonl")),
        "better_ruozhiba": alpaca(data.elements("better_ruozhiba/ruozhiba_qa.json")),
        "ruozhiba_gpt4": alpaca(data.elements("ruozhiba_gpt4/data/*.json")),
        "smile": chats(data.documents("smile/data/*.json")),
        "belle_seed": belle_seed(data.records("belle/data/1.5M/zh_seed_tasks.json")),
        "belle_eval": pairs(data.records("belle/eval/eval_set.json"), "question", "std_answer"),
    }


def evaluation_sets(data: Data) -> dict[str, Iterator[Row]]:
    """The recipe's evaluation sets by name, with the passages that are only searched among."""
    return {
        "cmrc2018_trial": chain(
            squad(data.elements(CMRC + "trial.json")), without_queries(squad(data.elements(CMRC + "dev.json")))
        ),
        "t2rank_100": triples(data.records("t2rank_sample/example_data/t2rank_100.jsonl")),
        "xwlb_december": xwlb(data, [12]),
        "stsb_test": pairs(data.tsv(STS + "STS-B/STS-B.test.data", columns=SCORED), *SCORED),
        "thucnews_test": pairs(data.tsv(THUC + "test.txt", columns=TITLED), *TITLED, classes=THUC_CLASSES),
    }
