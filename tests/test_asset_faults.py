"""Assets when things go wrong: damaged downloads, no room, no access."""

import errno
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asset_help import (
    BIG,
    MEMBERS,
    PACKAGE,
    SMALL,
    fake_assets,
    files_below,
    make_wheel,
    never,
    serves,
    sha256,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm2vec import assets
from llm2vec.assets import asset_file
from llm2vec.errors import AssetError


@pytest.fixture(autouse=True)
def cache(fresh_cache: Path) -> Path:
    return fresh_cache


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "ASSETS", fake_assets())


# --------------------------------------------------------------------------- bad downloads
def bad_wheels() -> Iterator[tuple[str, bytes | None, dict[str, bytes], str]]:
    with tempfile.TemporaryDirectory() as folder:
        whole = make_wheel(Path(folder)).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    strange = bytearray(whole)
    strange[whole.index(b"PK\x01\x02") + 6] = 202  # a zip of version 20.2
    other = MEMBERS | {"fake_pkg/data/big.bin": BIG + b"another release"}
    yield "no zip", b"<html>not found</html>", MEMBERS, "is corrupt or lacks"
    yield "empty", b"", MEMBERS, "is corrupt or lacks"
    yield "half", whole[: len(whole) // 2], MEMBERS, "is corrupt or lacks"
    yield "short", whole[:-1], MEMBERS, "is corrupt or lacks"
    yield "flipped", bytes(flipped), MEMBERS, "corrupt"
    yield "strange", bytes(strange), MEMBERS, "is corrupt or lacks"
    yield "missing member", None, {"fake_pkg/x": b""}, "lacks fake_pkg/data/"
    yield "wrong sha256", None, other, f"expected {sha256(BIG)}"


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("name", "content", "members", "says"), list(bad_wheels()))
def test_a_bad_wheel_is_refused_and_the_next_call_recovers(
    cache: Path, name: str, content: bytes | None, members: dict[str, bytes], says: str
) -> None:
    with pytest.raises(AssetError, match=re.escape(says)) as error:
        asset_file("big", serves(content, members))
    assert PACKAGE in str(error.value)
    assert "Run the command again" in str(error.value)
    assert files_below(cache) <= {"small.txt"}  # a whole member may have come before the bad one
    assert asset_file("big", serves()).read_bytes() == BIG


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_any_flipped_byte_is_harmless_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(assets, "ASSETS", {"small": fake_assets()["small"]})
    members = {"fake_pkg/data/small.txt": SMALL}
    content = bytearray(make_wheel(tmp_path / "whole", members).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    folder = tmp_path / "cache" / str(place)
    monkeypatch.setenv("LLM2VEC_CACHE", str(folder))
    try:
        assert asset_file("small", serves(bytes(content), members)).read_bytes() == SMALL
    except AssetError:
        assert files_below(folder) <= {"small.txt"}


# --------------------------------------------------------------------------- no room, no access
@pytest.mark.usefixtures("fake")
def test_a_full_disk_while_extracting(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk(io.FileIO):
        def write(self, data: bytes) -> int:
            super().write(data[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(assets, "open", FullDisk, raising=False)
        with pytest.raises(AssetError, match=r"No space left on device\. Free space") as error:
            asset_file("big", serves())
    assert str(cache) in str(error.value)
    assert files_below(cache) == set()
    assert asset_file("big", serves()).read_bytes() == BIG


LIMITED = """
import resource, sys
from llm2vec import assets
from llm2vec.errors import AssetError
from tests.asset_help import fake_assets, serves
assets.ASSETS = fake_assets()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    assets.asset_file("big", serves())
except AssetError as error:
    print(error)
"""


@pytest.mark.usefixtures("fake")
def test_a_write_that_the_system_cuts_short(cache: Path, repo_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, cwd=repo_root, check=True
    )
    assert "cannot write to the cache" in done.stdout
    assert "File too large" in done.stdout
    assert files_below(cache) == set()
    assert asset_file("big", serves()).read_bytes() == BIG


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("taken", [".", "assets", "locks"])
def test_a_cache_that_cannot_be_a_folder(cache: Path, taken: str) -> None:
    place = cache / taken
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("a file where the folder should be")
    with pytest.raises(AssetError, match=r"cannot write to the cache.*set LLM2VEC_CACHE|Set LLM"):
        asset_file("big", serves())
    place.unlink()
    assert asset_file("big", serves()).read_bytes() == BIG


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Whatever the user: nothing below the folder can be made, opened for writing or renamed."""

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if not active:
            return
        writes = event in ("os.mkdir", "os.rename") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        )
        if writes and str(arguments[0]).startswith(str(folder)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))

    active = True
    sys.addaudithook(refuse)
    try:
        yield
    finally:
        active = False


@pytest.mark.usefixtures("fake")
def test_a_read_only_cache(cache: Path) -> None:
    refused = pytest.raises(AssetError, match="Read-only file system")
    with read_only(cache), refused as error:
        asset_file("big", serves())
    assert "LLM2VEC_CACHE" in str(error.value)
    path = asset_file("big", serves())
    with read_only(cache):
        assert asset_file("big", never) == path  # what is there can be used


@pytest.mark.usefixtures("fake")
def test_an_interrupted_download_leaves_nothing(cache: Path) -> None:
    def interrupted(package: str, folder: Path) -> Path:
        make_wheel(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asset_file("big", interrupted)
    assert files_below(cache) == set()
    assert asset_file("big", serves()).read_bytes() == BIG
