"""How a table is written, and whether it has a header, from its first lines."""

from typing import Any

import pytest
from conan_embedding.pipeline.recipe_writer.tables import NoTableError, find_table

TEXT = "退货的商品要完好，签收以后七天内联系客服。"
THREE = {"header": False, "columns": ["column1", "column2", "column3"]}
NO_HEADER = {"header": False, "columns": ["column1", "column2"]}


@pytest.mark.parametrize(
    ("ending", "lines", "read", "options"),
    [
        (".csv", ["question,answer", f"问,{TEXT}"], "csv", {}),
        (".csv", ["Frage;Antwort", f"问;{TEXT}", f"再问;{TEXT}"], "csv", {"delimiter": ";"}),
        (".csv", ["sep=;", "q;a", "问;答"], "csv", {}),
        (".csv", ['q,a', '"问,\n问",答', '又问,"答""答"'], "csv", {}),
        (".csv", ["text", TEXT, TEXT + "又"], "csv", {}),
        (".csv", [f"问,{TEXT}", f"又问,{TEXT}"], "csv", NO_HEADER),
        (".csv", [f"{TEXT},3", f"又{TEXT},1"], "csv", NO_HEADER),
        (".csv", [",split,label", "0,dev,1"], "csv", {}),
        (".tsv", ["甲组\t问题一共三个", "甲组\t问题一共四个"], "tsv", NO_HEADER),
        (".tsv", ['标题\t正文', f'"a""b"\t{TEXT}'], "tsv", {"quote": '"'}),
        (".tsv", ["标题\t正文", f'a"b\t{TEXT}'], "tsv", {}),
        (".tsv", ["问\t答", *[f"{TEXT}\t答"] * 300, f'问\t"一行\n{TEXT}"', "问\t答"], "tsv", {"quote": '"'}),
        (".tsv", ["问\t答", *[f"{TEXT}\t答"] * 300, '"一行\t答', "少一列", "问\t答"], "tsv", {}),
        (".data", [f"{TEXT}\t{TEXT}\t5", f"又{TEXT}\t{TEXT}\t3"], "tsv", THREE),
        (".txt", [f"1 ||| {TEXT}", f"2 ||| 又{TEXT}"], "tsv", {"delimiter": " ||| ", "quote": ""} | NO_HEADER),
    ],
)  # fmt: skip
def test_tables(ending: str, lines: list[str], read: str, options: dict[str, Any]) -> None:
    assert find_table("\n".join([*lines, ""]), ending) == (read, options)


@pytest.mark.parametrize(
    ("ending", "lines"), [(".txt", [TEXT, "甲，乙"]), (".txt", ["a, b", "c, d"]), ("", ["a\tb", TEXT])]
)
def test_prose_is_no_table(ending: str, lines: list[str]) -> None:
    with pytest.raises(NoTableError):
        find_table("\n".join([*lines, ""]), ending)
