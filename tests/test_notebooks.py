"""The notebooks: short, loading results only, and showing what the committed records give."""

import ast
from pathlib import Path

import nbformat
import pytest
import synthetic_records as made
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from analysis import figures
from analysis.collect import load_results
from analysis.notebooks import NotebookError, Picture, execute, notebooks, shown, tidy

FILES = notebooks()
NAMES = [path.stem for path in FILES]


def code_of(notebook: nbformat.NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def write(folder: Path, *sources: str) -> Path:
    path = folder / "made.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return path


def test_there_is_one_for_every_result() -> None:
    assert NAMES == [
        "01_word_level", "02_subset_poolings", "03_full_mteb", "04_pooling_leakage",
        "05_layer_similarity", "06_paper_and_reproduction",
    ]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_begins_with_what_to_see_and_reads_results_only(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    title, _, paragraph = notebook.cells[0].source.partition("\n\n")
    assert title.startswith("# ") and "paper" in title
    assert "\n\n" not in paragraph and "What to see" in paragraph
    code = code_of(notebook)
    assert len(code.splitlines()) < 30
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"analysis"}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_committed_outputs_hold_no_error_and_something_to_see(path: Path) -> None:
    outputs = [
        o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", [])
    ]
    assert {output.output_type for output in outputs} == {"execute_result"}
    assert all({"text/markdown", "image/png"} & set(output.data) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_fresh_run_shows_what_is_committed(path: Path) -> None:
    assert shown(execute(path)) == shown(nbformat.read(path, as_version=4))


@pytest.mark.slow
def test_a_failing_cell_is_named_by_notebook_and_error(tmp_path: Path) -> None:
    with pytest.raises(NotebookError, match=r"made\.ipynb: KeyError: 'no such row'"):
        execute(write(tmp_path, "{}['no such row']"))


def test_the_comparison_sees_numbers_and_code_but_no_pixels() -> None:
    def book(text: str, picture: str, source: str = "f()") -> nbformat.NotebookNode:
        output = new_output("execute_result", {"text/plain": text, "image/png": picture})
        return tidy(
            new_notebook(cells=[new_markdown_cell("x"), new_code_cell(source, outputs=[output])])
        )

    assert shown(book("1.0", "aaaa")) == shown(book("1.0", "bbbb"))
    assert shown(book("1.0", "aaaa")) != shown(book("1.1", "aaaa"))
    assert shown(book("1.0", "aaaa")) != shown(book("1.0", "aaaa", source="g()"))


def test_a_figure_without_records_says_not_run(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    empty = Picture(figures.figure4(load_results(tmp_path)))
    assert empty._repr_png_() is None and "Not run" in str(empty._repr_markdown_())
    made.add_everything(tmp_path)
    drawn = Picture(figures.figure4(load_results(tmp_path)))
    png = drawn._repr_png_()
    assert png is not None and png.startswith(b"\x89PNG") and drawn._repr_markdown_() is None
