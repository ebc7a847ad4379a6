"""What a shard says of itself: one JSON object in the key-value metadata of its Parquet footer."""

from typing import Any

from pydantic import BaseModel, ConfigDict

FOOTER_KEY = b"conan"


class Footer(BaseModel):
    """A shard's own manifest.

    `fingerprint` is of everything that decides the shard's rows (stage, version, settings, inputs' content);
    `content` is a hash of the rows as written, and so what the next stage's fingerprints are made of.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    version: int
    fingerprint: str
    content: str
    rows_in: int
    rows_out: int  # in units of rows_in: a record that convert makes of three pairs counts three
    rejected: dict[str, int] = {}  # by reason
    seconds: float
    notes: dict[str, Any] = {}  # figures of the stage: a histogram, masks by kind, files read

    def check(self) -> None:
        """Raise ValueError unless every row that came in went out or was rejected."""
        rejected = sum(self.rejected.values())
        if self.rows_in != self.rows_out + rejected:
            raise ValueError(
                f"{self.stage}: {self.rows_in} rows in, but {self.rows_out} out and {rejected} rejected; "
                "the shard was not committed"
            )
