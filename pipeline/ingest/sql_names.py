"""Find, and replace, the names of columns in a recipe's SQL."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import duckdb

from ...schemas.source_settings import Source

_NOT_COLUMNS_AFTER = (".", "as", "from", "join")
_SORTING = ("list_max", "list_min", "list_sort", "list_reverse_sort", "list_grade", "greatest", "least", "max", "min")
_WHOLE_ROWS = ("columns", "pivot", "unpivot")
_NOT_COLUMNS_BEFORE = (".", "[", "(", ":", ":=")
_BEFORE_VALUES = ("{", "[", "(", ",", ":", ":=", "then", "else")
_AFTER_VALUES = ("}", "]", ")", ",", "when", "else", "end")
_PASSING = ("map", "coalesce", "ifnull", "struct_pack", "json_object", "list_value", "to_json")  # functions


def find_names(source: Source) -> set[str] | None:
    """Find the names that may be columns in a source's SQL, as they are spelled.

    Returns None if the SQL uses whole rows (`to_json(rows)`, `COLUMNS(…)`, PIVOT), and therefore every column.
    """
    parts = _list_parts(source)
    names = find_names_in(*parts)
    return None if names is None else names | {"negatives", "meta"}  # used if the recipe has no SQL for them


def find_names_in(*parts: str) -> set[str] | None:
    """Find the names that may be columns, or fields of them, in pieces of SQL; None if these use whole rows."""
    names: set[str] = set()
    for tokens in map(_tokenize, parts):
        if _uses_whole_rows(tokens):
            return None
        names.update(_list_names(tokens))
    return names


def uses_column(source: Source, column: str) -> bool:
    """Whether a source's SQL names this column, apart from using whole rows."""
    return any(name.lower() == column for part in _list_parts(source) for name in _list_names(_tokenize(part)))


def _list_parts(source: Source) -> list[str]:
    parts = (source.select, source.where, source.query, source.positive, source.negatives, source.label, source.meta)
    return [f"FROM {source.from_ or 'rows'}", *filter(None, parts)]


def _uses_whole_rows(tokens: Sequence["_Token"]) -> bool:
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        if token.word == "rows":
            is_table = before is not None and before.word in ("from", "join")
            has_alias = after is not None and (after.word == "as" or after.is_identifier)
            if has_alias or not (is_table or (after is not None and after.word == ".")):
                return True
        if token.word in _WHOLE_ROWS:
            return True
    return False


def _list_names(tokens: Sequence["_Token"]) -> Iterator[str]:
    """Yield the names that may be columns or fields: not those of functions, types (`::JSON`, `AS JSON`), aliases."""
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        is_type = before is not None and before.word in ("as", "::")
        is_function = after is not None and after.word == "("
        if token.is_name and not is_type and not is_function:
            yield _unquote(token.text)
        elif token.kind == duckdb.token_type.string_const and after and after.text in ("]", ")"):
            yield token.text[1:-1]  # may be a field, as in `video['title']`, `struct_extract(video, 'title')`


def replace_columns(
    sql: str, columns: Collection[str], template: str, values: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Replace columns in an expression where they are used whole, as `n` but not `n.field` or `n[1]`.

    Args:
        sql: The expression.
        columns: Names to replace, ignoring case.
        template: What to put in their place; `{}` is the column.
        values: Other templates, by lower-case names of columns, for places where the SQL only passes on the column or
            its field: `{'a': n, 'b': n.field}`.
    """
    wanted = {column.lower() for column in columns}
    tokens = _tokenize(sql)
    passing: list[bool] = []  # for each open bracket, whether it only passes on what is in it
    parts: list[str] = []
    end = 0
    for place, token in enumerate(tokens):
        before, after = tokens[place - 1] if place else None, tokens[place + 1] if place + 1 < len(tokens) else None
        name = _unquote(token.text).lower() if token.is_name else ""
        is_whole = (not before or before.word not in _NOT_COLUMNS_AFTER) and (
            not after or after.word not in _NOT_COLUMNS_BEFORE
        )
        chosen = "{}"
        if name in values and all(passing) and _is_value(tokens, place):
            chosen = values[name]
        elif name in wanted and is_whole:
            chosen = template
        parts += [sql[end : token.begin], chosen.format(token.text)]
        end = token.begin + len(token.text)
        if token.text in ("(", "[", "{"):
            passing.append(not before or before.word in (*_BEFORE_VALUES, *_PASSING))
        elif token.text in (")", "]", "}") and passing:
            passing.pop()
    return "".join([*parts, sql[end:]])


def compares(sql: str) -> bool:
    """Whether an expression compares or sorts values, other than with constants: texts of numbers do so by letters."""
    tokens = _tokenize(sql)
    constants = (duckdb.token_type.numeric_const, duckdb.token_type.string_const)
    return any(
        (token.word.startswith(_SORTING) and after.text == "(")
        or (after.text in ("<", ">", "<=", ">=") and not {token.kind, beyond.kind} & set(constants))
        for token, after, beyond in zip(tokens, tokens[1:], [*tokens[2:], *tokens[-1:]], strict=False)
    )


def _is_value(tokens: Sequence["_Token"], place: int) -> bool:
    """Whether the column at a place, or its field, is a value as it is: nothing but commas and brackets around it."""
    end = place + 1
    while end + 1 < len(tokens) and tokens[end].text == "." and tokens[end + 1].is_name:
        end += 2
    return (place == 0 or tokens[place - 1].word in _BEFORE_VALUES) and (
        end == len(tokens) or tokens[end].word in _AFTER_VALUES
    )


class _Token(NamedTuple):
    text: str
    begin: int  # in characters
    kind: duckdb.token_type

    @property
    def word(self) -> str:
        return self.text.lower()

    @property
    def is_identifier(self) -> bool:
        return self.kind == duckdb.token_type.identifier

    @property
    def is_name(self) -> bool:
        """Whether it can be the name of a column; some keywords, such as `text`, can."""
        return self.kind in (duckdb.token_type.identifier, duckdb.token_type.keyword)


def _tokenize(sql: str) -> list[_Token]:
    """Split SQL into tokens, without comments."""
    data = sql.encode()
    found = duckdb.tokenize(sql)
    ends = [begin for begin, _ in found[1:]] + [len(data)]
    return [
        _Token(data[begin:end].decode().rstrip(), len(data[:begin].decode()), kind)
        for (begin, kind), end in zip(found, ends, strict=True)
        if kind != duckdb.token_type.comment
    ]


def _unquote(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
