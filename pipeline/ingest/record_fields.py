"""SQL for the fields of JSON records: the text of a field as it is written, or what it holds instead of text.

What costs time is inside CASE, which DuckDB evaluates only where it must, unlike both sides of AND.

The functions take and return SQL expressions; a field is an expression of type JSON.
"""

import json

PLACE = "_row, _file, _line"

_TEXT_PARTS = "'text', 'input_text', 'output_text'"
_TOOL_PARTS = "'tool_use', 'tool_call', 'tool_result', 'function_call', 'thinking', 'redacted_thinking', 'reasoning'"
"""Content parts that are left out, as tool calls are."""


def read_fields(*names: str) -> str:
    """Return the structure, for from_json, of an object with these fields."""
    return json.dumps(dict.fromkeys(names, "JSON"))


def text_of(field: str) -> str:
    """Return the text of a field: of a string, a number or a boolean, or of content parts, joined by line breaks.

    Content parts are objects such as `{"type": "text", "text": …}`. The line break is what llama.cpp joins them with
    (common/chat.cpp); chat templates of transformers put nothing between them.
    """
    return f"""CASE {begin(field)} WHEN '[' THEN array_to_string({field} ->> '$[*].text', chr(10))
        WHEN '{{' THEN {field} ->> '$.text' ELSE {field} ->> '$' END"""


def find_fault(name: str, field: str) -> str:
    """Return a sentence about a field that holds something other than text, else NULL.

    Args:
        name: The field's name: an SQL expression too, such as `'output'`.
    """
    types = f"({field} ->> '$[*].type')"
    strange = f"list_filter({types}, lambda type: type NOT IN ({_TEXT_PARTS}, {_TOOL_PARTS}))"
    tools = f"list_filter({types}, lambda type: type IN ({_TOOL_PARTS}))"
    return f"""{name} || ': expected text, found ' || CASE {begin(field)}
        WHEN '{{' THEN CASE WHEN json_type({field}, '$.text') = 'VARCHAR'
            AND coalesce({field} ->> '$.type', 'text') IN ({_TEXT_PARTS}) THEN NULL ELSE 'an object' END
        WHEN '[' THEN CASE WHEN len({strange}) > 0 THEN 'a part of type ' || {strange}[1]
            WHEN NOT list_has_all(['VARCHAR'], json_type({field}, '$[*].text'))
                OR json_array_length({field}) <> len({field} -> '$[*].text') + len({tools}) THEN 'a list' END
        END"""


def items_of(field: str) -> str:
    """Return the elements of a field that holds a list; another value is the only element, and NULL gives none."""
    return f"""CASE WHEN {field} IS NULL THEN [] WHEN {begin(field)} = '[' THEN from_json({field}, '["JSON"]')
        ELSE [{field}] END"""


def parse_list(field: str, types: str) -> str:
    """Return a field as it is or, if it is a string of JSON that holds a list of these types, that list."""
    parsed = f"TRY_CAST({field} ->> '$' AS JSON)"
    return f"""CASE WHEN left(CAST({field} AS VARCHAR), 2) = '"[' THEN
        CASE WHEN json_array_length({parsed}) = 0 OR json_type({parsed}, '$[0]') IN ({types}) THEN {parsed}
        ELSE {field} END ELSE {field} END"""


def find_mark(value: bool, *names: str, row: str = "") -> str:
    """Return a sentence about the first of these fields that holds this value, else NULL.

    Args:
        value: Is also written as 0 or 1, or as a string.
        row: The struct that holds the fields, with a dot after it.
    """
    fields = {name: f"{row}{name}" for name in names}
    cases = " ".join(
        f"WHEN lower({field} ->> '$') = '{str(value).lower()}' OR TRY_CAST({field} ->> '$' AS DOUBLE) = {int(value)}"
        f" THEN '`{name}` is ' || ({field} ->> '$')"
        for name, field in fields.items()
    )
    return f"CASE WHEN {first_of(*fields.values())} IS NOT NULL THEN CASE {cases} END END"


def is_filled(field: str) -> str:
    """Return whether a field holds anything: not null, an empty string, list or object."""
    return f"coalesce(CAST({field} AS VARCHAR) NOT IN ('\"\"', '[]', '{{}}', '[null]'), false)"


def refuse(**details: str) -> str:
    """Return the columns `_reason` and `_detail` from the detail for each reason; the first that is not NULL counts."""
    cases = " ".join(f"WHEN {detail} IS NOT NULL THEN '{reason}'" for reason, detail in details.items())
    return f"CASE {cases} END AS _reason, {first_of(*details.values())} AS _detail"


def name_type(field: str) -> str:
    """Return what a field holds, for a sentence."""
    return f"""CASE {begin(field)} WHEN '[' THEN 'a list' WHEN '{{' THEN 'an object' WHEN '"' THEN 'a string'
        ELSE {text_of(field)} END"""


def begin(field: str) -> str:
    """Return the first character of a field, which tells its type."""
    return f"left(CAST({field} AS VARCHAR), 1)"


def first_of(*expressions: str) -> str:
    """Return the first of these that is not NULL."""
    return f"coalesce({', '.join(expressions)})"
