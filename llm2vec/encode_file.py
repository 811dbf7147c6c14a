"""Vectors of the lines of a file or of standard input, written as they come; ``llm2vec encode``.

Row i of the output belongs to line i of the input, a blank line included. Beside ``OUT`` lies
``OUT.partial`` (raw float32 rows) with a note on what it holds, until the last line is done: a
killed run goes on with the same command, and the lines that are done are compared by their hash,
not encoded again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from llm2vec.errors import DataError, SettingError
from llm2vec.results import hash_of, write_atomic

CHUNK = 512  # lines: what a killed run loses at most
SUFFIXES = (".npy", ".parquet")
Encode = Callable[[list[str]], np.ndarray]


# --------------------------------------------------------------------------- reading
def read_texts(source: Path | None, field: str | None) -> Iterator[str]:
    """Texts of a file (None: standard input), one a line; with ``field``, of JSON objects.

    Raises :class:`DataError` naming the line that is not UTF-8, no JSON object, or has no text.
    """
    with ExitStack() as stack:
        name = "standard input" if source is None else str(source)
        handle: BinaryIO = sys.stdin.buffer
        if source is not None:
            try:
                handle = stack.enter_context(open(source, "rb"))
            except OSError as error:
                raise DataError(f"cannot read {source} ({error.strerror})") from error
        for number, line in enumerate(handle, 1):
            where = f"{name}, line {number}"
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 ({error.reason}); convert the file") from error
            yield text if field is None else _field(text, field, where)


def _field(line: str, field: str, where: str) -> str:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(values, dict) or not isinstance(values.get(field), str):
        there = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise DataError(f"{where}: no text in {field!r} (there is: {there}); choose with --field")
    return values[field]


# --------------------------------------------------------------------------- writing
def check_output(out: Path, overwrite: bool) -> None:
    """Refuse, before any model is loaded, an output that is unknown, taken or has no folder."""
    if out.suffix not in SUFFIXES:
        raise SettingError(f"--out {out}: unknown format. Valid: {', '.join(SUFFIXES)}, or -.")
    if out.exists() and not overwrite:
        raise SettingError(f"{out} is there already; choose another --out or give --overwrite")
    if not out.parent.is_dir():
        raise SettingError(f"{out.parent} is no folder; make it, or choose another --out")


def encode_file(
    encode: Encode,
    texts: Iterable[str],
    out: Path,
    identity: dict[str, Any],
    chunk: int = CHUNK,
    progress: bool = True,
) -> int:
    """Write the vectors of all texts into ``out`` (.npy or .parquet); returns their number.

    ``identity`` is what the vectors depend on besides the texts; a partial output of another
    identity or of other texts raises :class:`SettingError`.
    """
    partial = Partial(out, identity)
    texts = iter(texts)
    partial.skip(texts)
    with tqdm(initial=partial.rows, unit=" texts", disable=not progress) as bar:
        while block := list(islice(texts, chunk)):
            partial.add(block, encode(block))
            bar.update(len(block))
    if not partial.dimension:
        raise DataError("the input holds no line")
    write = write_npy if out.suffix == ".npy" else write_parquet
    write(partial.vectors(), out)
    partial.discard()
    return partial.rows


def encode_to_stdout(encode: Encode, texts: Iterable[str], chunk: int = CHUNK) -> int:
    """One JSON object a line, ``{"embedding": [...]}``; returns their number."""
    texts, rows = iter(texts), 0
    while block := list(islice(texts, chunk)):
        for vector in encode(block):
            numbers = [float(f"{value:.8g}") for value in vector]
            print(json.dumps({"embedding": numbers}))
        sys.stdout.flush()
        rows += len(block)
    return rows


class Partial:
    """What is done so far of one output: rows, their width, and a hash of their texts."""

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.file = out.with_name(out.name + ".partial")
        self.note = out.with_name(out.name + ".partial.json")
        self.identity = hash_of(identity)
        self.rows = self.dimension = 0
        self.hash = hashlib.sha256()
        self.expected = self.hash.hexdigest()
        if self.note.exists() and self.file.exists():
            self._open()
        else:
            self.file.write_bytes(b"")

    def _open(self) -> None:
        try:
            values = json.loads(self.note.read_text(encoding="utf-8"))
            identity, self.expected = values["identity"], values["texts"]
            self.rows, self.dimension = int(values["rows"]), int(values["dimension"])
        except (ValueError, KeyError, TypeError) as error:
            raise SettingError(f"{self.note}: damaged; delete it to start again") from error
        if identity != self.identity:
            raise SettingError(
                f"{self.file} was begun with another model or other options; give the same, or "
                "delete it to start again"
            )
        size = self.rows * self.dimension * 4
        if self.file.stat().st_size < size:
            raise SettingError(f"{self.file}: shorter than its note says; delete it to start again")
        with open(self.file, "r+b") as handle:
            handle.truncate(size)  # rows after the last note

    def skip(self, texts: Iterator[str]) -> None:
        """Pass over the texts that are done; raises when they are other ones."""
        for text in islice(texts, self.rows):
            self._take(text)
        if self.hash.hexdigest() != self.expected:
            raise SettingError(
                f"{self.file} was begun with other texts; give the same input, or delete it to "
                "start again"
            )

    def _take(self, text: str) -> None:
        raw = text.encode("utf-8", "surrogatepass")
        self.hash.update(len(raw).to_bytes(8, "little") + raw)

    def add(self, texts: list[str], vectors: np.ndarray) -> None:
        """Append rows, then the note that makes them count."""
        with open(self.file, "ab") as handle:
            handle.write(np.ascontiguousarray(vectors, np.float32).tobytes())
        for text in texts:
            self._take(text)
        self.rows += len(texts)
        self.dimension = vectors.shape[1]
        note = {
            "identity": self.identity, "rows": self.rows, "dimension": self.dimension,
            "texts": self.hash.hexdigest(),
        }  # fmt: skip
        write_atomic(self.note, json.dumps(note) + "\n")

    def vectors(self) -> np.ndarray:
        """All rows (n, dimension), from the disk."""
        return np.memmap(self.file, np.float32, "r", shape=(self.rows, self.dimension))

    def discard(self) -> None:
        self.file.unlink()
        self.note.unlink()


def write_npy(vectors: np.ndarray, out: Path) -> None:
    """float32 (n, dimension), as ``numpy.load`` reads it."""
    temporary = out.with_name(f".{out.name}")
    with open(temporary, "wb") as handle:
        np.save(handle, vectors)
    temporary.replace(out)


def write_parquet(vectors: np.ndarray, out: Path, rows: int = 10_000) -> None:
    """Columns ``row`` (int64) and ``embedding`` (fixed-size list of float32)."""
    import pyarrow as pa
    from pyarrow import parquet

    width = vectors.shape[1]
    schema = pa.schema([("row", pa.int64()), ("embedding", pa.list_(pa.float32(), width))])
    temporary = out.with_name(f".{out.name}")
    with parquet.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(vectors), rows):
            part = np.ascontiguousarray(vectors[start : start + rows])
            flat = pa.array(part.reshape(-1), pa.float32())
            columns = [
                pa.array(range(start, start + len(part)), pa.int64()),
                pa.FixedSizeListArray.from_arrays(flat, width),
            ]
            writer.write_table(pa.table(columns, schema=schema))
    temporary.replace(out)
