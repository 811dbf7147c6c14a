"""A table as markdown, as booktabs LaTeX and as CSV.

The CSV holds the data (tidy, unrounded); markdown and LaTeX show the same cells. LaTeX needs the
packages booktabs and graphicx; a table that is too long for a page is several. Its first lines are
comments that say which records it comes from, so that a cited table can be traced.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import pandas as pd
from tabulate import tabulate

from llm2vec.paths import ROOT

NOT_RUN = "–"
LONG, LONG_PARAGRAPHS = 45, 5  # rows that still fit on a page, of lines and of paragraphs
# Opens a box that is made smaller where it is wider than the text, and left as it is elsewhere.
_SHRINK = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


class Cell(NamedTuple):
    """A text to show; ``bold`` marks the best of its block."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Origin:
    """The records behind a table; equal records give equal text, whatever the day is."""

    records: int = 0
    commits: tuple[str, ...] = ()
    newest: str = ""
    dirty: int = 0

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Origin:
        commits = sorted({str(commit)[:10] for commit in rows["commit"].dropna()})
        newest = max((str(started) for started in rows["started"].dropna()), default="")
        return cls(len(rows), tuple(commits), newest[:10], int(rows["dirty"].sum()))

    def lines(self) -> list[str]:
        if not self.records:
            return ["records: none"]
        return [
            f"records: {self.records}, the newest of {self.newest or 'unknown date'}",
            f"commit: {', '.join(self.commits)}"
            + (f" ({self.dirty} of the records from a changed tree)" if self.dirty else ""),
        ]


@dataclass(frozen=True)
class Table:
    """``header`` and ``rows`` are shown, ``data`` is the CSV.

    ``columns``: LaTeX column types, one letter each. ``groups``: (heading, number of columns)
    over all columns. ``breaks``: rows before which a rule is drawn. ``tasks``: task count for the
    LaTeX comment.
    """

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    columns: str
    data: pd.DataFrame
    origin: Origin = Origin()
    tasks: str = ""
    groups: Sequence[tuple[str, int]] = ()
    breaks: frozenset[int] = frozenset()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        widths = {len(self.header), len(self.columns), *map(len, self.rows)}
        if self.groups:
            widths.add(sum(span for _, span in self.groups))
        if len(widths) != 1:
            raise ValueError(f"table {self.name}: rows of different widths {sorted(widths)}")

    def _repr_markdown_(self) -> str:
        """How a notebook shows it."""
        return to_markdown(self)


def number(value: float | None, *, digits: int = 2, sign: bool = False) -> str:
    """A number with fixed digits, or an empty text when there is none."""
    if value is None or pd.isna(value):
        return ""
    value = round(value, digits) + 0.0  # no minus before a zero
    return f"{value:{'+' if sign else ''}.{digits}f}"


def bold_best(column: Sequence[float | None], *, digits: int = 2) -> list[bool]:
    """Which values are the largest, as they are shown; none when fewer than two are there."""
    shown = [None if v is None or pd.isna(v) else round(v, digits) for v in column]
    present = [value for value in shown if value is not None]
    if len(present) < 2:
        return [False] * len(shown)
    return [value is not None and value == max(present) for value in shown]


# --------------------------------------------------------------------------- terminal
def to_terminal(table: Table) -> str:
    """The shown cells as aligned plain text, the best marked with a star."""
    rows = [[c.text + ("*" if c.bold else "") for c in map(_cell, row)] for row in table.rows]
    text = tabulate(rows, headers=list(table.header), disable_numparse=True)
    notes = [note.replace("bold: the best", "*: the best") for note in table.notes]
    return "\n".join([table.title, "", text, "", *notes]) + "\n"


# --------------------------------------------------------------------------- markdown
def _cell(value: Cell | str) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


def _markdown_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def _markdown_row(cells: Iterable[Cell | str]) -> str:
    texts = []
    for cell in map(_cell, cells):
        text = _markdown_text(cell.text)
        texts.append(f"**{text}**" if cell.bold and text else text)
    return "| " + " | ".join(texts) + " |"


