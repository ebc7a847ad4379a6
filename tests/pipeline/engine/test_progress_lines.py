"""Lines on a standard error that is not a terminal."""

import time
from collections.abc import Callable

import pytest
from conan_embedding.pipeline.engine import progress_lines
from conan_embedding.pipeline.engine.progress_lines import StageProgress


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Wait for a text on standard error; gives all that was printed up to then."""
    so_far = ""

    def wait(text: str) -> str:
        nonlocal so_far
        deadline = time.monotonic() + 60
        while text not in so_far and time.monotonic() < deadline:
            time.sleep(0.005)
            so_far += capsys.readouterr().err
        return so_far

    return wait


def test_the_latest_is_printed_again_and_again(monkeypatch: pytest.MonkeyPatch, printed: Callable[[str], str]) -> None:
    """Also while nothing changes, until all is done."""
    monkeypatch.setattr(progress_lines, "SECONDS", 0.01)
    with progress_lines.progress_lines() as show:
        show("filter", 0, 4, 0)
        assert printed("filter: 0 of 4").count("\n") < 100
        show("filter", 1, 4, 5_000)
        lines = printed("filter: 1 of 4, 5,000 rows, ").splitlines()
        show("train finetune", 0, 1_000, 0)
        assert "train finetune: 0 of 1,000, 0:00:00 so far\n" in printed("train finetune: 0 of 1,000, 0:00:00 so far\n")
    assert lines[-1].endswith(" left")


def test_nothing_is_printed_once_all_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training follows, whose processes print their own."""
    monkeypatch.setattr(progress_lines, "SECONDS", 0.01)
    with progress_lines.progress_lines() as show:
        show("filter", 4, 4, 5_000)
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_a_quick_command_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_lines.progress_lines() as show:
        show("filter", 0, 2, 0)
        show("filter", 2, 2, 10)
    assert capsys.readouterr().err == ""


def test_what_an_earlier_run_did_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 160.0)
    resumed = StageProgress("dedup: bands", skipped=10, began=100.0)
    resumed.update(10, 20, 0)
    assert str(resumed) == "dedup: bands: 10 of 20, 0:01:00 so far"
    resumed.update(12, 20, 0)
    assert str(resumed) == "dedup: bands: 12 of 20, 0.0333/s, 0:01:00 so far, about 0:04:00 left"
    resumed.update(16, 20, 6_000_000)
    assert str(resumed) == "dedup: bands: 16 of 20, 6,000,000 rows, 100,000 rows/s, 0:01:00 so far, about 0:00:40 left"
    resumed.rows = 21
    assert "21 rows, 0.35 rows/s" in str(resumed)
