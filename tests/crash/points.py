"""Which points of a stage are of one kind: a fault at one of them is as one at another."""

import re


def kind_of(name: str) -> str:
    """A file's name below the corpus: the same for all shards of a command, and for all files of a work folder."""
    alike = re.sub(r"^(ingest|evaluation|convert/\w+)(?=/|$)", "any", name)  # folders that one command fills
    return re.sub(r"/(\.\w+)/[^/]+$", r"/\1/any", re.sub(r"\d+", "0", alike))
