"""Well-known shapes of training data, as SQL over their records.

Each SELECT reads the table `records(_row, _file, _line, record JSON)` and returns a row for each pair in each record:
`_row, _file, _line, query, positive, negatives, meta`.
"""

_PLACE = "_row, _file, _line"

ALPACA = f"""
SELECT {_PLACE}, concat_ws(chr(10), r.instruction, nullif(r.input, '')) AS query, r.output AS positive,
       CAST([] AS VARCHAR[]) AS negatives, {{'system': r.system}} AS meta
FROM (SELECT *, from_json(record,
        '{{"instruction":"VARCHAR","input":"VARCHAR","output":"VARCHAR","system":"VARCHAR"}}') AS r FROM records)
"""

TRIPLES = f"""
SELECT {_PLACE}, r.query AS query, unnest(r.pos) AS positive, coalesce(r.neg, []) AS negatives,
       {{'teacher_scores': r.pos_scores}} AS meta
FROM (SELECT *, from_json(record,
        '{{"query":"VARCHAR","pos":["VARCHAR"],"neg":["VARCHAR"],"pos_scores":["DOUBLE"]}}') AS r FROM records)
"""

# SQuAD's nested document, and the flat list in which CMRC 2018 is published.
SQUAD = f"""
SELECT {_PLACE}, unnest(pair) FROM (SELECT {_PLACE}, unnest(pairs) AS pair FROM (
    SELECT *, CASE
        WHEN r.data IS NOT NULL THEN flatten(flatten(list_transform(r.data, lambda article:
            list_transform(article.paragraphs, lambda paragraph: list_transform(paragraph.qas, lambda qa: {{
                'query': qa.question, 'positive': paragraph.context, 'negatives': CAST([] AS VARCHAR[]),
                'meta': to_json({{'id': qa.id, 'title': article.title,
                    'answers': list_transform(qa.answers, lambda answer: answer.text)}}) }})))))
        ELSE list_transform(r.qas, lambda qa: {{
                'query': qa.query_text, 'positive': r.context_text, 'negatives': CAST([] AS VARCHAR[]),
                'meta': to_json({{'id': qa.query_id, 'title': r.title, 'answers': qa.answers}}) }})
        END AS pairs
    FROM (SELECT *, from_json(record, '{{
        "data":[{{"title":"VARCHAR","paragraphs":[{{"context":"VARCHAR","qas":[{{"id":"VARCHAR","question":"VARCHAR",
            "answers":[{{"text":"VARCHAR"}}]}}]}}]}}],
        "title":"VARCHAR","context_text":"VARCHAR",
        "qas":[{{"query_id":"VARCHAR","query_text":"VARCHAR","answers":["VARCHAR"]}}]}}') AS r FROM records)))
"""

_SYSTEM = "'system', 'developer'"
_ASSISTANT = "'assistant', 'gpt', 'chatgpt', 'bot', 'model', 'counselor'"
_TOOL = "'function_call', 'tool_call', 'function', 'tool', 'observation', 'ipython'"
_MESSAGE = '[{"from":"VARCHAR","value":"VARCHAR","role":"VARCHAR","content":"VARCHAR"}]'


def select_replies(turns: int, max_prompt_chars: int) -> str:
    """Return a SELECT that makes a pair of each of the assistant's replies and the conversation before it.

    The prompt is the last `turns` exchanges up to the reply, or fewer if they exceed `max_prompt_chars` characters; the
    very last exchange is kept however long it is. An exchange begins where the user speaks after somebody else, so a
    prompt never begins with a reply. Tool calls and their results are left out. Reads `conversations` or `messages`,
    with from/value or role/content. System prompts go to `meta`.
    """
    return f"""
SELECT {_PLACE}, unnest(pair) FROM (SELECT {_PLACE}, unnest(pairs) AS pair FROM (
    SELECT *, list_filter(list_transform(range(1, len(turns) + 1), lambda i:
        CASE WHEN turns[i].role IN ({_ASSISTANT}) AND len(begun[i]) > 0 THEN {{
            'query': array_to_string(list_transform(list_filter(turns[list_filter(begun[i], lambda beginning:
                beginning = begun[i][-1] OR until[i] - until[beginning] - 1 <= {max_prompt_chars}
                )[1]:(i - 1)], lambda turn: turn.role NOT IN ({_TOOL})), lambda turn: turn.text), chr(10)),
            'positive': turns[i].text,
            'negatives': CAST([] AS VARCHAR[]),
            'meta': to_json({{'conversation': r.id, 'turn': i, 'system': system}})
        }} END), lambda pair: pair IS NOT NULL) AS pairs
    FROM (SELECT *,
            -- For each turn: where the earlier exchanges begin that its prompt may include, and the number of
            -- characters before it, counting a line break after each turn.
            list_transform(range(1, len(turns) + 1), lambda i:
                list_filter(beginnings, lambda beginning: beginning < i)[-{turns}:]) AS begun,
            list_transform(range(1, len(turns) + 1), lambda i: coalesce(list_sum(lengths[:(i - 1)]), 0)) AS until
    FROM (SELECT *,
        list_transform(turns, lambda turn: CASE WHEN turn.role IN ({_TOOL}) THEN 0 ELSE length(turn.text) + 1 END)
            AS lengths,
        list_filter(range(1, len(turns) + 1), lambda i:
            turns[i].role NOT IN ({_ASSISTANT}, {_TOOL})
            AND (i = 1 OR turns[i - 1].role IN ({_ASSISTANT}, {_TOOL}))) AS beginnings
    FROM (
        SELECT *, list_filter(said, lambda turn: turn.role NOT IN ({_SYSTEM})) AS turns,
            coalesce(r.system, list_filter(said, lambda turn: turn.role IN ({_SYSTEM}))[1].text) AS system
        FROM (
            SELECT *, list_transform(coalesce(r.conversations, r.messages, []), lambda message: {{
                'role': lower(coalesce(message."from", message.role, '')),
                'text': coalesce(message."value", message.content, '')}}) AS said
            FROM (SELECT *, from_json(record,
                '{{"conversations":{_MESSAGE},"messages":{_MESSAGE},"system":"VARCHAR","id":"VARCHAR"}}') AS r
                FROM records)))))))
"""
