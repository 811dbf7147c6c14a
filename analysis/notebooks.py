"""The notebooks, executed: what a reader opens is what the committed records give.

    make notebooks                           # execute all in place, after the records changed
    python -m analysis.notebooks --check     # execute, change nothing, name what differs

Notebooks load ``results/`` and measure nothing. Nothing of the run itself is kept in the file (no
times, no execution ids), so equal records give equal text; pictures are compared by the data
that they draw (``results/figures/*.csv``, see ``analysis.build``).
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import nbformat
import typer
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from llm2vec.console import run
from llm2vec.errors import LLM2VecError
from llm2vec.paths import ROOT
from llm2vec.results import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = ROOT / "notebooks"
SECONDS_PER_CELL = 120
_PICTURES = ("image/png", "image/svg+xml")


class NotebookError(LLM2VecError):
    """A notebook whose code failed."""

    exit_code = 1


@dataclass(frozen=True)
class Picture:
    """A figure as a notebook shows it, or the word that there are no records to draw."""

    figure: Figure | None

    def _repr_png_(self) -> bytes | None:
        if self.figure is None:
            return None
        file = io.BytesIO()
        self.figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
        return file.getvalue()

    def _repr_markdown_(self) -> str | None:
        return "*Not run: there are no records to draw.*" if self.figure is None else None


def notebooks(folder: Path = FOLDER) -> list[Path]:
    """The notebooks of a folder by name."""
    return sorted(folder.glob("*.ipynb"))


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run from the top in a fresh kernel.

    Raises :class:`NotebookError` with the failing cell's error.
    """
    notebook = nbformat.read(path, as_version=4)
    # The kernel is a process of its own: it is to find this checkout, wherever it was started.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    client = NotebookClient(
        notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=ERROR"],
    )  # fmt: skip
    try:
        client.execute()
    except CellExecutionError as error:
        raise NotebookError(f"{path.name}: {error.ename}: {error.evalue}") from error
    return tidy(notebook)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs between two runs of the same code and records."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        cell.metadata = {}
    return notebook


def shown(notebook: nbformat.NotebookNode) -> list[Any]:
    """All that is compared: sources and outputs, a picture only by being there."""
    return [(cell.source, [_shown(o) for o in cell.get("outputs", [])]) for cell in notebook.cells]


def _shown(output: Any) -> Any:
    data = dict(output.get("data", {}))
    for kind in _PICTURES:
        if kind in data:
            data[kind] = "a picture"
    return output.output_type, output.get("text"), sorted(data.items())


def main(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail on drift.")] = False,
    folder: Annotated[Path, typer.Option(help="Folder of the notebooks.")] = FOLDER,
) -> None:
    """Execute every notebook in place."""
    changed = []
    for path in tqdm(notebooks(folder), unit=" notebook"):
        before, after = nbformat.read(path, as_version=4), execute(path)
        if shown(before) != shown(after):
            changed.append(path.name)
        if not check:
            write_atomic(path, nbformat.writes(after) + "\n")
    for name in changed:
        typer.echo(f"{'out of date' if check else 'changed'}: {name}", err=True)
    if check and changed:
        typer.echo("Run 'make notebooks' and commit what changes.", err=True)
        raise typer.Exit(1)
    typer.echo(f"{len(notebooks(folder))} notebooks executed.")


if __name__ == "__main__":
    run(main)