def to_markdown(table: Table) -> str:
    """A GitHub table, its notes below it; a group's heading stands before its columns' own."""
    header = list(table.header)
    start = 0
    for heading, span in table.groups:
        for index in range(start, start + span):
            header[index] = f"{heading}: {header[index]}" if heading else header[index]
        start += span
    rule = "|" + "|".join("---:" if c == "r" else "---" for c in table.columns) + "|"
    lines = [_markdown_row(header), rule, *(_markdown_row(row) for row in table.rows)]
    if table.notes:
        lines += ["", " ".join(map(_markdown_text, table.notes))]
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------- LaTeX
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "–": "--", "—": "---", "±": r"$\pm$", "×": r"$\times$", "≥": r"$\ge$", "≤": r"$\le$",
    "§": r"\S{}", "→": r"$\to$", "†": r"\dag{}", "Δ": r"$\Delta$", "\n": " ",
}  # fmt: skip
_BREAKS = re.compile(r"(?<=\w)(=|/|\\_|-)(?=\w)")
_SIGNED = re.compile(r"[+-]\d+(\.\d+)?")


def escape_tex(text: str) -> str:
    """Text that LaTeX prints as it is; a signed number gets a real minus."""
    if _SIGNED.fullmatch(text):
        return f"${text}$"
    return "".join(_TEX.get(character, character) for character in text)


def _tex_row(cells: Iterable[Cell | str], columns: str = "") -> str:
    """``columns``: their types. Within paragraphs a command may break where its parts meet."""
    texts = []
    for cell, kind in zip_longest(map(_cell, cells), columns):
        text = escape_tex(cell.text)
        if kind == "p":
            text = _BREAKS.sub(r"\g<0>\\allowbreak{}", text)
        texts.append(rf"\textbf{{{text}}}" if cell.bold and text else text)
    # A bracket right after \\ would be read as its optional argument.
    return " & ".join("{}" + text if text.startswith("[") else text for text in texts) + r" \\"


def _tex_groups(table: Table) -> list[str]:
    if not table.groups:
        return []
    cells, rules, start = [], [], 1
    for heading, span in table.groups:
        cells.append(rf"\multicolumn{{{span}}}{{c}}{{{escape_tex(heading)}}}" if heading else
                     " & ".join([""] * span))  # fmt: skip
        if heading:
            rules.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
        start += span
    return [" & ".join(cells) + r" \\", " ".join(rules)]


def _tex_columns(columns: str) -> str:
    """Column types; paragraphs of half a line and less, and the whole is made smaller to fit."""
    width = 1 / (columns.count("p") + 1)
    return "".join(rf"p{{{width:.2f}\linewidth}}" if c == "p" else c for c in columns)


def version() -> str:
    """Version of this repository, or ``unknown`` in a folder without a VERSION file."""
    path = ROOT / "VERSION"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else "unknown"


def to_tex(table: Table) -> str:
    """A booktabs table with caption and label ``tab:NAME``, and its origin in comments."""
    comments = [
        f"{table.name}: made by `python -m analysis.build`; do not edit.",
        f"version: {version()}",
        *table.origin.lines(),
        f"tasks: {table.tasks or 'none'}",
        "needs: booktabs, graphicx",
    ]
    head = [r"\toprule", *_tex_groups(table), _tex_row(table.header), r"\midrule"]
    notes = [rf"\par\footnotesize {escape_tex(note)}" for note in table.notes]
    notes[:1] = [r"\smallskip" + note for note in notes[:1]]
    lines = []
    size = LONG_PARAGRAPHS if "p" in table.columns else LONG
    for start in range(0, max(len(table.rows), 1), size):
        rows = _piece(table, start, size)
        body = [
            line
            for index, row in rows
            for line in ([r"\midrule"] if index in table.breaks and index > start else [])
            + [_tex_row(row, table.columns)]
        ]
        label = "" if start else rf"\label{{tab:{table.name}}}"
        more = " (continued)" if start else ""
        last = start + size >= len(table.rows)
        lines += [
            r"\begin{table}[t]", r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{escape_tex(table.title)}{more}}}{label}\smallskip", _SHRINK,
            rf"\begin{{tabular}}{{{_tex_columns(table.columns)}}}", *head, *body,
            r"\bottomrule", r"\end{tabular}}", *(notes if last else []), r"\end{table}",
        ]  # fmt: skip
    return "\n".join([f"% {line}" for line in comments] + lines) + "\n"


def _piece(table: Table, start: int, size: int) -> list[tuple[int, list[Cell | str]]]:
    """As many rows as fit on a page, with their numbers; the first says again what stood above."""
    rows = [list(row) for row in table.rows[start : start + size]]
    for column, kind in enumerate(table.columns):
        above = (table.rows[index][column] for index in range(start - 1, -1, -1))
        if kind == "l" and start and not _cell(rows[0][column]).text:
            rows[0][column] = next((cell for cell in above if _cell(cell).text), "")
    return list(enumerate(rows, start))


def to_csv(table: Table) -> str:
    """The data behind the table; floats in their shortest exact form."""
    return table.data.to_csv(index=False, lineterminator="\n")
