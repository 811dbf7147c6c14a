"""What the hub refuses, in words that say what to do. Imports no torch.

The hub's clients wrap errors in one another and in those of the HTTP library; the whole chain is
read, innermost cause included.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from llm2vec.errors import LLM2VecError

_UNREACHABLE = {
    "OfflineModeIsEnabled", "ConnectionError", "TransportError", "LocalEntryNotFoundError",
    "TimeoutException", "TimeoutError", "gaierror",
}  # fmt: skip


class HubError(LLM2VecError):
    """Something that the hub does not give; ``hopeless``: nor will it give the next thing."""

    hopeless = False


class UnreachableError(HubError):
    """No connection, or offline by choice."""

    hopeless = True


class DiskFullError(HubError):
    """No space for what is downloaded."""

    hopeless = True


def is_hopeless(error: Exception) -> bool:
    """Whether to give up instead of trying the next file."""
    return getattr(error, "hopeless", False)


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def explain(error: Exception, what: str, revision: str, folder: Path) -> HubError:
    """The :class:`HubError` for an error met while fetching ``what`` into ``folder``."""
    chain = list(causes_of(error))
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    status = {getattr(getattr(one, "response", None), "status_code", None) for one in chain}
    full = (errno.ENOSPC, errno.EDQUOT)
    if any(isinstance(one, OSError) and one.errno in full for one in chain):
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
    if kinds & _UNREACHABLE:
        return UnreachableError(
            f"the hub cannot be reached for {what}: run this where there is internet, without "
            "HF_HUB_OFFLINE=1; behind a proxy set HTTPS_PROXY."
        )
    causes = [f"{type(one).__name__}: {' '.join(str(one).split())[:200]}" for one in chain]
    return HubError(f"{what} could not be fetched ({' < '.join(dict.fromkeys(causes))})")
