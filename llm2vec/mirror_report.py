"""Which tasks' data the mirror of the evidence holds, as ``results/mirror.csv``.

    python -m llm2vec.mirror_report          # of LLM2VEC_DATA, for the committed results

The table of what was not run, and why, reads this file, so that it can be remade where there is no
mirror. One row per MTEB task, and one for CoNLL-2003: the weakest status that the mirror's manifest
gives to the files that the task reads, or ``absent`` where one of them is missing.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

import typer

from llm2vec import paths
from llm2vec.data import mirror_folder, mirror_status
from llm2vec.errors import SettingError
from llm2vec.mirror import wanted_by
from llm2vec.registry import SUITES, TASKS
from llm2vec.results import write_atomic
from llm2vec.words import CONLL, CORPORA

ABSENT, WORD_TASKS = "absent", "CoNLL-2003"


def held_by(root: Path) -> list[tuple[str, str]]:
    """(task, status) of every task; ``root``: the mirror that ``LLM2VEC_DATA`` names."""
    conll = mirror_folder(CONLL) or root / CONLL
    files = {WORD_TASKS: [conll / f"{split}.parquet" for split in CORPORA["conll2003"]]}
    for name in SUITES["full"]:
        files[name] = [root / want.dataset / want.file for want in wanted_by(TASKS[name])]
    return [(task, _status(root, found)) for task, found in files.items()]


def _status(root: Path, files: list[Path]) -> str:
    if not all(file.is_file() for file in files):
        return ABSENT
    weaker = dict.fromkeys(s for s in (mirror_status(root, f) for f in files) if s != "exact")
    return "; ".join(weaker) or "exact"


def main(
    results: Annotated[Path | None, typer.Option(help="Results folder to write to.")] = None,
) -> None:
    """Write ``mirror.csv`` into a results folder."""
    root = paths.mirror_dir()
    if root is None or not root.is_dir():
        raise SettingError("LLM2VEC_DATA names no mirror: set it to a folder of datasets")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("task", "status"), *held_by(root)])
    write_atomic((results or paths.results_dir()) / "mirror.csv", text.getvalue())


if __name__ == "__main__":
    from llm2vec.console import run

    run(main)
