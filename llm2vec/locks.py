"""Locks that a killed process cannot leave behind, and that survive it in its children.

A lock is the system's (``flock``) on an open file: it goes when the last process that has the file
open is gone. A process that passes its descriptor on keeps others out until its child has ended as
well; whoever finds the owner dead tells the children, whose ids stand in the file, to end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from llm2vec.errors import SettingError

PATIENCE = 90.0  # seconds that children of a dead owner get to end
# What a file system says that has no locks: an old NFS, some of FUSE, Lustre mounted without them.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_POLL = 0.5


class Busy(SettingError):
    """A lock that a living process holds."""


class Lock:
    """A held lock; ``descriptor`` is for ``pass_fds`` of a child that holds it as well."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.descriptor = file.fileno()

    def note(self, *children: int) -> None:
        """Write down who holds it: this machine, this process, its children."""
        self._file.seek(0)
        self._file.truncate()
        print(socket.gethostname(), os.getpid(), *children, file=self._file, flush=True)


@contextmanager
def hold(
    path: Path, *, wait: float = 0, told: Callable[[str], None] = lambda holder: None
) -> Iterator[Lock]:
    """Hold the lock of a file; :class:`Busy` where a living process does for ``wait`` seconds.

    ``told`` hears once whom it is waiting for. Raises :class:`SettingError` for a folder that
    cannot be written to or whose file system has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SettingError(f"cannot write to {path.parent}: {error.strerror}.") from error
    with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
        began, waiting = time.monotonic(), False
        while not _locked(file, path.parent):
            host, owner, *children = _owners(path)
            holder = f"process {owner} on {host or 'an unknown machine'}"
            gone = host == socket.gethostname() and not alive(owner)
            if time.monotonic() - began >= (max(wait, PATIENCE) if gone else wait):
                raise Busy(f"{holder} is at work here")
            if not gone and not waiting:
                told(holder)
                waiting = True
            for pid in children if gone else ():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGTERM)
            time.sleep(_POLL)
        lock = Lock(file)
        lock.note()
        yield lock


def _locked(file: TextIO, folder: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise SettingError(
            f"the file system of {folder} has no locks ({error.strerror}): put the engine's "
            "state on a disk that has them, --scratch=FOLDER of experiments/grid.py; on a local "
            "disk, unless jobs run on other machines"
        ) from error
    return True


def _owners(path: Path) -> tuple[str, int, *tuple[int, ...]]:
    words = path.read_text(encoding="utf-8").split()
    if len(words) < 2 or not all(word.isdigit() for word in words[1:]):
        return "", 0  # being written
    return words[0], *map(int, words[1:])


def alive(pid: int) -> bool:
    """Whether a process of this machine is there (a zombie is not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True
