"""``MANIFEST.csv`` of a mirror: for each file what it is, where from, and its sha256.

One row per file; ``dataset`` and ``file`` together are its place below the mirror's folder. Other
columns than ours are kept as they are. Imports no torch.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from llm2vec.errors import DataError
from llm2vec.results import write_atomic

MANIFEST = "MANIFEST.csv"
COLUMNS = (
    "dataset", "file", "split", "rows", "status", "source_repo", "source_path", "source_commit",
    "licence", "sha256", "bytes", "verification", "notes",
)  # fmt: skip
Row = dict[str, str]


class Manifest:
    """The manifest of the mirror at ``root``; empty where there is none yet.

    Raises :class:`DataError` for a file that is no manifest, before anything is changed.
    """

    def __init__(self, root: Path) -> None:
        self.path = Path(root) / MANIFEST
        self.columns = list(COLUMNS)
        self._rows: dict[tuple[str, str], Row] = {}
        if not self.path.exists():
            return
        try:
            with open(self.path, newline="", encoding="utf-8") as handle:
                reader = csv.DictReader(handle, strict=True)
                rows = list(reader)
                names = list(reader.fieldnames or ())
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.path}: not a readable manifest ({error})") from error
        if not {"dataset", "file", "status"} <= set(names) or any(None in row for row in rows):
            raise DataError(f"{self.path}: not a manifest: it needs dataset, file and status")
        self.columns += [name for name in names if name not in COLUMNS]
        self._rows = {(row["dataset"], row["file"]): row for row in rows}

    def __iter__(self):
        return iter(self._rows.values())

    def get(self, dataset: str, file: str) -> Row | None:
        """Row of a file, or None."""
        return self._rows.get((dataset, file))

    def put(self, row: Row) -> None:
        """Add or replace a row and write the whole manifest in one step."""
        self._rows[row["dataset"], row["file"]] = row
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows.values())
        write_atomic(self.path, text.getvalue())
