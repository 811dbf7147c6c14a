"""The code that runs, as one hash: what was computed by other code is not gone on from.

A commit does not say it: between commits, and in an installed package, there is none to ask.
Imports no torch.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@functools.cache
def code_digest() -> str:
    """16 hex digits that change with any module or resource of this package; once per process."""
    return digest_of(PACKAGE)


def digest_of(package: Path) -> str:
    """16 hex digits over the names and bytes of a package's modules and resources."""
    digest = hashlib.sha256()
    files = {*package.rglob("*.py"), *(package / "resources").rglob("*")}
    for file in sorted(file for file in files if file.is_file() and file.suffix != ".pyc"):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
