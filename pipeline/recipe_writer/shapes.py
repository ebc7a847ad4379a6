"""Decide what sampled records are: which reader makes pairs of them, or which columns are query, positive and label."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..corpus.sql import quote
from .column_roles import find_all, find_label, find_one, role_of, sql_of
from .names import are_first_and_second, find_role, find_split, split_name
from .profiles import LONGER, SIMILAR, Column, answers_within, are_alike, looks_like_score, profile
from .samples import Sample

_CHATS = ("conversations", "messages", "conversation")
_COLLECTED = "`task: pretrain` if the pairs were collected rather than judged: then they are filtered and scored"
_HOLD_SHAPES = ("json", "jsonl", "parquet")
_ITEM = "item"
"""The name that `select` gives to an element of a list."""
_ENTAILMENT = {"entailment": 1, "neutral": 0.5, "contradiction": 0, "蕴含": 1, "中立": 0.5, "矛盾": 0}


@dataclass(frozen=True)
class Shape:
    """The keys of a source besides its files, and why they are so.

    Attributes:
        why: What was seen, for a comment.
        otherwise: What else it could be, and what to write then.
    """

    read: str
    task: str
    format: str
    why: str
    otherwise: str
    select: str | None = None
    where: str | None = None
    query: str | None = None
    positive: str | None = None
    negatives: str | None = None
    label: str | None = None
    label_range: tuple[float, float] | None = None


class NoShapeError(Exception):
    """Records in which nothing to embed was found; the message says what they hold instead."""


def decide(sample: Sample) -> Shape:
    """Decide what the records of a sample are.

    The first of these that fits: a shape that a reader knows, columns by their names, a list of objects by the names in
    these, columns by their values.

    Raises:
        NoShapeError: they hold no text.
    """
    if sample.read == "documents":
        return _documents(sample)
    if sample.read == "text":
        return _passages("text", "line", "each line is a text")
    columns = [column for column in profile(sample.records) if column.values]
    if sample.read in ("html", "warc"):
        return _pairs(sample, "title", "text", "title_content", "pages have a title and a text")
    steps: list[Callable[[], Shape | None]] = [
        partial(_known_shape, sample, columns),
        partial(_by_names, sample, columns),
        partial(_in_lists, sample, columns),
        partial(_by_values, sample, columns),
    ]
    for step in steps:
        if shape := step():
            return _without_test_rows(shape, columns)
    held = ", ".join(f"{'.'.join(column.path)} ({column.kind})" for column in columns[:8])
    raise NoShapeError(f"no column holds texts: {held}")


def _without_test_rows(shape: Shape, columns: Sequence[Column]) -> Shape:
    """Leave out the rows that a column names as those of a test set."""
    for column in columns:
        tests = sorted({text for text in column.texts if column.kind == "text" and find_split(text) == ("test", "")})
        if tests and split_name(column.name)[-1:] == ["split"] and column.distinct > 1 and not shape.where:
            name, test = sql_of(column), quote(tests[0])
            return replace(
                shape,
                where=f"{name} <> {test}",
                why=f"{shape.why}; `{column.name}` says which rows are for tests, and these are left out",
                otherwise=f"{shape.otherwise}; under `evaluation:`, `where: {name} = {test}` makes a set of the others",
            )
    return shape


def _documents(sample: Sample) -> Shape:
    headed = [record for record in sample.records if record.get("headings")]
    if sample.records and 2 * len(headed) < len(sample.records):
        why = "few of the chunks have headings, which would be their queries"
        return replace(_passages("documents", None, why), otherwise="remove `task:` to take file names as queries")
    return Shape(
        "documents",
        "pretrain",
        "title_content",
        "documents, cut at their headings; the path of headings is the query",
        "`task: passage` if nobody would ask for such headings: then the chunks are only searched",
    )


def _passages(read: str, column: str | None, why: str) -> Shape:
    return Shape(
        read,
        "passage",
        "title_content",
        f"{why}, and nothing asks for it: passages to search, which no run trains on",
        "name the column of a title or question in `query:` and remove `task:`; `conan synthesize` can write queries",
        positive=column,
    )


# ── shapes that readers know ──────────────────────────────────────────────────────────────────────────────────────


def _known_shape(sample: Sample, columns: Sequence[Column]) -> Shape | None:
    if sample.read not in _HOLD_SHAPES:
        return None
    keys = {column.path[0] for column in columns}
    kinds = {column.path: column.kind for column in columns}
    first = sample.records[0]
    has_negatives = any(find_role(key) == ("negative", True) for key in keys)
    negatives = "; the rejected replies are its hard negatives" if has_negatives else ""
    task = "retrieval" if has_negatives else "pretrain"
    if "positive_messages" in keys:
        why = "ms-swift's shape: messages that end with the query, others with its positives and negatives"
        return Shape("triples", "retrieval", "question_answer", why, _COLLECTED)
    for chat in (*_CHATS, "prompt", "json"):
        if kinds.get((chat,)) == "objects" or (chat in _CHATS and isinstance(first.get(chat), str)):
            return _chat(str(first.get(chat)), task, f"`{chat}` holds the messages of a chat{negatives}")
    if ({"role", "content"} <= keys) or keys == {"from", "value"}:
        return _chat(str(first), task, "each file is a list of messages")
    asked = {"question", "query_text", "qas", "paragraphs"} & keys
    if (asked and ({"context", "context_text"} & keys or "paragraphs" in keys)) or _holds_articles(first):
        why = "SQuAD's shape: questions about a context, which is the positive"
        return Shape("squad", "retrieval", "question_answer", why, "`read: json` and SQL to pair a title and its text")
    if keys & {"instruction", "prompt"} and keys & {"output", "response", "completion", "chosen", "answer"}:
        why = f"Alpaca's shape: an instruction, perhaps with an input, and its output{negatives}"
        return Shape("alpaca", task, "prompt_response", why, "`format: question_answer` if the prompts are questions")
    return _triples(columns, keys)


def _chat(seen: str, task: str, why: str) -> Shape:
    read = "sharegpt" if "'from'" in seen or '"from"' in seen else "messages"
    return Shape(
        read, task, "prompt_response", f"{why}; each reply is a positive, what was said before it the query",
        "`options: {turns: 1}` if only the last question matters",
    )  # fmt: skip


def _holds_articles(record: object) -> bool:
    data = record.get("data") if isinstance(record, dict) else None
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and "paragraphs" in data[0]


def _triples(columns: Sequence[Column], keys: set[str]) -> Shape | None:
    queries = [column for column in columns if column.name in ("query", "anchor", "question")]
    named = [column for column in columns if find_role(column.name) == ("positive", True) and column.name.isascii()]
    positives = [column for column in columns if column.path[0] in {one.path[0] for one in named}] or [
        column for column in columns if column.path[0] in ("pos", "positive", "positives")
    ]
    if not queries or not positives or queries[0].kind != "text":
        return None
    why = f"`{queries[0].name}` with its `{positives[0].path[0]}`"
    why += ", and negatives that come with the data" if any(role_of(column) == "negative" for column in columns) else ""
    return Shape(
        "triples",
        "retrieval",
        relate(queries[0], positives[0]),
        why,
        _COLLECTED,
    )


# ── columns by their names ────────────────────────────────────────────────────────────────────────────────────────


def _by_names(sample: Sample, columns: Sequence[Column]) -> Shape | None:
    """Decide by names, which must be those of columns that can have the role."""
    if shape := _two_sentences(sample, columns):
        return shape
    question, title = find_one(columns, "question"), find_one(columns, "title")
    answer, content = find_one(columns, "answer"), find_one(columns, "content")
    instruction, extra = find_one(columns, "instruction"), find_one(columns, "input")
    positive, label = find_one(columns, "positive", lists=True), find_label(columns)
    others = [column for column in columns if column.is_prose and role_of(column) is None]
    asked = question or title
    if question and title and title.variety >= 0.5 and answer:
        both = f"concat_ws(' ', {sql_of(title)}, {sql_of(question)})"
        why = f"`{title.name}` and `{question.name}` ask together, `{answer.name}` answers"
        return _pairs(sample, both, answer, "question_answer", why, label)
    if positive and (asked or content or len(others) == 1):
        query = asked or content or others[0]
        return _with_negatives(sample, columns, query, positive)
    if question and (found := find_all(columns, "content")) and answer and answers_within(found[0], answer):
        why = f"`{question.name}` is asked about `{found[0].name}`, which holds the answer"
        return replace(_pairs(sample, question, found[0], "question_answer", why, label), task="retrieval")
    response = answer or (content if instruction or extra else None)
    if (instruction or extra) and response:
        parts = [column for column in (instruction, extra) if column]
        filled = ", ".join(f"nullif({sql_of(each)}, '')" for each in parts)
        prompt = f"concat_ws(E'\\n', {filled})" if len(parts) > 1 else sql_of(parts[0])
        why = f"`{parts[0].name}` is answered by `{response.name}`"
        return _pairs(sample, prompt, response, "prompt_response", why)
    if question and answer:
        why = f"`{question.name}` is answered by `{answer.name}`"
        return _pairs(sample, question, answer, "question_answer", why, label)
    if answer and not asked and len(rest := [*others, *([content] if content else [])]) == 1:
        return _pairs(sample, rest[0], answer, "question_answer", f"`{answer.name}` answers the only other text", label)
    if asked and content:
        kind = "question_answer" if question else "title_content"
        why = f"`{asked.name}` and the text that belongs to it, `{content.name}`"
        return _pairs(sample, asked, content, kind, why, label)
    if title and answer:
        kind = "question_answer" if title.asks else "title_content"
        return _pairs(sample, title, answer, kind, f"`{title.name}` is answered by `{answer.name}`", label)
    if question and len(others) == 1 and others[0].length > question.length:
        why = f"`{question.name}` and the only other text, which is longer"
        return _pairs(sample, question, others[0], "question_answer", why, label)
    if title and len(others) == 1 and others[0].length > SIMILAR * title.length:
        why = f"`{title.name}` and the only other text, which is longer"
        return _pairs(sample, title, others[0], "title_content", why)
    text = content or title or question or (others[0] if len(others) == 1 else None)
    if text and label and label is not text:
        return _classes(sample, text, label)
    return None


def _two_sentences(sample: Sample, columns: Sequence[Column]) -> Shape | None:
    texts = [column for column in columns if column.is_prose and role_of(column) not in ("answer", "negative", "label")]
    pairs = [
        (one, other)
        for place, one in enumerate(texts)
        for other in texts[place + 1 :]
        if are_first_and_second(one.name, other.name)
    ]
    if not pairs:
        return None
    one, other = pairs[0]
    if label := find_label(columns, classes=False):
        return _scored(sample, one, other, label)
    return replace(
        _pairs(
            sample, one, other, "input_output", f"`{one.name}` and `{other.name}` are two like texts, without a label"
        ),
        otherwise="`task: sts` and `label:` if a column says how similar they are",
    )


def _scored(sample: Sample, one: Column, other: Column, label: Column) -> Shape | None:
    """Return the shape of two sentences with a similarity, or with the classes of natural language inference."""
    name = sql_of(label)
    seen = {text.lower() for text in label.texts}
    shape = Shape("", "sts", "input_output", "", "", query=sql_of(one), positive=sql_of(other))
    two = f"`{one.name}` and `{other.name}` are two like texts"
    if seen <= _ENTAILMENT.keys():
        cases = " ".join(f"WHEN '{word}' THEN {_ENTAILMENT[word]}" for word in _ENTAILMENT if word in seen)
        why = f"{two}, `{label.name}` says whether one follows from the other"
        label_sql, otherwise = f"CASE lower({name}) {cases} END", "other numbers for the classes"
        return replace(shape, read=sample.read, why=why, otherwise=otherwise, label=label_sql)
    numbers = label.numbers
    if not numbers or min(numbers) < -1 or max(numbers) > 100:
        return None
    cast = (
        name
        if sample.read not in ("csv", "tsv") and all(isinstance(one, int | float) for one in label.values)
        else f"{name}::FLOAT"
    )
    if _is_inference(one.name, other.name) and {*numbers} <= {-1, 0, 1, 2} and 2 in numbers:
        why = f"{two} of natural language inference; labels as in SNLI: 0 entailment, 1 neutral, 2 contradiction"
        cases = f"CASE {name}::INT WHEN 0 THEN 1 WHEN 1 THEN 0.5 WHEN 2 THEN 0 END"
        return replace(shape, read=sample.read, why=why, otherwise="other numbers if 0 is contradiction", label=cases)
    high = next(top for top in (1, 5, 10, 100) if max(numbers) <= top)
    low = -1 if min(numbers) < 0 else 1 if min(numbers) >= 1 and high == 5 and len(numbers) >= 100 else 0
    why = f"{two}, `{label.name}` ({min(numbers):g} to {max(numbers):g}) says how similar they are"
    scale = None if (low, high) == (0, 1) else (low, high)
    otherwise = "another `label_range:` if the scale is another"
    if scale is None:
        otherwise = "`task: retrieval` and `where:` to take the pairs with label 1 as positives"
    return replace(shape, read=sample.read, why=why, otherwise=otherwise, label=cast, label_range=scale)


def _is_inference(one: str, other: str) -> bool:
    return {one.lower(), other.lower()} in ({"premise", "hypothesis"}, {"前提", "假设"})


def _with_negatives(sample: Sample, columns: Sequence[Column], query: Column, positive: Column) -> Shape:
    negatives = [column for column in columns if role_of(column) == "negative" and column.kind in ("text", "texts")]
    parts = [sql_of(each) if each.kind == "texts" else f"[{sql_of(each)}]" for each in negatives]
    why = f"`{query.name}` with its `{positive.name}`{', and negatives that come with the data' if negatives else ''}"
    shape = _pairs(sample, query, positive, relate(query, positive), why)
    otherwise = "`task: pretrain` if the pairs were collected rather than judged: then they are filtered and scored"
    shape = replace(shape, task="retrieval", negatives=" || ".join(parts) or None, otherwise=otherwise)
    if positive.kind == "texts":
        return replace(shape, select=f"unnest({shape.positive}) AS {_ITEM}", positive=_ITEM)
    return shape


def _classes(sample: Sample, text: Column, label: Column) -> Shape:
    name = sql_of(label)
    why = f"`{text.name}` with one of {label.distinct} classes, `{label.name}`"
    otherwise = "`task: passage` and only `positive:` if the classes don't matter"
    if label.kind == "number":
        otherwise = f"give the classes names: list_extract(['name of 0', 'name of 1'], {name}::INT + 1)"
    return Shape(
        sample.read, "classification", "input_output", why, otherwise, query=sql_of(text), positive=name
    )  # fmt: skip


def _pairs(
    sample: Sample, query: Column | str, positive: Column | str, kind: str, why: str, label: Column | None = None
) -> Shape:
    shape = Shape(
        sample.read,
        "pretrain",
        kind,
        why,
        "`task: retrieval` if people have checked the pairs: then they are neither scored nor judged as titles",
        query=query if isinstance(query, str) else sql_of(query),
        positive=positive if isinstance(positive, str) else sql_of(positive),
    )
    if label and set(label.numbers) == {0, 1}:
        return replace(
            shape,
            task="retrieval",
            where=f"{sql_of(label)}::INT = 1",
            why=f"{why}; `{label.name}` says which pairs are right",
            otherwise="without `where:`, if the label means something else",
        )
    return shape


# ── a list of objects ─────────────────────────────────────────────────────────────────────────────────────────────


def _in_lists(sample: Sample, columns: Sequence[Column]) -> Shape | None:
    """Decide by the names of fields in a list of objects, which become rows, and by those of other columns."""
    for column in columns:
        if column.kind != "objects" or len(column.path) > 2:
            continue
        items = [item for value in column.values for item in value]
        inner = [each for each in profile(items, (_ITEM,)) if each.values]
        beside = [each for each in columns if each is not column and each.kind == "text" and role_of(each) is not None]
        for around in ([*beside, *inner], inner):
            shape = _by_names(sample, around)
            if shape and f"{_ITEM}." in (shape.positive or ""):
                return replace(
                    shape, select=f"unnest({sql_of(column)}) AS {_ITEM}", why=f"in `{column.name}`, {shape.why}"
                )
    return None


# ── columns by their values ───────────────────────────────────────────────────────────────────────────────────────


def _by_values(sample: Sample, columns: Sequence[Column]) -> Shape | None:
    texts = [column for column in columns if column.is_prose and role_of(column) not in ("other", "negative")]
    classes = [column for column in columns if column.has_classes and role_of(column) != "other"]
    texts = [column for column in texts if column not in classes and column.variety >= 0.5]
    if not texts:
        return None
    scores = [column for column in columns if column.numbers and looks_like_score(column)]
    if len(texts) == 2 and scores and are_alike(*texts) and (shape := _scored(sample, texts[0], texts[1], scores[-1])):
        return shape
    if len(texts) == 1 and classes:
        return _classes(sample, texts[0], classes[-1])
    if len(texts) == 1 and texts[0].asks:
        raise NoShapeError(f"`{texts[0].name}` holds questions, and nothing there answers them")
    if len(texts) == 1:
        return _passages(sample.read, sql_of(texts[0]), f"`{texts[0].name}` is the only text")
    asking = [column for column in texts if column.asks]
    if asking and (rest := [column for column in texts if not column.asks]):
        positive = max(rest, key=lambda column: column.length)
        return _pairs(
            sample, asking[0], positive, "question_answer", f"`{asking[0].name}` asks, by its question marks and words"
        )
    short, long = min(texts, key=lambda column: column.length), max(texts, key=lambda column: column.length)
    if long.length >= LONGER * short.length:
        why = f"`{short.name}` is short (about {short.length:.0f} characters), `{long.name}` long ({long.length:.0f})"
        return _pairs(sample, short, long, "title_content", why)
    if classes:
        return _classes(sample, long, classes[-1])
    why = f"`{texts[0].name}` and `{texts[1].name}` are texts of like lengths; nothing tells which one asks"
    shape = _pairs(sample, texts[0], texts[1], "input_output", why)
    return replace(shape, otherwise="the columns the other way round, or `task: passage` with only `positive:`")


def relate(query: Column, positive: Column) -> str:
    """Guess the format of queries and positives whose names only say that they belong together."""
    return "input_output" if are_alike(query, positive) and not query.asks else "question_answer"
