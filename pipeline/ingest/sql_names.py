"""Find, and replace, the names of columns in a recipe's SQL."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import duckdb

from ...schemas.settings import Source

_NOT_COLUMNS_AFTER = (".", "as", "from", "join")
_WHOLE_ROWS = ("columns", "pivot", "unpivot")
_NOT_COLUMNS_BEFORE = (".", "[", "(", ":", ":=")


def find_names(source: Source) -> set[str] | None:
    """Find the names that may be columns in a source's SQL, as they are spelled.

    Returns None if the SQL uses whole rows (`to_json(rows)`, `COLUMNS(…)`, PIVOT), and therefore every column.
    """
    names: set[str] = {"negatives", "meta"}  # used if the recipe has no SQL for them
    for tokens in _tokenize_parts(source):
        if _uses_whole_rows(tokens):
            return None
        names.update(_list_names(tokens))
    return names


def uses_column(source: Source, column: str) -> bool:
    """Whether a source's SQL names this column, apart from using whole rows."""
    return any(name.lower() == column for tokens in _tokenize_parts(source) for name in _list_names(tokens))


def _tokenize_parts(source: Source) -> Iterator[list["_Token"]]:
    parts = (source.select, source.where, source.query, source.positive, source.negatives, source.label, source.meta)
    return map(_tokenize, (f"FROM {source.from_ or 'rows'}", *filter(None, parts)))


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
    """Yield the names that may be columns: not those of functions, types (`::JSON`, `AS JSON`) and aliases."""
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        is_type = before is not None and before.word in ("as", "::")
        is_function = after is not None and after.word == "("
        if token.is_name and not is_type and not is_function:
            yield _unquote(token.text)


def replace_columns(sql: str, columns: Collection[str], template: str) -> str:
    """Replace columns in an expression where they are used whole, as `n` but not `n.field` or `n[1]`.

    Args:
        sql: The expression.
        columns: Names to replace, ignoring case.
        template: What to put in their place; `{}` is the column.
    """
    wanted = {column.lower() for column in columns}
    tokens = _tokenize(sql)
    parts: list[str] = []
    end = 0
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        parts.append(sql[end : token.begin])
        is_column = token.is_name and _unquote(token.text).lower() in wanted
        is_whole = (not before or before.word not in _NOT_COLUMNS_AFTER) and (
            not after or after.word not in _NOT_COLUMNS_BEFORE
        )
        parts.append(template.format(token.text) if is_column and is_whole else token.text)
        end = token.begin + len(token.text)
    return "".join([*parts, sql[end:]])


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
