"""Tell what a file is by its first bytes, since names are often wrong, and say what to do with what can't be read."""

import re
from pathlib import PurePosixPath

HEAD = 512
"""Bytes from which the kind of a file is told: a tar archive names itself at 257."""

PACKED = {
    ".gz": re.compile(rb"\x1f\x8b\x08"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # a frame of data, or one to skip
    ".bz2": re.compile(rb"BZh[1-9](\x31\x41\x59\x26\x53\x59|\x17\x72\x45\x38\x50\x90)"),
    ".xz": re.compile(rb"\xfd7zXZ\x00"),
    ".lzma": re.compile(rb"(?s)\x5d\0\0..(\xff{8}|.{4}\0{4})"),  # settings, and a size that may be unknown
    ".zip": re.compile(rb"PK(\x03\x04|\x05\x06)"),
    ".tar": re.compile(rb"(?s).{257}ustar"),
}
"""The endings of packed files, and the first bytes of each."""
_FORMATS = {
    rb"PAR1": "a Parquet file: `read: parquet`",
    rb"ARROW1": "an Arrow file: `read: hf`",
    rb"%PDF-": "a PDF file, not text",
    rb"\x89PNG|\xff\xd8\xff|GIF8[79]a": "a picture",
    rb"\{\\rtf": "an RTF document: save it as text or DOCX",
    rb"(?si)(from: .{1,99}?\n)?(subject: .{1,999}?\n)?(date: .{1,99}?\n)?"
    rb"mime-version: 1\.0\s+content-type: multipart/related": "a web page saved as MHTML: save it as HTML",
    rb"Obj\x01|ORC\n[\x00-\x1f]": "an Avro or ORC file: convert it to Parquet",
    rb"\x93NUMPY|\x89HDF\r\n|\x80[\x02-\x05]": "arrays or objects of Python (NumPy, HDF5, pickle): write them as JSONL",
    rb"\xff\x06\0\0sNaPpY": "compressed with snappy, which can't be read: unpack it",
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Excel or Word file of the old kind: save it as CSV or text",
    rb"SQLite format 3\x00": "an SQLite database: export its tables as CSV",
    rb"(?s).{257}ustar": "a tar archive that is compressed: unpack it with `tar xf`, or recompress only its files",
    rb"\x1f\x8b\x08|\x28\xb5\x2f\xfd|BZh[1-9]1AY|\xfd7zXZ\x00|PK\x03\x04": "packed twice: unpack it once",
    rb"\x04\x22\x4d\x18": "compressed with lz4, which can't be read: `lz4 -d` it",
    rb"\x1f\x9d": "compressed with `compress`, which can't be read: `gzip -d` it",
    rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07": "a 7z or rar archive, which can't be read: unpack it",
}
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the file itself: run `git lfs pull`",
    b"/annex/objects/": "a git-annex pointer, not the file itself: run `git annex get`",
}
POINTER_SIZE = 1024
"""A pointer to a file is smaller than this (Git LFS specification, section "The Pointer")."""

_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")


def find_packing(head: bytes, name: str) -> str:
    """Tell how a file is packed: the usual ending for it, such as `.gz`, or an empty string if it is not.

    The name counts only if the first bytes are neither text nor those of a known kind.
    """
    for ending, magic in PACKED.items():
        if magic.match(head):
            return ending
    is_text = not _CONTROL.search(head) or head.startswith(_BYTE_ORDER_MARKS)
    ending = PurePosixPath(name).suffix.lower()
    return ending if ending in PACKED and not is_text and not find_format(head) else ""


def find_format(head: bytes) -> str | None:
    """Name the format of a file that is not text, and what to do with it; None if it may be text."""
    return next((advice for magic, advice in _FORMATS.items() if re.match(magic, head)), None)


def find_pointer(head: bytes) -> str | None:
    """Say of what tool a file is a mere pointer, and how to get the file itself; None if it is no pointer."""
    return next((advice for begin, advice in _POINTERS.items() if head.startswith(begin)), None)
