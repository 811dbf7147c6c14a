"""Generated tables in hand-written pages, between markers.

    <!-- table:offline -->
    <!-- /table -->

What stands between the two lines is replaced by the table of that name; everything else in the
page is left as it is. A marker with an unknown name, or without its end, is an error with the
page and the line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from llm2vec.errors import SettingError, UnknownNameError

_OPEN = re.compile(r"<!-- table:(?P<name>\S+) -->")
_CLOSE = "<!-- /table -->"


def fill(text: str, table: Callable[[str], str], where: str) -> str:
    """The page with every block filled by ``table(name)``, a markdown text.

    Raises :class:`SettingError` for a block that is not closed; what ``table`` raises for an
    unknown name is given the page and line.
    """
    lines = text.split("\n")
    filled: list[str] = []
    opened: tuple[int, str] | None = None
    for number, line in enumerate(lines, 1):
        start = _OPEN.fullmatch(line.strip())
        if start or line.strip() == _CLOSE:
            if bool(start) == bool(opened):
                place = opened[0] if opened else number
                raise SettingError(
                    f"{where}, line {place}: a table block is not opened and closed in turn. "
                    f"Write <!-- table:NAME --> and {_CLOSE} on lines of their own."
                )
            if start:
                opened = number, start["name"]
                try:
                    block = table(start["name"])
                except UnknownNameError as error:
                    raise SettingError(f"{where}, line {number}: {error}") from error
                filled += [line, "", *block.rstrip("\n").split("\n"), ""]
                continue
            opened = None
        if opened is None:
            filled.append(line)
    if opened:
        raise SettingError(
            f"{where}, line {opened[0]}: the block of table {opened[1]!r} is not closed. "
            f"Write {_CLOSE} below it."
        )
    return "\n".join(filled)


def fill_page(path: Path, table: Callable[[str], str]) -> str | None:
    """The filled text of a page, or None where there is no such page."""
    if not path.is_file():
        return None
    return fill(path.read_text(encoding="utf-8"), table, path.name)
