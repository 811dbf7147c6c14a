"""The hash of the code: changed by whatever may change a vector, by nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llm2vec.code_digest import PACKAGE, code_digest, digest_of


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package as it is installed: no git around it."""
    copy = tmp_path / "site-packages" / "llm2vec"
    for name in ("vectors.py", "inner/module.py", "resources/tasks.csv", "resources/deep/a.conll"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(f"of {name}\n")
    return copy


def test_it_is_of_the_package_that_runs_wherever_that_lies(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(PACKAGE, copy)
    assert code_digest() == digest_of(PACKAGE) == digest_of(copy)
    assert len(code_digest()) == 16


@pytest.mark.parametrize(
    "change",
    [
        lambda p: (p / "vectors.py").write_text("of vectors.pz\n"),
        lambda p: (p / "inner" / "module.py").write_text(""),
        lambda p: (p / "inner" / "module.py").rename(p / "inner" / "other.py"),
        lambda p: (p / "new.py").write_text(""),
        lambda p: (p / "resources" / "tasks.csv").write_text("another"),
        lambda p: (p / "resources" / "deep" / "a.conll").unlink(),
    ],
    ids=["module", "inner module", "name", "new module", "resource", "lost resource"],
)
def test_code_and_resources_change_it(package: Path, change: Callable[[Path], object]) -> None:
    before = digest_of(package)
    change(package)
    assert digest_of(package) != before


def test_what_python_leaves_beside_the_code_does_not(package: Path) -> None:
    before = digest_of(package)
    for folder in ("__pycache__", "resources/__pycache__"):
        (package / folder).mkdir()
        (package / folder / "vectors.cpython-311.pyc").write_bytes(b"compiled")
    (package / "vectors.py").touch()
    (package / "notes.swp").write_text("")
    assert digest_of(package) == before
