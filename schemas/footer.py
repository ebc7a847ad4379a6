"""A shard's manifest: one JSON object in the key-value metadata of its Parquet footer."""

from typing import Any

from pydantic import BaseModel, ConfigDict

FOOTER_KEY = b"conan"


class Footer(BaseModel):
    """The manifest of a shard.

    `fingerprint` is a hash of everything that decides the shard's rows: stage, version, settings and the content of the
    inputs. `content` is a hash of the rows as written; the next stage's fingerprints include it.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    version: int
    fingerprint: str
    content: str
    rows_in: int
    rows_out: int  # in units of rows_in: a record that convert builds from three pairs counts as three
    rejected: dict[str, int] = {}  # by reason
    seconds: float
    notes: dict[str, Any] = {}  # results of the stage, such as a histogram or masks by kind

    def check(self) -> None:
        """Raise ValueError unless every input row was either kept or rejected."""
        rejected = sum(self.rejected.values())
        if self.rows_in != self.rows_out + rejected:
            raise ValueError(
                f"{self.stage}: {self.rows_in} rows in, but {self.rows_out} out and {rejected} rejected; "
                "the shard was not committed"
            )
