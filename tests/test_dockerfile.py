"""The steps of the Dockerfile, without Docker and without a network: on the libraries that are installed."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import dockerfile


def test_the_image_is_built_from_the_files_that_it_copies(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    (site,) = tmp_path.glob("venv/lib/python*/site-packages")
    for old in site.glob("setuptools*"):  # which Python 3.11 brings, and which hides the installed one
        shutil.rmtree(old)
    (site / "installed.pth").write_text("\n".join(place for place in sys.path if place.endswith("site-packages")))
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}  # 0 is how pip spells "without isolation" there
    command = dockerfile.build(tmp_path, {}, offline)
    assert (site / "conan_embedding" / "recipes" / "demo.yaml").exists()
    assert not (tmp_path / "opt" / "conan" / "tests").exists()
    help_ = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "ingest" in help_
