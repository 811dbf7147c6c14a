"""A package with two files, and stand-ins for the pip that downloads it."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

from llm2vec.assets import Asset

PACKAGE = "fake-pkg==1.0"
BIG = bytes(range(256)) * 4000  # a megabyte
SMALL = b"a small member\n"
MEMBERS = {"fake_pkg/data/big.bin": BIG, "fake_pkg/data/small.txt": SMALL}
Download = Callable[[str, Path], Path]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fake_assets() -> dict[str, Asset]:
    return {
        "big": Asset(PACKAGE, "fake_pkg/data/big.bin", sha256(BIG)),
        "small": Asset(PACKAGE, "fake_pkg/data/small.txt", sha256(SMALL)),
    }


def make_wheel(
    folder: Path,
    members: dict[str, bytes] = MEMBERS,
    compression: int = zipfile.ZIP_DEFLATED,
) -> Path:
    """A wheel that pip accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "fake_pkg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        info = "fake_pkg-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: fake-pkg\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def serves(content: bytes | None = None, members: dict[str, bytes] = MEMBERS) -> Download:
    """A stand-in for pip: puts a wheel (of these bytes, or with these members) into the folder."""

    def download(package: str, folder: Path) -> Path:
        assert package == PACKAGE
        wheel = make_wheel(folder, members)
        if content is not None:
            wheel.write_bytes(content)
        return wheel

    return download


def never(*_: object, **__: object) -> Path:
    raise AssertionError("nothing should be downloaded")


def files_below(folder: Path) -> set[str]:
    """Names of all files, but for locks, and of temporary folders, which may not remain."""
    return {
        p.name
        for p in folder.rglob("*")
        if (p.is_file() or p.name.startswith(".tmp-")) and p.suffix != ".lock"
    }
