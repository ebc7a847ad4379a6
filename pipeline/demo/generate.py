"""Write a small, dirty folder of Chinese sources, for `conan demo` and the tests.

It imitates crawls and exports in miniature: many file formats, two encodings, broken files and lines, and texts that a
filter should reject, with a count of each kind. The texts come from world.py.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable
from datetime import date, timedelta
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import zstandard

from .words import ADVERTS, EDITORS, ENGLISH, PRODUCTS, REFUSALS, REVIEW_FORMS, REVIEWS, VERDICTS
from .world import Fact, asked, draw, facts, fill, near_misses, neighbour, passage, query, statement_pair

# With fewer rows, a source has too few texts for every kind of damage; with more, the world runs out of facts.
MIN_ROWS, MAX_ROWS = 300, 4000
QUESTIONS, NEAR_MISSES, STS_TESTS = 120, 2, 150
# One question of four in triples.jsonl has an answer among the posts that no label names.
UNLABELLED_EVERY = 4
BOILERPLATE = "更多内容请关注本台客户端。"

Pair = tuple[str, str]
Damage = Callable[[Random, Pair], Pair]
Planted = dict[str, int]


# Damage: each function returns a pair as a crawler or a careless export would have damaged it.


def mobile_number(rng: Random) -> str:
    """Return a well-formed mobile number, always from the same made-up block."""
    return f"1990000{rng.randrange(10_000):04d}"


def id_card(rng: Random) -> str:
    """Return an ID-card number of someone born in 1900, with a valid check digit (GB 11643-1999, ISO 7064 MOD 11-2)."""
    birth = date(1900, 1, 1) + timedelta(days=rng.randrange(365))
    body = f"110101{birth:%Y%m%d}{rng.randrange(1000):03d}"
    remainder = sum(int(digit) * 2 ** (17 - place) for place, digit in enumerate(body)) % 11
    return body + "10X98765432"[remainder]


def mojibake(rng: Random, pair: Pair) -> Pair:
    """Decode the UTF-8 text as GBK or Latin-1."""
    title, text = pair
    return title, text.encode().decode(rng.choice(["gbk", "latin-1"]), errors="replace")


def advert(rng: Random, pair: Pair) -> Pair:
    """Replace the text with an advert that has a telephone number."""
    text = fill(rng.choice(ADVERTS).replace("{mobile}", mobile_number(rng)), draw(rng), asked)
    return pair[0], text


def too_long(rng: Random, pair: Pair) -> Pair:
    """Replace the text with a hundred passages, about 10,000 characters."""
    return pair[0], "\n".join(passage(rng, draw(rng), "web") for _ in range(100))


TEXT_DAMAGES: dict[str, Damage] = {
    "mojibake": mojibake,
    "adverts": advert,
    "mobile_numbers": lambda rng, pair: (pair[0], f"{pair[1]}联系电话：{mobile_number(rng)}。"),
    "emails": lambda rng, pair: (pair[0], f"{pair[1]}来信请寄 reader{rng.randrange(1000)}@example.com 。"),
    "id_cards": lambda rng, pair: (pair[0], f"{pair[1]}登记人身份证号：{id_card(rng)}。"),
    "too_short": lambda _, pair: (pair[0], "嗯"),
    "too_long": too_long,
    "too_latin": lambda rng, pair: (pair[0], " ".join(rng.choices(ENGLISH.split(), k=40))),
    "symbols": lambda rng, pair: (pair[0], "".join(rng.choices("★☆◆◇■□●○※→↓～｜＝＊", k=80))),
    "repeated_ngrams": lambda _, pair: (pair[0], pair[1][:24] * 12),
    "empty_positives": lambda _, pair: (pair[0], ""),
    "query_equals_positive": lambda _, pair: (pair[0], pair[0]),
    "title_leaks": lambda _, pair: (pair[0], f"{pair[0]}\n{pair[1]}"),
}

RESPONSE_DAMAGES: dict[str, Damage] = {
    "refusals": lambda rng, pair: (pair[0], fill(rng.choice(REFUSALS), draw(rng), asked)),
    "template_slots": lambda _, pair: (f"我是{{{{name}}}}，{pair[0]}", f"你好，{{{{name}}}}！{pair[1]}"),
    "prompt_echoes": lambda _, pair: (pair[0], pair[0]),
    "numeric_answers": lambda rng, pair: (pair[0], str(rng.randrange(1000))),
}


def edit(rng: Random, pair: Pair) -> Pair:
    """Make a near-duplicate: add a signature after the text, or a word inside it."""
    title, text = pair
    if rng.random() < 0.5:
        return title, f"{text}（责任编辑：{rng.choice(EDITORS)}）"
    comma = text.index("，") + 1
    return title, text[:comma] + "其实" + text[comma:]


def spoil(rng: Random, pairs: list[Pair], damages: dict[str, Damage], planted: Planted) -> list[Pair]:
    """Damage 1.2 % of the pairs in each way, add 3.6 % exact duplicates and 3.6 % near-duplicates, and shuffle."""
    number = max(1, round(0.012 * len(pairs)))
    clean, spoiled = pairs[number * len(damages) :], []
    for position, (kind, damage) in enumerate(damages.items()):
        spoiled += [damage(rng, pair) for pair in pairs[number * position : number * (position + 1)]]
        planted[kind] = planted.get(kind, 0) + number
    originals = rng.sample(clean, 6 * number)
    copies = originals[: 3 * number] + [edit(rng, pair) for pair in originals[3 * number :]]
    for kind in ("exact_duplicates", "near_duplicates"):
        planted[kind] = planted.get(kind, 0) + 3 * number
    records = clean + spoiled + copies
    rng.shuffle(records)
    return records


# Files: one function per format.


def to_json(record: Any) -> str:
    """Dump to one line of JSON, with Chinese unescaped."""
    return json.dumps(record, ensure_ascii=False)


def write(path: Path, data: str | bytes, encoding: str = "utf-8") -> None:
    """Write text or bytes, compressed if the extension is .gz or .zst."""
    content = data.encode(encoding) if isinstance(data, str) else data
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    elif path.suffix == ".zst":
        content = zstandard.compress(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_lines(path: Path, records: list[Any]) -> None:
    """Write JSON lines."""
    write(path, "".join(to_json(record) + "\n" for record in records))


def write_table(path: Path, rows: list[tuple[Any, ...]], encoding: str = "utf-8") -> None:
    """Write CSV as spreadsheets export it: CRLF, and quotes where needed."""
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    write(path, buffer.getvalue(), encoding)


def paragraphs(text: str, line_end: str) -> str:
    """Wrap each sentence in an HTML paragraph."""
    return line_end.join(f"<p>&nbsp;&nbsp;{sentence}</p>" for sentence in re.findall("[^。]+。?", text))


def write_news(folder: Path, records: list[Pair], lost: list[Pair], planted: Planted) -> None:
    """Write broadcasts: a JSON file per month, four months as compressed JSON lines, and a truncated file."""

    def broadcast(month: int, items: list[Pair]) -> dict[str, Any]:
        videos = [
            {"video_title": f"[视频]{title}", "video_detail": {"content": paragraphs(text, "\r\n")}}
            for title, text in items
        ]
        return {"date": f"2024-{month:02d}", "videoList": videos}

    planted["boilerplate"] = sum(text.endswith(BOILERPLATE) for _, text in records)
    for month in range(1, 9):
        write(folder / f"2024-{month:02d}.json", json.dumps(broadcast(month, records[month::12]), indent=1))
    archive = [broadcast(month, records[month % 12 :: 12]) for month in range(9, 13)]
    write_lines(folder / "archive.jsonl.zst", archive)
    cut = folder / "2024-13.json.gz"
    write(cut, json.dumps(broadcast(13, lost)))  # in ASCII, so that the cut splits no character
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    archived = sum(len(month["videoList"]) for month in archive)
    planted |= {
        "truncated_files": 1,
        "records/news": len(records) - archived,
        "records/news_archive": archived,
    }


def write_chats(path: Path, rng: Random, opening_facts: list[Fact], planted: Planted) -> None:
    """Write ShareGPT conversations of two turns; in the middle, a truncated line and one that ends in NUL bytes."""

    def conversation(fact: Fact) -> str:
        other = neighbour(rng, fact, "place")
        second = other._replace(words=other.words | {"year": fact.words["year"]})
        values = [
            ("human", query(rng, fact, "question")),
            ("gpt", passage(rng, fact, "answer")),
            ("human", f"那{second.words['entity'].asked}呢？怎么会{second.words['change'].asked}？"),
            ("gpt", passage(rng, second, "answer")),
        ]
        return to_json({"conversations": [{"from": role, "value": value} for role, value in values]})

    *lines, cut, zeroed = map(conversation, opening_facts)
    middle = len(lines) // 2
    lines[middle:middle] = [cut[: len(cut) // 2], zeroed[: len(zeroed) // 2] + "\0" * 64]
    planted |= {"broken_lines": 1, "nul_lines": 1, "records/chats": len(lines) - 2}
    write(path, "\n".join(lines) + "\n")


def write_wiki(folder: Path, records: list[Pair], planted: Planted) -> None:
    """Write a Markdown file per article, and an empty one."""
    for number, (title, text) in enumerate(records):
        lead, rest = text.split("。", 1)
        write(folder / f"{number:03d}.md", f"# {title}\n\n**{lead}。**\n\n## 详情\n\n- {rest}\n")
    write(folder / "empty.md", "")
    planted["empty_files"] = 1


def write_reviews(path: Path, rng: Random, rows: int, planted: Planted) -> None:
    """Write reviews with their class; some have an unclosed double quote."""
    combinations = [
        (label, phrase, product)
        for label, phrases in REVIEWS.items()
        for phrase in phrases.split()
        for product in PRODUCTS.split()
    ]
    lines = ["label\ttext_a"]
    for label, phrase, product in rng.sample(combinations, rows):
        slots = {"phrase": phrase, "product": product, "verdict": rng.choice(VERDICTS.split())}
        lines.append(f"{label}\t{rng.choice(REVIEW_FORMS).format(**slots, number=rng.randint(2, 30))}")
    planted["stray_quotes"] = sum(line.count('"') % 2 for line in lines)
    write(path, "\n".join(lines) + "\n")


def write_exports(folder: Path, records: dict[str, list[Pair]]) -> None:
    """Write the sources that are one file: CSV in GB18030, TSV without a header, JSON lines and arrays."""
    answers = [(title, text.replace("。", "。\n", 1)) for title, text in records["community_qa"]]
    write_table(folder / "qa.csv", [("title", "answer"), *answers], "gb18030")
    posts = [
        {"url": f"https://www.example.com/p/{number}", "title": title, "html": paragraphs(text, "\n")}
        for number, (title, text) in enumerate(records["web_posts"])
    ]
    write_lines(folder / "posts.jsonl.gz", posts)
    titles = [{"topic": f"#{title}#", "post": text} for title, text in records["social_posts"]]
    write_lines(folder / "titles.jsonl", titles)
    write(folder / "papers.tsv", "".join(f"{title}\t{text}\n" for title, text in records["papers"]))
    instructions = [
        {"instruction": prompt, "input": "", "output": response} for prompt, response in records["instructions"]
    ]
    write(folder / "instructions.json", json.dumps(instructions, ensure_ascii=False, indent=1))
    generated = [
        {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]}
        for prompt, response in records["generated"]
    ]
    write_lines(folder / "generated.jsonl", generated)


def write_triples(path: Path, rng: Random, told: list[Fact]) -> list[dict[str, Any]]:
    """Write questions, each with one or two answers and two wrong ones about anything else; return them."""
    triples: list[dict[str, Any]] = [
        {
            "query": query(rng, fact, "question"),
            "pos": [passage(rng, fact, style) for style in ("answer", "web")[: rng.randint(1, 2)]],
            "neg": [passage(rng, draw(rng), "answer") for _ in range(2)],
        }
        for fact in told
    ]
    write_lines(path, triples)
    return triples


def write_scores(path: Path, triples: list[dict[str, Any]], unlabelled: list[str]) -> None:
    """Write what a teacher says of some questions: their answers, labelled or not, are better than the wrong ones."""
    scores = [
        {"query": asked["query"], "passage": text, "score": score}
        for asked, answer in zip(triples, unlabelled, strict=True)
        for score, texts in ((0.9, [*asked["pos"], answer]), (0.1, asked["neg"]))
        for text in texts
    ]
    write_lines(path, scores)


def write_sts(path: Path, rng: Random, rows: int, held_out: bool, encoding: str) -> None:
    """Write sentence pairs with scores from 0 to 5."""
    scored = [statement_pair(rng, held_out) for _ in range(rows)]
    write_table(path, [("sentence1", "sentence2", "score"), *scored], encoding)


def write_evaluation(folder: Path, seed: int) -> None:
    """Write evaluation sets: questions, near-miss passages, scored sentence pairs; all from held-out combinations."""
    rng = Random(f"evaluation {seed}")

    def records(told: list[Fact]) -> list[dict[str, Any]]:
        return [{"query": query(rng, one, "question"), "pos": [passage(rng, one, "answer")], "neg": []} for one in told]

    told = list(islice(facts(rng, held_out=True), QUESTIONS))
    write_lines(folder / "questions.jsonl", records(told))
    write_lines(folder / "passages.jsonl", records(near_misses(rng, told, NEAR_MISSES)))
    write_sts(folder / "sts.csv", rng, STS_TESTS, held_out=True, encoding="utf-8")


def write_sample(folder: Path, rows: int = 1200, seed: int = 0) -> Planted:
    """Write the sources and the evaluation sets that recipes/demo.yaml reads; equal seeds give equal bytes.

    `rows` is the number of records before duplicates are added; the size of the evaluation sets does not depend on it.
    Other files in the folder are left alone. Returns counts of what was planted: by kind of damage, and, as
    `records/SOURCE`, the records (rows, lines, news items, Markdown files) that a correct reader finds in a source,
    including bad texts and duplicates. Raises ValueError if `rows` is outside 300 to 4000.
    """
    if not MIN_ROWS <= rows <= MAX_ROWS:
        raise ValueError(f"rows must be between {MIN_ROWS} and {MAX_ROWS}, got {rows}")
    rng = Random(seed)
    planted: Planted = {}
    fresh = facts(rng)

    def take(share: float) -> list[Fact]:
        return list(islice(fresh, round(share * rows)))

    def pairs(share: float, asks: str, tells: str) -> list[Pair]:
        return [(query(rng, fact, asks), passage(rng, fact, tells)) for fact in take(share)]

    news = [(title, text + BOILERPLATE if rng.random() < 0.3 else text) for title, text in pairs(0.18, "title", "news")]
    records = {
        "news": spoil(rng, news, TEXT_DAMAGES, planted),
        "community_qa": spoil(rng, pairs(0.14, "question", "answer"), TEXT_DAMAGES, planted),
        "web_posts": spoil(rng, pairs(0.12, "title", "web"), TEXT_DAMAGES, planted),
        "social_posts": spoil(rng, pairs(0.10, "title", "social"), TEXT_DAMAGES, planted),
        "papers": spoil(rng, pairs(0.07, "paper", "paper"), {}, planted),
        "instructions": spoil(rng, pairs(0.09, "instruction", "answer"), RESPONSE_DAMAGES, planted),
        "generated": spoil(rng, pairs(0.07, "instruction", "web"), RESPONSE_DAMAGES, planted),
        "wiki": pairs(0.05, "title", "paper"),
    }
    triples, reviews, scored = take(0.08), round(0.08 * rows), round(0.10 * rows)

    other = Random(f"unlabelled {seed}")
    posts = [(query(other, fact, "title"), passage(other, fact, "social")) for fact in triples[::UNLABELLED_EVERY]]
    records["social_posts"] += posts
    planted["unlabelled_answers"] = len(posts)

    write_news(folder / "news", records["news"], pairs(0.01, "title", "news"), planted)
    write_exports(folder, records)
    write_wiki(folder / "wiki", records["wiki"], planted)
    write_chats(folder / "chats.jsonl", rng, take(0.03), planted)
    asked_about = write_triples(folder / "triples.jsonl", rng, triples)
    write_scores(folder / "scores.jsonl", asked_about[::UNLABELLED_EVERY], [text for _, text in posts])
    write_reviews(folder / "reviews.tsv", rng, reviews, planted)
    write_sts(folder / "sts.csv", rng, scored, held_out=False, encoding="utf-8-sig")
    write_evaluation(folder / "evaluation", seed)
    sizes = {source: len(written) for source, written in records.items() if source != "news"}
    sizes |= {"triples": len(triples), "reviews": reviews, "sts": scored}
    return planted | {f"records/{source}": size for source, size in sizes.items()}
