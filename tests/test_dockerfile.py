"""The steps of the Dockerfile, without Docker and without a network: on the libraries that are installed."""

import subprocess
import sys
import venv
from pathlib import Path

import dockerfile


def test_the_image_is_built_from_the_files_that_it_copies(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    (site,) = tmp_path.glob("venv/lib/python*/site-packages")
    (site / "installed.pth").write_text("\n".join(place for place in sys.path if place.endswith("site-packages")))
    pip = tmp_path / "venv" / "bin" / "pip"  # that is installed: to install another one takes seconds
    pip.write_text('#!/bin/sh\nexec python -m pip "$@"\n')
    pip.chmod(0o755)
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}  # 0 is how pip spells "without isolation" there
    command = dockerfile.build(tmp_path, {}, offline)
    assert (site / "conan_embedding" / "recipes" / "demo.yaml").exists()
    assert not (tmp_path / "opt" / "conan" / "tests").exists()
    help_ = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "ingest" in help_
