"""The building blocks of a page: escaped texts, facts, and tables with thin bars. None grows with a corpus."""

from collections.abc import Mapping, Sequence
from html import escape

ROWS = 100
"""The most rows of a table, and NAME the most characters of a name: chosen here, so that a page is under 2 MB."""
NAME = 60

# Control characters are shown as Unicode's pictures of them. Characters that HTML forbids are shown as U+FFFD, and so
# are those that would reorder the text around them.
_VISIBLE = {code: 0x2400 + code for code in range(32)} | {0x7F: 0x2421}
_VISIBLE |= dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)
_VISIBLE |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)


def escape_text(text: str, most: int = NAME) -> str:
    """Escape untrusted text for HTML, and shorten it to `most` characters."""
    return escape((text if len(text) <= most else text[:most] + "…").translate(_VISIBLE))


def format_percent(part: int, whole: int) -> str:
    """Format a share as a percentage with one decimal; only exact 0 and 100% are shown as such."""
    share = part / whole if whole else 0.0
    if 0 < share < 0.0005:
        return "&lt;0.1%"
    return "&gt;99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def format_size(count: float) -> str:
    """Format bytes in decimal units."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.95 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:,.1f} {units[0]}"


def render_bar(part: int, whole: int) -> str:
    """Render a share as a thin bar."""
    return f'<i class="bar" style="--share:{min(part / whole, 1) if whole else 0:.2%}"></i>'


def render_section(name: str, title: str, body: str) -> str:
    """Render a section that links lead to by its name; an empty one is left out."""
    return f'<section id="{name}"><h2>{title}</h2>{body}</section>' if body else ""


def render_facts(facts: Mapping[str, Mapping[str, str]]) -> str:
    """Render the facts of each corpus: names, each with its value (HTML). One corpus is a row, several a table."""
    if len(facts) == 1:
        (values,) = facts.values()
        cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in values.items())
        return f'<dl class="facts">{cells}</dl>'
    names = dict.fromkeys(name for values in facts.values() for name in values)
    rows = [[name, *(values.get(name, "–") for values in facts.values())] for name in names]
    return render_table(["", *map(escape_text, facts)], rows)


def render_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a table of numbers, cut to ROWS rows. Cells are HTML; the first cell of a row is its header."""
    heads = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows[:ROWS]
    )
    more = f'<p class="note">The first {ROWS} of {len(rows):,} are shown.</p>' if len(rows) > ROWS else ""
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>{more}'
