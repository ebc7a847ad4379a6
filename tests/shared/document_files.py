"""Write small documents: DOCX from XML, PDF from its operators."""

import io
import zipfile
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 420, 595
_W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_M = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
_TYPES = """<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Default Extension="xml" ContentType="application/xml"/>
<Override PartName="/word/document.xml"
  ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/>
<Override PartName="/word/styles.xml"
  ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.styles+xml"/></Types>"""
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_LINKS = """<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
<Relationship Id="r" Type="{}" Target="{}"/></Relationships>"""


def paragraph(text: str, style: str = "") -> str:
    named = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{named}<w:r><w:t>{escape(text)}</w:t></w:r></w:p>"


def link(text: str, anchor: str) -> str:
    return f'<w:p><w:hyperlink w:anchor="{anchor}"><w:r><w:t>{escape(text)}</w:t></w:r></w:hyperlink></w:p>'


def formula(text: str) -> str:
    return f"<w:p><m:oMathPara><m:oMath><m:r><m:t>{escape(text)}</m:t></m:r></m:oMath></m:oMathPara></w:p>"


def table(*rows: Sequence[str]) -> str:
    cells = ("".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows)
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in cells)}</w:tbl>"


def docx(*body: str, styles: Sequence[tuple[str, str, str, str]] = ()) -> bytes:
    """Return a DOCX file; styles are their id, name, parent's id and outline level (from 0; empty for none)."""
    defined = "".join(
        f'<w:style w:type="paragraph" w:styleId="{style}"><w:name w:val="{name}"/>'
        + (f'<w:basedOn w:val="{parent}"/>' if parent else "")
        + (f'<w:pPr><w:outlineLvl w:val="{level}"/></w:pPr>' if level else "")
        + "</w:style>"
        for style, name, parent, level in styles
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("[Content_Types].xml", _TYPES)
        archive.writestr("_rels/.rels", _LINKS.format(f"{_RELATIONS}/officeDocument", "word/document.xml"))
        archive.writestr("word/_rels/document.xml.rels", _LINKS.format(f"{_RELATIONS}/styles", "styles.xml"))
        archive.writestr("word/styles.xml", f"<w:styles {_W}>{defined}</w:styles>")
        archive.writestr("word/document.xml", f"<w:document {_W} {_M}><w:body>{''.join(body)}</w:body></w:document>")
    return file.getvalue()


def text(x: float, y: float, words: str, size: float = 10) -> str:
    """Return the operators for a line of text; y is its distance from the top."""
    return f"BT /F {size} Tf {x} {HEIGHT - y} Td <{words.encode('utf-16-be').hex()}> Tj ET\n"


def grid(x: float, y: float, columns: int, rows: int, width: float = 60, height: float = 20) -> str:
    """Return the operators for the rules of a table."""
    across = [f"{x} {HEIGHT - y - height * row} m {x + width * columns} {HEIGHT - y - height * row} l S\n"
              for row in range(rows + 1)]  # fmt: skip
    down = [f"{x + width * column} {HEIGHT - y} m {x + width * column} {HEIGHT - y - height * rows} l S\n"
            for column in range(columns + 1)]  # fmt: skip
    return "".join(across + down)


PICTURE = "q 100 0 0 100 50 50 cm BI /W 1 /H 1 /CS /G /BPC 8 ID x EI Q\n"


def pdf(*pages: str, outline: Sequence[str] = (), encoding: str = "UniGB-UCS2-H", encrypted: bool = False) -> bytes:
    """Return a PDF of these pages, in a font that needs no file: one of the Chinese fonts that readers bring along."""
    first = 7 + len(outline)  # the object of the first page
    kids = " ".join(f"{first + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R " + ("/Outlines 6 0 R " if outline else "") + ">>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] /MediaBox [0 0 {WIDTH} {HEIGHT}] "
        "/Resources << /Font << /F 3 0 R >> >> >>",
        f"<< /Type /Font /Subtype /Type0 /BaseFont /STSong-Light /Encoding /{encoding} /DescendantFonts [4 0 R] >>",
        "<< /Type /Font /Subtype /CIDFontType0 /BaseFont /STSong-Light /FontDescriptor 5 0 R /DW 1000 "
        "/W [1 95 500] /CIDSystemInfo << /Registry (Adobe) /Ordering (GB1) /Supplement 0 >> >>",
        "<< /Type /FontDescriptor /FontName /STSong-Light /Flags 6 /FontBBox [-25 -254 1000 880] /ItalicAngle 0 "
        "/Ascent 880 /Descent -120 /CapHeight 880 /StemV 93 >>",
        f"<< /Type /Outlines /First 7 0 R /Last {first - 1} 0 R /Count {len(outline)} >>",
        *(
            f"<< /Title <feff{title.encode('utf-16-be').hex()}> /Parent 6 0 R /Dest [{first} 0 R /Fit] "
            + (f"/Next {8 + number} 0 R " if number + 1 < len(outline) else "")
            + ">>"
            for number, title in enumerate(outline)
        ),
    ]
    for number, content in enumerate(pages):
        objects.append(f"<< /Type /Page /Parent 2 0 R /Contents {first + 2 * number + 1} 0 R >>")
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}endstream")
    body, places = "%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{each}\nendobj\n"
    locked = f"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <{'00' * 32}> /U <{'00' * 32}> >> /ID [<00> <00>]"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    return (
        f"{body}xref\n0 {len(places) + 1}\n0000000000 65535 f \n{table}trailer\n"
        f"<< /Size {len(places) + 1} /Root 1 0 R {locked if encrypted else ''} >>\nstartxref\n{len(body)}\n%%EOF\n"
    ).encode("latin-1")
