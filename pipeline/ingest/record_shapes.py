"""Well-known shapes of training data for retrieval, as SQL over their records; chat_shapes.py has those of chats.

Each SELECT reads the table `records(_row, _file, _line, record JSON)` and returns a row for each pair in each record:
`_row, _file, _line, query, positive, negatives, meta, _reason, _detail`. The last two say why a row is refused, and are
NULL for a pair. Parameters of lambdas must not have the names of columns, which DuckDB prefers.
"""

from .record_fields import (
    PLACE,
    find_fault,
    find_mark,
    first_of,
    items_of,
    parse_list,
    read_fields,
    refuse,
    text_of,
)

_QUERIES = ("query", "anchor", "question")
_POSITIVES = (
    *("pos", "positive", "positives", "positive_passages", "positive_ctxs"),
    *("positive_messages", "answer_paragraphs", "text_pos"),
)
_NEGATIVES = (
    *("neg", "negs", "negative", "negatives", "negative_passages", "negative_ctxs", "hard_negative_ctxs"),
    *("hard_negative", "hard_negatives", "negative_messages", "text_neg"),
)
_BODIES = ("text", "content", "contents", "passage", "paragraph_text")
_OTHERS = ("messages", "text", "pos_scores", "neg_scores", "prompt", "type", "label")
_FIELDS = read_fields(*_QUERIES, *_POSITIVES, *_NEGATIVES, *_OTHERS)
_ASKED = first_of(*_QUERIES, "messages -> '$[#-1].content'", "text")
"""ms-swift has the query as the last of some messages, uniem as `text`."""


def _list_passages(field: str) -> str:
    return items_of(parse_list(field, "'VARCHAR'"))


def _read_passages(name: str, values: str) -> str:
    """Return the passages in a list of JSON values as structs of `text` and `fault`.

    A passage is text or an object with the text under one of `_BODIES`; its title, if it has one, becomes a first line.
    ms-swift has a list of one message in its place.
    """
    body = first_of(*(f"passage.{key}" for key in _BODIES), "passage.whole")
    place = f"'{name} ' || number"
    is_message = "json_type(value, '$[0]') = 'OBJECT' AND json_array_length(value) = 1"
    unwrapped = f"list_transform({values}, lambda value: CASE WHEN {is_message} THEN value -> 0 ELSE value END)"
    return f"""list_transform(list_transform({unwrapped}, lambda value:
            struct_insert(from_json(value, '{read_fields("title", *_BODIES)}'), whole := value)),
        lambda passage, number:
        {{'text': CASE WHEN passage.title IN ('""', '"-"') OR passage.title IS NULL THEN {text_of(body)}
            ELSE concat_ws(chr(10), {text_of("passage.title")}, {text_of(body)}) END,
          'fault': {first_of(find_fault(place, body), find_fault(place, "passage.title"))}}})"""


def _read_scores(field: str) -> str:
    """Return a list of finite scores; others, such as NaN, become NULL, since `meta` is JSON."""
    scores = f"""from_json({field}, '["DOUBLE"]')"""
    return f"list_transform({scores}, lambda score: CASE WHEN isfinite(score) THEN score END)"


# negative_1, negative_2, … are what sentence-transformers' mine_hard_negatives writes.
_NUMBERED_NEGATIVES = """list_transform(
        list_filter(json_keys(record), lambda key: regexp_full_match(key, 'neg(ative)?_?[0-9]+')),
        lambda key: json_extract(record, '/' || key))"""
_ALL_NEGATIVES = " || ".join(f"({_list_passages(key)})" for key in _NEGATIVES)

TRIPLES = f"""
WITH fields AS (
    SELECT {PLACE}, unnest(from_json(record, '{_FIELDS}')), {_NUMBERED_NEGATIVES} AS numbered
    FROM records
), passages AS (
    SELECT *, {_ASKED} AS asked,
        {_read_passages("positive", _list_passages(first_of(*_POSITIVES)))} AS found,
        {_read_passages("negative", f"{_ALL_NEGATIVES} || numbered")} AS rejected
    FROM fields
), pairs AS (
    SELECT *, {text_of("asked")} AS query_text, coalesce({find_fault("'query'", "asked")}, one_positive.fault,
            list_filter(list_transform(rejected, lambda one: one.fault), lambda one: one IS NOT NULL)[1]) AS fault,
        {find_mark(False, "label")} AS excluded
    FROM (SELECT *, unnest(found) AS one_positive FROM passages)
)
SELECT {PLACE}, query_text AS query, one_positive.text AS positive,
    list_transform(rejected, lambda one: one.text) AS negatives,
    {{'teacher_scores': {_read_scores("pos_scores")}, 'negative_scores': {_read_scores("neg_scores")},
      'prompt': {text_of("prompt")}, 'type': {text_of("type")}}} AS meta,
    {refuse(excluded_by_data="excluded", field_type="fault")}
FROM pairs
"""

_QA = ("question", "query_text", "id", "query_id", "qid", "answers", "is_impossible")


def _descend(value: str, key: str) -> str:
    """Return the elements of a list in an object or, if it has no such list, the object as the only element."""
    return f"""CASE WHEN json_type({value}, '{key}') = 'ARRAY' THEN from_json({value} -> '{key}', '["JSON"]')
        ELSE [{value}] END"""


_QA_META = f"""{{'id': {text_of("coalesce(id, query_id, qid)")}, 'title': {text_of("title")},
    'answers': list_transform({items_of("answered")}, lambda one:
        CASE json_type(one) WHEN 'OBJECT' THEN one ->> 'text' ELSE one ->> '$' END)}}"""
_UNANSWERED = f"""coalesce({find_mark(True, "is_impossible")},
    CASE WHEN NOT nested AND answered = '[]' THEN '`answers` is empty' END)"""
_QA_FAULT = f"""coalesce({find_fault("'question'", "asked")}, {find_fault("'context'", "context")})"""

# SQuAD's nested document, its articles or paragraphs as records, the flat rows of Hugging Face, and CMRC 2018's list.
SQUAD = f"""
WITH articles AS (
    SELECT {PLACE}, unnest({_descend("record", "data")}) AS article FROM records
), paragraphs AS (
    SELECT {PLACE}, article -> 'title' AS title, unnest({_descend("article", "paragraphs")}) AS paragraph FROM articles
), questions AS (
    SELECT {PLACE}, title, coalesce(paragraph -> 'context', paragraph -> 'context_text') AS context,
        json_exists(paragraph, 'qas') AS nested, unnest({_descend("paragraph", "qas")}) AS qa
    FROM paragraphs
), pairs AS (
    SELECT *, coalesce(question, query_text) AS asked, CASE json_type(answers) WHEN 'OBJECT' THEN answers -> 'text'
        ELSE answers END AS answered
    FROM (SELECT {PLACE}, title, context, nested, unnest(from_json(qa, '{read_fields(*_QA)}')) FROM questions)
)
SELECT {PLACE}, {text_of("asked")} AS query, {text_of("context")} AS positive, CAST([] AS VARCHAR[]) AS negatives,
    {_QA_META} AS meta, {refuse(excluded_by_data=_UNANSWERED, field_type=_QA_FAULT)}
FROM pairs WHERE nested OR asked IS NOT NULL
"""
