"""Errors that are meant for the user: what was wrong, what is valid, what to do next.

Command lines print their message on one line and exit with ``exit_code``; anything else is a
bug and keeps its trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LLM2VecError(Exception):
    """Base of all errors that a user can cause and mend."""

    exit_code = 2


class UnknownNameError(LLM2VecError):
    """A name that the registry does not know."""

    def __init__(self, kind: str, name: object, valid: Iterable[str]) -> None:
        names = list(valid)
        close = get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Valid: {', '.join(names)}.")


class AssetError(LLM2VecError):
    """A download that cannot be had, is corrupt, or cannot be stored."""


class DataError(LLM2VecError):
    """A dataset that is missing, malformed, or lacks a split or column."""


class AttentionError(LLM2VecError):
    """A backbone whose attention cannot be switched."""


class AdapterError(LLM2VecError):
    """An adapter that is missing, corrupt, or belongs to another backbone or variant."""


class RecordError(LLM2VecError):
    """A result record that is damaged; the message names file and field."""


class SettingError(LLM2VecError):
    """An option whose value cannot be used."""
