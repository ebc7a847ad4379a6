"""A shard's manifest: its sums, and that it survives its way through JSON."""

import pytest
from conan_embedding.schemas.footer import Footer
from pydantic import ValidationError


def footer(rows_in: int, rows_out: int, **rejected: int) -> Footer:
    return Footer(
        stage="filter",
        version=1,
        fingerprint="f",
        content="c",
        rows_in=rows_in,
        rows_out=rows_out,
        rejected=rejected,
        seconds=0.5,
        notes={"masked": {"mobile": 2}},
    )


def test_rows_in_are_rows_out_and_rejected() -> None:
    footer(10, 7, too_short=2, mojibake=1).check()
    footer(0, 0).check()
    with pytest.raises(ValueError, match="10 rows in, but 7 out and 2 rejected"):
        footer(10, 7, too_short=2).check()
    with pytest.raises(ValueError, match="not committed"):
        footer(10, 11).check()


def test_round_trip() -> None:
    one = footer(3, 2, too_short=1)
    assert Footer.model_validate_json(one.model_dump_json()) == one


def test_a_footer_does_not_change() -> None:
    with pytest.raises(ValidationError):
        footer(1, 1).rows_in = 2  # type: ignore[misc]
