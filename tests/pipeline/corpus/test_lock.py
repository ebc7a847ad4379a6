"""One command at a time holds the lock, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conan_embedding.pipeline.corpus.lock import locked
from conan_embedding.schemas.errors import CorpusError

HOLD = """
import sys, time
from pathlib import Path
from conan_embedding.pipeline.corpus.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_command_at_a_time(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "held\n"
            with (
                pytest.raises(CorpusError, match=rf"in use by process {owner.pid} on .+ since 2.+; wait"),
                locked(tmp_path),
            ):
                pass
        finally:
            owner.send_signal(signal.SIGKILL)
        owner.wait()
    with (
        locked(tmp_path),  # a dead owner's lock is free
        pytest.raises(CorpusError, match=f"in use by process {os.getpid()} "),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass
