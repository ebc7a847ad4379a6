"""Which points of a stage are of one kind: a fault at one of them is as one at another."""

import re


def kind_of(name: str) -> str:
    """A file's name below the corpus: the same for all shards, all folders of convert, all files of a work folder."""
    numberless = re.sub(r"\d+", "0", re.sub(r"^convert/\w+/", "convert/any/", name))
    return re.sub(r"/(\.\w+)/[^/]+$", r"/\1/any", numberless)
