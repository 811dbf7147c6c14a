"""What the hub refuses, in words that say what to do. Imports no torch.

The hub's clients wrap errors in one another and in those of the HTTP library; the whole chain is
read, innermost cause included.
"""

from __future__ import annotations

import errno
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from llm2vec.errors import LLM2VecError

_UNREACHABLE = {
    "OfflineModeIsEnabled", "ConnectionError", "TransportError", "LocalEntryNotFoundError",
    "TimeoutException", "TimeoutError", "gaierror",
}  # fmt: skip
_LACKING = {
    "HTTPError", "EntryNotFoundError", "FileNotFoundError", "XetDownloadError",
}  # fmt: skip
# ValueError and RuntimeError of 'datasets' and mteb for what a repository does not have.
_LACKING_TEXT = re.compile(r"split|config|scripts are no longer supported", re.IGNORECASE)
_BUSY = {408, 429, 500, 502, 503, 504}  # answers that are others after a while
_FULL = (errno.ENOSPC, errno.EDQUOT)


class HubError(LLM2VecError):
    """Something that the hub does not give; ``hopeless``: nor will it give the next thing."""

    hopeless = False


class UnreachableError(HubError):
    """No connection, or offline by choice."""

    hopeless = True


class DiskFullError(HubError):
    """No space for what is downloaded."""

    hopeless = True


class OtherRevisionError(HubError):
    """The cache of ``datasets`` is not taken for what the hub did not give."""


def is_hopeless(error: Exception) -> bool:
    """Whether to give up instead of trying the next file."""
    return getattr(error, "hopeless", False)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def is_missing(error: BaseException) -> bool:
    """Whether an error of loading data says that they are not to be had.

    That is: the hub lacks them, does not give them, or is not there. Memory or a disk that is
    full and mistakes of a program say nothing of the data.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return False
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "DatasetGenerationError" in kinds and error.__cause__ is not None:
        return is_missing(error.__cause__)
    if isinstance(error, ValueError | RuntimeError) and _LACKING_TEXT.search(str(error)):
        return True
    return bool(kinds & (_UNREACHABLE | _LACKING))


def reason(error: BaseException) -> str:
    """What an error and those behind it say, the outermost first, in one line."""
    said = (f"{type(one).__name__}: {' '.join(str(one).split())[:200]}" for one in _chain(error))
    return " < ".join(dict.fromkeys(text.removesuffix(": ") for text in said))


def commit_of(folder: Path) -> str | None:
    """The commit of a snapshot in the hub's cache; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def explain(error: Exception, what: str, revision: str, folder: Path) -> HubError:
    """The :class:`HubError` for an error met while fetching ``what`` into ``folder``."""
    chain = list(_chain(error))
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    answers = (getattr(getattr(one, "response", None), "status_code", None) for one in chain)
    status = {code for code in answers if code is not None}
    if any(isinstance(one, OSError) and one.errno in _FULL for one in chain):
        return DiskFullError(
            f"no space left while fetching {what} into {folder} (the hub's own cache, HF_HOME, "
            "takes as much again). Free space and run the same command; what is there is kept."
        )
    if "GatedRepoError" in kinds or any("is a gated" in str(one) for one in chain):
        return HubError(
            f"{what} is gated on the hub: accept its terms on its page there, then set HF_TOKEN to "
            "a token of that account (or run 'hf auth login') and run the same command."
        )
    if "RevisionNotFoundError" in kinds:
        return HubError(
            f"{what} has no revision {revision} on the hub (any more): the registry's pin is out "
            "of date, report it."
        )
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"} or status & {401, 403, 404}:
        return HubError(
            f"the hub does not give {what} at {revision}: it was removed or renamed, or it is "
            "private and HF_TOKEN has no right to it."
        )
    if status & _BUSY:
        return HubError(
            f"the hub is busy or down, it does not give {what} now "
            f"({', '.join(map(str, sorted(status & _BUSY)))}); run the same command later."
        )
    if kinds & _UNREACHABLE:
        return UnreachableError(
            f"the hub cannot be reached for {what}: run this where there is internet, without "
            "HF_HUB_OFFLINE=1; behind a proxy set HTTPS_PROXY."
        )
    return HubError(f"{what} could not be fetched ({reason(error)})")


# --------------------------------------------------------------------------- the pinned revision
_lock = threading.Lock()
_replaced: list[Any] = []  # what the open blocks found in the place of the cache's lookup


@contextmanager
def asked_revision_only() -> Iterator[None]:
    """Within it ``datasets`` gives the revision that it is asked for, or an error.

    Where it gets no answer, by ``HF_HUB_OFFLINE=1`` too, it would take the newest copy in its own
    cache, of whatever revision. May be nested and entered by several threads; while one is
    inside, those outside do not get such copies either.
    """
    from datasets.load import CachedDatasetModuleFactory as Factory

    with _lock:
        _replaced.append(Factory.get_module)
        Factory.get_module = _refuse
    try:
        yield
    finally:
        with _lock:  # whoever leaves last puts back what the first one found
            Factory.get_module = _replaced.pop()


def _refuse(factory: Any) -> NoReturn:
    """Instead of a copy; ``datasets`` calls it while it handles what went wrong.

    It then raises that error again without its cause, which is kept here for :func:`explain`.
    """
    met = sys.exception()
    raise OtherRevisionError(
        f"a copy of {factory.name} in the cache of 'datasets' may be of another revision"
    ) from (met and met.__cause__)
