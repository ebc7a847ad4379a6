"""The wheel has every file of the package, and works without the repository."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from command_line import write_recipe

PACKAGE = Path(__file__).parents[1]
FOLDERS = ("commands", "pipeline", "recipes", "schemas", "trainer")
RUN = "import sys, conan_embedding.cli; print(conan_embedding.__file__, file=sys.stderr); conan_embedding.cli.main()"


pytestmark = pytest.mark.xdist_group("wheel")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it with pip and the setuptools that is installed, from a copy without what an earlier build left."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(PACKAGE / name, folder / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in PACKAGE.iterdir():
        if file.is_file():
            shutil.copy(file, folder / "copy")
    build = ["pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}"]
    made = subprocess.run([sys.executable, "-m", *build, folder / "copy"], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    """And no other; a sub-package that pyproject.toml forgets is missing here."""
    patterns = ("*.py", "py.typed", *(f"{name}/**/*.{kind}" for name in FOLDERS for kind in ("jinja", "py", "yaml")))
    expected = {file.relative_to(PACKAGE).as_posix() for pattern in patterns for file in PACKAGE.glob(pattern)}
    packed = [name.partition("/") for name in zipfile.ZipFile(wheel).namelist()]
    assert {path for top, _, path in packed if not top.endswith(".dist-info")} == expected
    assert {top for top, _, _ in packed if not top.endswith(".dist-info")} == {"conan_embedding"}


def test_the_wheel_ingests(wheel: Path, tmp_path: Path) -> None:
    """From another folder, without the `.pth` files of this environment, which would lead to the repository."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    libraries = [folder for folder in sys.path if folder.endswith("site-packages")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *libraries]), "PYTHONSAFEPATH": "1"}
    recipe = write_recipe(tmp_path)

    def conan(*arguments: str) -> str:
        command = [sys.executable, "-S", "-c", RUN, *arguments]
        ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.split()[0] == str(site / "conan_embedding" / "__init__.py")
        return ended.stdout

    assert "ingest" in conan("--help")
    summary = json.loads(conan("ingest", "corpus", f"--recipe={recipe}", "--workers=1", "--json"))
    assert (summary["rows_in"], summary["rows_out"]) == (3, 3)
